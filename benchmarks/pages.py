"""The tables of RESULTS.md, from the JSON files; the text around them is by hand.

The lines between `<!-- name -->` and `<!-- end -->` are replaced. A new benchmark is a module with
`show`, `draw` and `claims`, a line in BENCHMARKS, and a pair of marks in RESULTS.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

from benchmarks import (
    cost_by_size,
    environment,
    long_run,
    page_speed,
    precision,
    report,
    sampling_speed,
    scaling,
    start_up,
    streaming,
    training_speed,
)
from benchmarks.report import Claim, Result
from cvae_jax.errors import UserError

PAGE = Path(__file__).resolve().parent / "RESULTS.md"


class Benchmark(Protocol):
    """The functions of a benchmark's module; its script is `<name>.py`."""

    def show(self, result: Result, /) -> str:
        """Return the table, in Markdown."""

    def draw(self, result: Result, /) -> Figure:
        """Draw the picture."""

    def claims(self, result: Result, /) -> list[Claim]:
        """Return the rows of the summary."""


BENCHMARKS: Mapping[str, Benchmark] = {
    "training_speed": training_speed,
    "long_run": long_run,
    "cost_by_size": cost_by_size,
    "precision": precision,
    "streaming": streaming,
    "scaling": scaling,
    "start_up": start_up,
    "sampling_speed": sampling_speed,
    "page_speed": page_speed,
}


def contents(results: Path = report.RESULTS) -> str:
    """Return the whole text of the page, with the tables of these results.

    Raises:
        UserError: a mark is missing.
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
    return fill(PAGE, {"summary": report.table(header, rows), **blocks})


def fill(page: Path, blocks: Mapping[str, str]) -> str:
    """Return the text of a page with its blocks replaced.

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
