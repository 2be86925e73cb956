"""Seconds of a training epoch with the data set on the device, and streamed from the host.

`python benchmarks/streaming.py`, a minute on two cores. MNIST takes 55 MB; the streams may have
some of that on the device. What is learnt is the same to the bit, and so are the losses.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import contest, environment, ours, plots, report
from benchmarks.report import Claim, Result
from cvae_jax import cli
from cvae_jax.types import UserError

SIDES: Mapping[str, float | None] = {
    report.OURS: None,
    "streamed, 20 MB": 20e6,
    "streamed, 2 MB": 2e6,
}


def show(result: Result) -> str:
    """Make the table."""
    return report.seconds_table(result["seconds"])


def draw(result: Result) -> Figure:
    """Make the picture."""
    title = f"The data set on the device or streamed, on {environment.name(result)}"
    return plots.bars(result["seconds"], title, "seconds an epoch: median, least to most")


def claims(result: Result) -> list[Claim]:
    """Make the rows of README's table."""
    seconds = result["seconds"]
    resident, streamed = seconds[report.OURS], seconds["streamed, 20 MB"]
    return [
        Claim(
            "a training epoch, its data streamed from the host",
            report.seconds_of(streamed),
            f"on the device: {report.seconds_of(resident)}",
            f"{report.ratios(streamed, resident)} times as long",
        )
    ]


def _require_same(losses: Mapping[str, Sequence[float]]) -> None:
    if any(values != losses[report.OURS] for values in losses.values()):
        raise UserError(f"what streams has learnt something else: {dict(losses)}")


def main() -> None:
    """Parse the arguments, take turns, print and write the result."""
    with cli.one_line_errors():
        options = cli.parse(report.Options)
        machine = environment.describe()
        sides = {name: partial(ours.prepare_epoch, memory) for name, memory in SIDES.items()}
        seconds, losses = contest.compete(sides, options.rounds)
        _require_same(losses)
        measured = {"seconds": seconds, "losses_with_warm_up": losses}
        report.publish("streaming", measured, machine, options.out, show=show, draw=draw)


if __name__ == "__main__":
    main()
