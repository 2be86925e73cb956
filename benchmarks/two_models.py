"""Pictures of the presets side by side: their samples, and their test losses over the minutes.

`python benchmarks/two_models.py` draws docs/samples.png and docs/learning_curve.png from trained
models, by default those of `train.py`, of it with `--preset quick` and `--preset best`, and of
`--preset best --binarize none --workdir runs/mnist-best-grey`, whose loss compares with that of the
others. It trains each for three epochs more, in a folder of its own, to time them side by side.
"""

import csv
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import report
from cvae_jax import TrainedModel, load
from cvae_jax.commands.cli import one_line_errors
from cvae_jax.evaluation import page
from cvae_jax.runtime.files import whole_file
from cvae_jax.storage.history import METRICS
from cvae_jax.storage.workdir import read_config

_ROWS = 8  # samples of each class
_STYLES = ("#9aa5b1", "#c2410c", "#1f6fb4")
_PANEL_INCHES = 4.4


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw the samples of two models side by side, and the learning curves of three."""

    original: Path = Path("runs/mnist")
    """Workdir of the original."""
    quick: Path = Path("runs/mnist-quick")
    """Workdir of the preset quick."""
    best: Path = Path("runs/mnist-best")
    """Workdir of the preset best."""
    best_grey: Path = Path("runs/mnist-best-grey")
    """Workdir of the preset best, trained on grey levels."""
    out: Path = Path("docs")
    """Folder of the pictures."""


def sample_sheets(models: Mapping[str, TrainedModel]) -> Figure:
    """Draw the first samples of each class, a column for a class and a panel for a model."""
    figure = Figure(figsize=(_PANEL_INCHES * len(models), 4.1), dpi=150, layout="constrained")
    for axes, (title, model) in zip(figure.subplots(1, len(models)), models.items(), strict=True):
        page.draw_rows(axes, model.sample(np.tile(np.arange(page.COLUMNS), _ROWS)))
        axes.set_title(title, fontsize=11)
    return figure


def learning_curves(models: Mapping[str, TrainedModel], seconds: Sequence[float]) -> Figure:
    """Draw the test loss of each model, in nats per image, over the minutes of its training."""
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    sides = zip(models.items(), seconds, _STYLES, strict=True)
    for (title, model), epoch_seconds, colour in sides:
        minutes = [row.epoch * epoch_seconds / 60 for row in model.history]
        losses = [row.test_loss for row in model.history]
        axes.plot(minutes, losses, color=colour, label=f"{title}: {losses[-1]:.1f} at the end")
    axes.set_xscale("log")
    axes.set_ylim(top=125)
    axes.xaxis.set_major_formatter(lambda value, _: report.number(value))
    axes.set_xlabel("minutes of training, with its tests and files")
    axes.set_ylabel("test loss on grey levels, nats per image")
    axes.grid(linestyle="--", alpha=0.5)
    axes.legend()
    return figure


def time_epoch(*options: str) -> float:
    """Return the seconds of an epoch of `train` with some options, after its compilation.

    A process of its own trains: an accelerator serves one, and a CPU is split before JAX starts.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cvae_jax", "train", *options]
        command += ["--epochs", "3", "--workdir", folder]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        with (Path(folder) / METRICS).open(newline="") as file:
            return report.median([float(row["seconds"]) for row in csv.DictReader(file)][1:])


def main() -> None:
    """Parse the arguments, draw and write."""
    with one_line_errors():
        options = report.parse(Options)
        folders = options.original, options.quick, options.best, options.best_grey
        for folder in folders:
            read_config(folder)  # a missing one is reported before minutes of timing
        seconds = [
            time_epoch(),
            time_epoch("--preset", "quick"),
            time_epoch("--preset", "best", "--binarize", "none"),
        ]
        print("seconds of an epoch:", *map(report.number, seconds), flush=True)
        original, quick, best, grey = (load(folder) for folder in folders)
        pictures = {
            "samples": sample_sheets({"the original": original, "preset best": best}),
            "learning_curve": learning_curves(
                {"the original": original, "preset quick": quick, "preset best, grey levels": grey},
                seconds,
            ),
        }
        for name, figure in pictures.items():
            with whole_file(options.out / f"{name}.png") as file:
                figure.savefig(file, format="png", metadata={"Software": None})
            print(f"wrote {options.out / name}.png")


if __name__ == "__main__":
    main()
