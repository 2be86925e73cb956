"""Seconds of a training epoch on MNIST: this package, PyTorch, and lower bounds of both.

`python benchmarks/training_speed.py`, about three minutes on two cores. All train the same network
on the same 60,000 images, in batches of 128. Compilation and tests are not timed.
"""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import environment, ours, plots, report
from benchmarks.contest import Work, compete, timed
from benchmarks.report import Claim, Result

TUNED, COMPILED = "PyTorch, tuned by hand", "PyTorch, tuned and compiled"


def prepare_original() -> Work:
    """Prepare the original's loader, network and optimizer, with a thread for every processor."""
    import numpy as np
    import torch

    from benchmarks import torch_original
    from cvae_jax.data.sources import load_dataset

    torch.manual_seed(0)
    torch.set_num_threads(environment.num_threads())
    image, label = (np.asarray(array) for array in load_dataset(source="bundled").train)
    loader = torch_original.make_loader(image, label)
    model = torch_original.TorchCVAE().to(torch_original.default_device())
    optimizer = torch_original.make_optimizer(model)
    return timed(lambda: torch_original.train_epoch(model, optimizer, loader))


def prepare_tuned(is_compiled: bool) -> Work:
    """Prepare the tuned training; only the process that calls this imports PyTorch."""
    from benchmarks import torch_tuned

    return torch_tuned.prepare_epoch(is_compiled)


def prepare_floor(name: str) -> Work:
    """Prepare one of `floors`, likewise."""
    from benchmarks import floors

    return getattr(floors, f"prepare_{name}")()


SIDES: dict[str, Callable[[], Work]] = {
    report.OURS: ours.prepare_epoch,
    report.ORIGINAL: prepare_original,
    TUNED: partial(prepare_tuned, False),
    COMPILED: partial(prepare_tuned, True),
}
FLOORS: dict[str, Callable[[], Work]] = {
    "matrix products, in a plain XLA scan": partial(prepare_floor, "scan_of_products"),
    "matrix products, at the best rate of any library": partial(prepare_floor, "products"),
    "Adam, in a plain XLA scan": partial(prepare_floor, "scan_of_adam"),
}


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Time training epochs of this package, of PyTorch, and of parts of the work, in turns."""


def best_tuned(result: Result) -> str:
    """Return the name of the faster one of those that are tuned by hand."""
    return min(
        (name for name in (TUNED, COMPILED) if name in result["seconds"]),
        key=lambda name: report.median(result["seconds"][name]),
    )


def measure(options: Options, machine: Result) -> Result:
    """Let all sides take turns.

    Raises:
        UserError: PyTorch is not installed.
    """
    environment.require_torch()
    sides = SIDES | FLOORS
    if not environment.has_compiler():
        print(f"without a C++ compiler (g++), there is no {COMPILED}")
        del sides[COMPILED]
    seconds, losses = compete(sides, options.rounds)
    return {
        "seconds": {name: values for name, values in seconds.items() if name in SIDES},
        "floors": {name: values for name, values in seconds.items() if name in FLOORS},
        "losses_with_warm_up": {name: values for name, values in losses.items() if values},
    }


def show(result: Result) -> str:
    """Return the table."""
    return report.seconds_table({**result["seconds"], **result["floors"]})


def draw(result: Result) -> Figure:
    """Draw the picture."""
    title = f"A training epoch of MNIST on {environment.name(result)}"
    label = "seconds: median, least to most; dashed: parts of the work, alone"
    return plots.bars(result["seconds"], title, label, floors=result["floors"])


def claims(result: Result) -> list[Claim]:
    """Return the rows of the summary."""
    seconds = result["seconds"]
    return [
        report.faster("a training epoch", seconds[report.OURS], name, seconds[name])
        for name in (report.ORIGINAL, best_tuned(result))
    ]


if __name__ == "__main__":
    report.run("training_speed", Options, measure, show=show, draw=draw)
