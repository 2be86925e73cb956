"""What a run leaves behind as it goes: metrics.csv, the sample grids and loss.png."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cvae_jax import figures, workdir
from cvae_jax.config import RunConfig
from cvae_jax.files import whole_file
from cvae_jax.types import ArrayLike, EpochMetrics

_GRID_COLUMNS = 8


def grid_label(run: RunConfig) -> np.ndarray:
    """Give the classes of a sample grid, (64,) int32: each in turn."""
    return np.arange(_GRID_COLUMNS**2, dtype=np.int32) % run.num_classes


def draw_grid(samples: ArrayLike, run: RunConfig, epoch: int, folder: Path) -> None:
    """Draw samples (64, H, W, C) of `grid_label` into the workdir, named after their epoch."""
    figure = figures.image_grid(
        np.asarray(samples),
        grid_label(run),
        f"{run.train.dataset}: samples after epoch {epoch}",
        num_columns=_GRID_COLUMNS,
        inches=0.8,
    )
    with whole_file(folder / workdir.SAMPLES / f"epoch_{epoch:03d}.png") as file:
        figure.savefig(file, format="png")


def draw_loss(history: Sequence[EpochMetrics], run: RunConfig, folder: Path) -> None:
    """Draw the curve of both losses into the workdir."""
    with whole_file(folder / workdir.LOSS) as file:
        figures.loss_curve(history, f"{run.train.dataset}: loss").savefig(file, format="png")
