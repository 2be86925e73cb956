"""Pictures of the presets side by side: their samples, and their test losses over the minutes.

`python benchmarks/two_models.py` draws docs/samples.png and docs/learning_curve.png from trained
models, by default those of `train.py`, `train.py --preset quick` and `train.py --preset best`.
"""

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import report
from cvae_jax import TrainedModel, load
from cvae_jax.commands.cli import one_line_errors
from cvae_jax.evaluation import page
from cvae_jax.runtime.files import whole_file

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
    out: Path = Path("docs")
    """Folder of the pictures."""


def sample_sheets(models: Mapping[str, TrainedModel]) -> Figure:
    """Draw the first samples of each class, a column for a class and a panel for a model."""
    figure = Figure(figsize=(_PANEL_INCHES * len(models), 4.1), dpi=150, layout="constrained")
    for axes, (title, model) in zip(figure.subplots(1, len(models)), models.items(), strict=True):
        page.draw_rows(axes, model.sample(np.tile(np.arange(page.COLUMNS), _ROWS)))
        axes.set_title(title, fontsize=11)
    return figure


def learning_curves(models: Mapping[str, TrainedModel]) -> Figure:
    """Draw the test loss of each model, in nats per image, over the minutes of its training."""
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for (title, model), colour in zip(models.items(), _STYLES, strict=True):
        minutes = [*itertools.accumulate(row.seconds / 60 for row in model.history)]
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


def main() -> None:
    """Parse the arguments, draw and write."""
    with one_line_errors():
        options = report.parse(Options)
        original, quick, best = (
            load(folder) for folder in (options.original, options.quick, options.best)
        )
        pictures = {
            "samples": sample_sheets({"the original": original, "preset best": best}),
            "learning_curve": learning_curves(
                {"the original": original, "preset quick": quick, "preset best": best}
            ),
        }
        for name, figure in pictures.items():
            with whole_file(options.out / f"{name}.png") as file:
                figure.savefig(file, format="png", metadata={"Software": None})
            print(f"wrote {options.out / name}.png")


if __name__ == "__main__":
    main()
