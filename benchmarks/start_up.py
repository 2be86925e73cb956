"""Seconds from the command to the first steps of training, with and without JAX's cache.

`python benchmarks/start_up.py`, a minute on two cores. The time is that of `scripts/train.py` from
its start, imports, data and compilation included, until it shows that the first steps are done.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import contest, environment, plots, report
from benchmarks.report import Claim, Result

_SOME_STEPS = rb"epoch 1/\d+: .*\| *[1-9]"


def time_start(folder: Path, **environ: str) -> float:
    """Start a training, and end it when it has done some steps; return the seconds until then.

    Raises:
        UserError: it failed before.
    """
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        command = ["scripts/train.py", "--source", "bundled", "--workdir", workdir]
        environ["XDG_CACHE_HOME"] = str(folder)
        return contest.run_python_until(_SOME_STEPS, command, **environ)


def measure(options: report.Options, machine: Result) -> Result:
    """Let both sides take turns."""
    with tempfile.TemporaryDirectory() as folder:
        start = partial(time_start, Path(folder))
        sides = {
            report.OURS: start,
            report.NOTHING_KEPT: partial(start, **contest.KEEP_NOTHING),
        }
        return {"seconds": contest.take_turns(sides, options.rounds)}


def show(result: Result) -> str:
    """Return the table."""
    return report.seconds_table(result["seconds"])


def draw(result: Result) -> Figure:
    """Draw the picture."""
    title = f"From the command to the first steps, on {environment.name(result)}"
    return plots.bars(result["seconds"], title, "seconds: median, least to most")


def claims(result: Result) -> list[Claim]:
    """Return the row of the summary."""
    kept, first = (result["seconds"][name] for name in (report.OURS, report.NOTHING_KEPT))
    what = "from `train.py` to its first steps, compiled programs kept"
    return [report.faster(what, kept, "nothing kept", first)]


if __name__ == "__main__":
    report.run("start_up", report.Options, measure, show=show, draw=draw)
