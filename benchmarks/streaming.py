"""Seconds of a training epoch with the data set on the device, and streamed from the host.

`python benchmarks/streaming.py`, a minute on two cores. MNIST takes 55 MB; a stream may have less
of it on the device at a time. The losses are the same to the bit.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import contest, environment, ours, plots, report
from benchmarks.report import Claim, Result
from cvae_jax.errors import UserError

SIDES: Mapping[str, float | None] = {
    report.OURS: None,
    "streamed, 20 MB": 20e6,
    "streamed, 2 MB": 2e6,
}


def measure(options: report.Options, machine: Result) -> Result:
    """Let all sides take turns.

    Raises:
        UserError: their losses differ.
    """
    sides = {name: partial(ours.prepare_epoch, memory) for name, memory in SIDES.items()}
    seconds, losses = contest.compete(sides, options.rounds)
    if any(values != losses[report.OURS] for values in losses.values()):
        raise UserError(f"streaming changed the losses: {losses}")
    return {"seconds": seconds, "losses_with_warm_up": losses}


def show(result: Result) -> str:
    """Return the table."""
    return report.seconds_table(result["seconds"])


def draw(result: Result) -> Figure:
    """Draw the picture."""
    title = f"The data set on the device or streamed, on {environment.name(result)}"
    return plots.bars(result["seconds"], title, "seconds an epoch: median, least to most")


def claims(result: Result) -> list[Claim]:
    """Return the rows of the summary."""
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


if __name__ == "__main__":
    report.run("streaming", report.Options, measure, show=show, draw=draw)
