"""What matrix products and activations in bfloat16 cost in nats, and gain in time.

`python benchmarks/precision.py`, seven minutes on two cores: the default run in both precisions,
epoch by epoch in turns, each tested in float32. A CPU has to emulate bfloat16.
"""

import dataclasses
import statistics
import sys
import time
from functools import reduce
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import environment, plots, report
from benchmarks.report import Claim, Result
from cvae_jax import cli
from cvae_jax.config import Precision, TrainConfig
from cvae_jax.types import ConfigError, Progress

_LAST = 10  # epochs whose mean is compared, as the test loss moves by 0.1 from one to the next


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Train in float32 and in bfloat16, and compare the test losses."""

    rounds: int = 100
    """Epochs of each."""

    def __post_init__(self) -> None:
        """Check what is this benchmark's own too."""
        super().__post_init__()
        if self.rounds < _LAST:
            raise ConfigError(f"--rounds {self.rounds} can't be used; choose {_LAST} or more")


def train(num_epochs: int) -> Result:
    """Train in turns; give the test losses in nats per image, and the seconds of each epoch."""
    import jax

    from benchmarks import ours
    from cvae_jax.progress import add_sums

    names: tuple[Precision, ...] = get_args(Precision)
    programs = {name: ours.load(TrainConfig(precision=name)) for name in names}
    states = {name: one.init() for name, one in programs.items()}
    losses: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for epoch in range(1, num_epochs + 1):
        for name, one in programs.items():
            started = time.perf_counter()
            states[name], _ = ours.train(one, states[name], epoch)
            seconds[name].append(time.perf_counter() - started)
            sums = reduce(add_sums, jax.device_get(one.test(states[name].params)), Progress())
            losses[name].append((sums.reconstruction + sums.kl) / sums.num_examples)
        latest = ", ".join(f"{name} {values[-1]:.2f}" for name, values in losses.items())
        print(f"epoch {epoch}/{num_epochs}: test loss {latest}", flush=True)
    # The first epoch compiles.
    return {"losses": losses, "seconds": {name: values[1:] for name, values in seconds.items()}}


def _last(result: Result) -> dict[str, float]:
    """Give the mean test loss of the last epochs."""
    return {name: statistics.mean(values[-_LAST:]) for name, values in result["losses"].items()}


def show(result: Result) -> str:
    """Make the table."""
    last = _last(result)
    rows = [
        [name, f"{last[name]:.2f}", str(report.spread(values))]
        for name, values in result["seconds"].items()
    ]
    header = ["", f"test loss, mean of the last {_LAST} epochs", "seconds an epoch"]
    return report.table(header, rows)


def draw(result: Result) -> Figure:
    """Make the picture."""
    title = f"Test loss by the type of the matrix products, {environment.name(result)}"
    return plots.curves(result["losses"], title, "epoch", "nats per image")


def claims(result: Result) -> list[Claim]:
    """Make the rows of README's table."""
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


def main() -> None:
    """Parse the arguments, take turns, print and write the result."""
    with cli.one_line_errors():
        options = cli.parse(Options)
        machine = environment.describe()
        measured = train(options.rounds)
        report.publish("precision", measured, machine, options.out, show=show, draw=draw)


if __name__ == "__main__":
    main()
