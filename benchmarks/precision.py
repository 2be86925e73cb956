"""What matrix products and activations in bfloat16 cost in nats, and gain in time.

`python benchmarks/precision.py`, seven minutes on two cores: the default run in both precisions,
epoch by epoch in turns, each tested in float32. A CPU emulates bfloat16.
"""

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import environment, plots, report
from benchmarks.report import Claim, Result
from cvae_jax.config import Precision, TrainConfig, require_count

_LAST = 10  # epochs whose mean is compared; the test loss varies by 0.1 from one to the next


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Train in float32 and in bfloat16, and compare the test losses."""

    rounds: int = 100
    """Epochs of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("rounds", self.rounds, least=_LAST)


def measure(options: Options, machine: Result) -> Result:
    """Train in turns; return the test losses in nats per image, and the seconds of each epoch."""
    from benchmarks import ours

    names: tuple[Precision, ...] = get_args(Precision)
    programs = {name: ours.load(TrainConfig(precision=name)) for name in names}
    states = {name: one.init() for name, one in programs.items()}
    losses: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for epoch in range(1, options.rounds + 1):
        for name, one in programs.items():
            started = time.perf_counter()
            states[name], _ = ours.train(one, states[name], epoch)
            seconds[name].append(time.perf_counter() - started)
            losses[name].append(ours.mean_loss(one.test(states[name].params)))
        latest = ", ".join(f"{name} {values[-1]:.2f}" for name, values in losses.items())
        print(f"epoch {epoch}/{options.rounds}: test loss {latest}", flush=True)
    # Without the seconds of the first epoch, which compiles.
    return {"losses": losses, "seconds": {name: values[1:] for name, values in seconds.items()}}


def _last(result: Result) -> dict[str, float]:
    """Return the mean test loss of the last epochs."""
    return {name: statistics.mean(values[-_LAST:]) for name, values in result["losses"].items()}


def show(result: Result) -> str:
    """Return the table."""
    last = _last(result)
    rows = [
        [name, f"{last[name]:.2f}", str(report.spread(values))]
        for name, values in result["seconds"].items()
    ]
    header = ["", f"test loss, mean of the last {_LAST} epochs", "seconds an epoch"]
    return report.table(header, rows)


def draw(result: Result) -> Figure:
    """Draw the picture."""
    title = f"Test loss by the type of the matrix products, {environment.name(result)}"
    return plots.curves(result["losses"], title, "epoch", "nats per image")


def claims(result: Result) -> list[Claim]:
    """Return the rows of the summary."""
    last, seconds = _last(result), result["seconds"]
    epochs = len(result["losses"]["float32"])
    ratio = report.ratios(seconds["bfloat16"], seconds["float32"])
    return [
        Claim(
            f"test loss after {epochs} epochs, `--precision bfloat16`",
            f"{last['bfloat16']:.2f} nats",
            f"float32: {last['float32']:.2f} nats",
            f"{last['bfloat16'] - last['float32']:+.2f} nats, {ratio} times as long",
        )
    ]


if __name__ == "__main__":
    report.run("precision", Options, measure, show=show, draw=draw)
