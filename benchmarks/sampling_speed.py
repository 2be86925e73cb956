"""Seconds from the command to the picture of ten digits: this package against PyTorch.

`python benchmarks/sampling_speed.py`, about two minutes. Timed is the whole process: start,
imports, loading the checkpoint, drawing, saving the picture. Both checkpoints are made here.

The first run of each side does not count. Ours keeps what it compiled, so those that count find
it; how long a first picture takes, `--no-keep` tells.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import contest, environment, plots, report
from benchmarks.report import Claim, Result
from cvae_jax import cli


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Time the drawing of ten sixes against the same job in PyTorch, from cold starts in turns."""

    rounds: int = 7
    """Runs of each side that count."""
    keep: bool = True
    """Whether JAX keeps what it has compiled from one run to the next."""


def prepare_ours(folder: Path, *, keep: bool) -> Callable[[], float]:
    """Train for one epoch; drawing from a better model takes no other time."""
    caches = {"XDG_CACHE_HOME": str(folder), "JAX_ENABLE_COMPILATION_CACHE": str(keep)}
    workdir = str(folder / "run")
    train = ["--epochs", "1", "--source", "bundled", "--workdir", workdir]
    contest.run_python(["scripts/train.py", *train], **caches)
    sample = ["--digit", "6", "--workdir", workdir, "--out", str(folder / "ours.png")]
    return lambda: contest.run_python(["scripts/sample.py", *sample], **caches)


def prepare_theirs(folder: Path) -> Callable[[], float]:
    """Train for one epoch and write a checkpoint with all that the original puts there."""
    import numpy as np
    import torch

    from benchmarks import torch_original
    from cvae_jax import data

    image, label = (np.asarray(array) for array in data.load_dataset(source="bundled").train)
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


def show(result: Result) -> str:
    """Make the table."""
    return report.seconds_table(result["seconds"])


def draw(result: Result) -> Figure:
    """Make the picture."""
    title = f"Ten sixes from a cold start on {environment.name(result)}"
    return plots.bars(result["seconds"], title, "seconds: median, least to most")


def claims(result: Result) -> list[Claim]:
    """Make the row of README's table."""
    ours, theirs = (result["seconds"][name] for name in (report.OURS, report.ORIGINAL))
    return [report.faster("ten sixes from a cold start", ours, report.ORIGINAL, theirs)]


def main() -> None:
    """Parse the arguments, make the checkpoints, take turns, print and write the result."""
    with cli.one_line_errors():
        options = cli.parse(Options)
        environment.require_torch()
        machine = environment.describe()
        with tempfile.TemporaryDirectory() as folder:
            print("making two checkpoints", flush=True)
            ours = prepare_ours(Path(folder), keep=options.keep)
            theirs = prepare_theirs(Path(folder))
            sides = {report.OURS: ours, report.ORIGINAL: theirs}
            seconds = contest.take_turns(sides, options.rounds)
        measured = {"seconds": seconds}
        report.publish("sampling_speed", measured, machine, options.out, show=show, draw=draw)


if __name__ == "__main__":
    main()
