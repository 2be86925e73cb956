"""RESULTS.md and README's table, drawn from the JSON files; the prose around them is by hand.

What stands between `<!-- name -->` and `<!-- end -->` is made here. A new benchmark is a module
with `show`, `draw` and `claims`, a line in BENCHMARKS, and a pair of marks in RESULTS.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

from benchmarks import (
    cost_by_size,
    environment,
    long_run,
    precision,
    report,
    sampling_speed,
    scaling,
    start_up,
    streaming,
    training_speed,
)
from benchmarks.report import Claim, Result
from cvae_jax.types import UserError

_ROOT = Path(__file__).resolve().parents[1]
PAGE, README = _ROOT / "benchmarks" / "RESULTS.md", _ROOT / "README.md"


class Benchmark(Protocol):
    """What the page asks of a benchmark's module; its script is `<name>.py`."""

    def show(self, result: Result, /) -> str:
        """Make the table, in Markdown."""

    def draw(self, result: Result, /) -> Figure:
        """Make the picture."""

    def claims(self, result: Result, /) -> list[Claim]:
        """Make the rows of README's table."""


BENCHMARKS: Mapping[str, Benchmark] = {
    "training_speed": training_speed,
    "long_run": long_run,
    "cost_by_size": cost_by_size,
    "precision": precision,
    "streaming": streaming,
    "scaling": scaling,
    "start_up": start_up,
    "sampling_speed": sampling_speed,
}


def contents(results: Path = report.RESULTS) -> dict[Path, str]:
    """Make the whole text of both pages anew from the results.

    Raises:
        UserError: a mark is missing in one of them.
    """
    found = {name: report.read(name, results) for name in BENCHMARKS}
    blocks = {
        name: "\n\n".join(_section(name, file, result, results) for file, result in files.items())
        for name, files in found.items()
    }
    rows = [
        [*claim, environment.name(result)]
        for name, files in found.items()
        for result in files.values()
        for claim in BENCHMARKS[name].claims(result)
    ]
    header = ["what", "cvae_jax", "beside it", "ratio", "on"]
    return {
        PAGE: fill(PAGE, blocks),
        README: fill(README, {"results": report.table(header, rows)}),
    }


def fill(page: Path, blocks: Mapping[str, str]) -> str:
    """Give a page with its blocks replaced.

    Raises:
        UserError: a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise UserError(f"{page} needs <!-- {name} --> and <!-- end -->")
        text = f"{before}{mark}{block}\n{end}{after}"
    return text


def _section(name: str, file: Path, result: Result, results: Path) -> str:
    versions = result["versions"]
    packages = (
        f"{title} {versions[package]}"
        for title, package in (("JAX", "jax"), ("PyTorch", "torch"), ("Python", "python"))
        if package in versions
    )
    place = f"results/{file.relative_to(results).as_posix()}"
    lines = [
        f"**{environment.name(result)}** ({', '.join(packages)}; {result['date'][:10]}; "
        f"[all rounds and versions]({place}))",
        f"`{result['command']}`",
        BENCHMARKS[name].show(result),
        f"![{name}]({place.removesuffix('.json')}.png)",
    ]
    return "\n\n".join(lines)
