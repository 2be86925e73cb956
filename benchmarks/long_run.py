"""Seconds of a whole training on MNIST, once it is compiled, and the time that its files add.

`python benchmarks/long_run.py`: 100 epochs on an accelerator, in a minute or two besides the
original's epoch; ten epochs on a CPU, in three minutes on two cores. It times

- training alone: every step, and the losses fetched;
- the command from the moment its data are on the device to the last checkpoint: `loop.train` with
  its test losses, grids, curves, log and checkpoints, given functions that are compiled;
- `scripts/train.py` from its start to its end, imports and compilation included;
- an epoch of the original's loop on the same device, after one that does not count.
"""

import contextlib
import dataclasses
import io
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import contest, environment, ours, plots, report
from benchmarks.report import Claim, Result
from benchmarks.training_speed import prepare_original
from cvae_jax.config import DataOptions, DeviceOptions, RunOptions, TrainConfig, require_count
from cvae_jax.errors import UserError
from cvae_jax.training import loop
from cvae_jax.training.loop import Programs

ALONE, COMMAND = "cvae_jax, training alone", "cvae_jax, with all files"
COLD = "cvae_jax, the command from a cold start"


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Time a whole training run, alone and with all that the command writes, in turns."""

    rounds: int = 2
    """Runs of each that count."""
    epochs: int | None = None
    """Epochs of a run. Default: 100, on a CPU 10."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None:
            require_count("epochs", self.epochs)


def run_script(num_epochs: int) -> float:
    """Run scripts/train.py in a process of its own; return the seconds from start to end.

    Raises:
        UserError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--epochs", str(num_epochs), "--source", "bundled", "--workdir", folder]
        arguments += ["--num-devices", "1"]
        return contest.run_python(["scripts/train.py", *arguments], **contest.KEEP_NOTHING)


def time_original() -> float | None:
    """Return the seconds of an epoch of the original; None without PyTorch."""
    with contextlib.suppress(UserError):
        environment.require_torch()
        with contest.contestant(report.ORIGINAL, prepare_original, []) as train_epoch:
            train_epoch()
            return train_epoch()
    return None


def time_alone(programs: Programs, num_epochs: int) -> float:
    """Train from new weights; return the seconds."""
    state = programs.init()
    started = time.perf_counter()
    ours.train(programs, state, num_epochs)
    return time.perf_counter() - started


def time_command(programs: Programs, num_epochs: int) -> float:
    """Run the command; return its seconds from the moment its data are on the device.

    Raises:
        UserError: a file can't be written.
    """
    started = 0.0

    def build(*_: object) -> Programs:
        nonlocal started
        started = time.perf_counter()
        return programs

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loop, "build_programs", build),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        options = RunOptions(epochs=num_epochs, workdir=Path(folder))
        data, spread = DataOptions(source="bundled"), DeviceOptions(num_devices=1)
        loop.train(TrainConfig(), options, data, spread)
        return time.perf_counter() - started


def measure(options: Options, machine: Result) -> Result:
    """Let training alone and the command take turns; run the other two once."""
    on_cpu = machine["hardware"]["platform"] == "cpu"
    num_epochs = options.epochs or (10 if on_cpu else 100)
    # Before JAX starts in this process, because most accelerators serve one process at a time.
    print("scripts/train.py, and the original", flush=True)
    cold = run_script(num_epochs)
    original = time_original()

    programs = ours.load()
    sides = {
        ALONE: lambda: time_alone(programs, num_epochs),
        COMMAND: lambda: time_command(programs, num_epochs),
    }
    seconds = contest.take_turns(sides, options.rounds)
    seconds[COLD] = [cold]
    if original is not None:
        seconds[f"{report.ORIGINAL}, {num_epochs} x one epoch"] = [num_epochs * original]
    return {"epochs": num_epochs, "seconds": seconds}


def show(result: Result) -> str:
    """Return the table."""
    seconds = result["seconds"]
    rows = [[name, str(report.spread(values))] for name, values in seconds.items()]
    rows.append(["with all files / training alone", str(_share_of_files(result))])
    return report.table(["", f"{result['epochs']} epochs, seconds"], rows)


def draw(result: Result) -> Figure:
    """Draw the picture."""
    title = f"{result['epochs']} epochs of MNIST on {environment.name(result)}"
    # The original takes hundreds of times as long on a GPU, where its bar would hide ours.
    bars = {name: values for name, values in result["seconds"].items() if name != _original(result)}
    if original := _original(result):
        title += f"\n({original}: {report.seconds_of(result['seconds'][original])})"
    return plots.bars(bars, title, "seconds: median, least to most")


def claims(result: Result) -> list[Claim]:
    """Return the rows of the summary."""
    seconds = result["seconds"]
    alone = seconds[ALONE]
    what = f"{result['epochs']} epochs once compiled"
    files = Claim(
        f"{what}, with tests, grids, logs and checkpoints",
        report.seconds_of(seconds[COMMAND]),
        f"training alone: {report.seconds_of(alone)}",
        f"{_share_of_files(result)} times as long",
    )
    name = _original(result)
    if name is None:
        return [files]
    ratio = report.median(seconds[name]) / report.median(alone)
    original = Claim(
        f"{what}, training alone",
        report.seconds_of(alone),
        f"{name}: {report.seconds_of(seconds[name])}",
        f"{report.number(ratio)} times faster",
    )
    return [original, files]


def _original(result: Result) -> str | None:
    return next((name for name in result["seconds"] if name.startswith(report.ORIGINAL)), None)


def _share_of_files(result: Result) -> report.Spread:
    return report.ratios(result["seconds"][COMMAND], result["seconds"][ALONE])


if __name__ == "__main__":
    report.run("long_run", Options, measure, show=show, draw=draw)
