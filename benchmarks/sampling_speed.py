"""Seconds from the command to the picture of ten digits: this package against PyTorch.

`python benchmarks/sampling_speed.py`, about two minutes. The time is that of the whole process:
start, imports, loading the checkpoint, drawing, saving the picture. Both checkpoints are made here.

The first run of each side does not count. Ours keeps the programs that it compiled, so the runs
that count load them; ours with nothing kept stands beside it, and is the time of a first picture.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import contest, environment, plots, report
from benchmarks.report import Claim, Result


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Time the drawing of ten sixes against the same job in PyTorch, from cold starts in turns."""

    rounds: int = 7
    """Runs of each side that count."""


def prepare_ours(folder: Path) -> dict[str, Callable[[], float]]:
    """Train for one epoch; drawing takes as long from a better model."""
    caches = {"XDG_CACHE_HOME": str(folder)}
    workdir = str(folder / "run")
    train = ["--epochs", "1", "--source", "bundled", "--workdir", workdir]
    contest.run_python(["scripts/train.py", *train], **caches)
    sample = ["--digit", "6", "--workdir", workdir, "--out", str(folder / "ours.png")]

    def draw(**environ: str) -> float:
        return contest.run_python(["scripts/sample.py", *sample], **caches, **environ)

    return {report.OURS: draw, report.NOTHING_KEPT: partial(draw, **contest.KEEP_NOTHING)}


def prepare_theirs(folder: Path) -> Callable[[], float]:
    """Train for one epoch and write a checkpoint with the same contents as the original's."""
    import numpy as np
    import torch

    from benchmarks import torch_original
    from cvae_jax.data.sources import load_dataset

    image, label = (np.asarray(array) for array in load_dataset(source="bundled").train)
    model = torch_original.TorchCVAE()
    optimizer = torch_original.make_optimizer(model)
    torch_original.train_epoch(model, optimizer, torch_original.make_loader(image, label))
    checkpoint = folder / "theirs.pth"
    content = {
        "epoch": 1,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(content, checkpoint)
    sample = ["--digit", "6", "--checkpoint", str(checkpoint), "--out", str(folder / "theirs.png")]
    return lambda: contest.run_python(["-m", "benchmarks.torch_sample", *sample])


def measure(options: Options, machine: Result) -> Result:
    """Train both models, and let all sides take turns.

    Raises:
        UserError: PyTorch is not installed, or a command failed.
    """
    environment.require_torch()
    with tempfile.TemporaryDirectory() as folder:
        print("training the models of both sides", flush=True)
        sides = prepare_ours(Path(folder))
        sides[report.ORIGINAL] = prepare_theirs(Path(folder))
        return {"seconds": contest.take_turns(sides, options.rounds)}


def show(result: Result) -> str:
    """Return the table."""
    return report.seconds_table(result["seconds"])


def draw(result: Result) -> Figure:
    """Draw the picture."""
    title = f"Ten sixes from a cold start on {environment.name(result)}"
    return plots.bars(result["seconds"], title, "seconds: median, least to most")


def claims(result: Result) -> list[Claim]:
    """Return the rows of the summary."""
    what, theirs = "ten sixes from a cold start", result["seconds"][report.ORIGINAL]
    kept, first = (result["seconds"][name] for name in (report.OURS, report.NOTHING_KEPT))
    return [
        report.faster(what, kept, report.ORIGINAL, theirs),
        report.faster(f"{what}, the first time", first, report.ORIGINAL, theirs),
    ]


if __name__ == "__main__":
    report.run("sampling_speed", Options, measure, show=show, draw=draw)
