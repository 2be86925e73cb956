"""Seconds from the command to the first steps of training, with and without what JAX keeps.

`python benchmarks/start_up.py`, a minute on two cores. Timed is `scripts/train.py` from its start,
imports, data and compilation included, until it shows that the first steps are done.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import contest, environment, plots, report
from benchmarks.report import Claim, Result
from cvae_jax import cli

_SOME_STEPS = rb"epoch 1/\d+: .*\| *[1-9]"


def time_start(folder: Path, **environ: str) -> float:
    """Start a training, and end it when it has done some steps; give the seconds to there.

    Raises:
        UserError: it failed before.
    """
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        command = ["scripts/train.py", "--source", "bundled", "--workdir", workdir]
        environ["XDG_CACHE_HOME"] = str(folder)
        return contest.run_python_until(_SOME_STEPS, command, **environ)


def show(result: Result) -> str:
    """Make the table."""
    return report.seconds_table(result["seconds"])


def draw(result: Result) -> Figure:
    """Make the picture."""
    title = f"From the command to the first steps, on {environment.name(result)}"
    return plots.bars(result["seconds"], title, "seconds: median, least to most")


def claims(result: Result) -> list[Claim]:
    """Make the row of README's table."""
    kept, first = (result["seconds"][name] for name in (report.OURS, report.NOTHING_KEPT))
    what = "from `train.py` to its first steps, compiled programs kept"
    return [report.faster(what, kept, "nothing kept", first)]


def main() -> None:
    """Parse the arguments, take turns, print and write the result."""
    with cli.one_line_errors():
        options = cli.parse(report.Options)
        machine = environment.describe()
        with tempfile.TemporaryDirectory() as folder:
            start = partial(time_start, Path(folder))
            sides = {
                report.OURS: start,
                report.NOTHING_KEPT: partial(start, **contest.KEEP_NOTHING),
            }
            seconds = contest.take_turns(sides, options.rounds)
        measured = {"seconds": seconds}
        report.publish("start_up", measured, machine, options.out, show=show, draw=draw)


if __name__ == "__main__":
    main()
