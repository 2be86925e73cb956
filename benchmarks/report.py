"""The shared parts of the benchmarks: options, results and their files, and text of figures."""

import dataclasses
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from benchmarks import environment
from cvae_jax.commands.cli import one_line_errors
from cvae_jax.config import require, require_count
from cvae_jax.runtime.files import whole_file

RESULTS = Path(__file__).resolve().parent / "results"
OURS, ORIGINAL = "cvae_jax", "PyTorch, the original"
NOTHING_KEPT = "cvae_jax, nothing kept"

Result = Mapping[str, Any]
"""The measurements of a benchmark, and the hardware; a JSON file holds it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How often to measure and where to write."""

    rounds: int = 5
    """Measurements of each side, in turns."""
    out: Path | None = None
    """File to write (JSON), with a picture (PNG) beside it.
    Default: in benchmarks/results; for an accelerator, in a folder of its own in there."""

    def __post_init__(self) -> None:
        require_count("rounds", self.rounds)
        if self.out is not None:
            is_file = self.out.suffix == ".json" and not self.out.is_dir()
            require(is_file, "out", self.out, "a name that ends in .json")


_Options = TypeVar("_Options")
_BenchmarkOptions = TypeVar("_BenchmarkOptions", bound=Options)


class Claim(NamedTuple):
    """A row of the summary in RESULTS.md, as text."""

    what: str
    ours: str
    other: str  # what it is compared with
    ratio: str


class Spread(NamedTuple):
    """The median and the range of some measurements."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        """Return the median, then the range if there is one."""
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)} to {number(self.most)})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median of some measurements, and their range."""
    return Spread(statistics.median(values), min(values), max(values))


def median(values: Sequence[float]) -> float:
    """Return the median of some measurements."""
    return spread(values).median


def ratios(ones: Sequence[float], others: Sequence[float]) -> Spread:
    """Divide pair by pair, because the two of one round ran one right after the other."""
    return spread([one / other for one, other in zip(ones, others, strict=True)])


def seconds_of(values: Sequence[float]) -> str:
    """Return the median of some measurements, in seconds, as text."""
    return f"{number(median(values))} s"


def faster(what: str, ours: Sequence[float], name: str, others: Sequence[float]) -> Claim:
    """Return the claim of being faster than another that did the same."""
    ratio = f"{ratios(others, ours)} times faster"
    return Claim(what, seconds_of(ours), f"{name}: {seconds_of(others)}", ratio)


def number(value: float) -> str:
    """Return a number with three digits, or with all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds_table(seconds: Mapping[str, Sequence[float]]) -> str:
    """Return a table that compares the seconds of all with ours, round by round."""
    return table(
        ["", "seconds", f"times {OURS}"],
        [
            [name, str(spread(values)), str(ratios(values, seconds[OURS]))]
            for name, values in seconds.items()
        ],
    )


def parse(options: type[_Options]) -> _Options:
    """Return the arguments of the command line as a dataclass, whose docstrings are the help."""
    import tyro

    return tyro.cli(options, config=(tyro.conf.OmitArgPrefixes,))


def run(
    name: str,
    options: type[_BenchmarkOptions],
    measure: Callable[[_BenchmarkOptions, Result], Result],
    *,
    show: Callable[[Result], str],
    draw: Callable[[Result], Figure],
) -> None:
    """Run a benchmark as a command: parse, measure, print a table, write JSON and a picture.

    Args:
        name: of the benchmark, and so of its files.
        options: its options.
        measure: takes the options and the machine, from `environment.describe`.
        show: returns the table.
        draw: draws the picture.
    """
    with one_line_errors():
        chosen = parse(options)
        machine = environment.describe()
        measured = measure(chosen, machine)
        arguments = shlex.join(sys.argv[1:])
        result = {
            "command": f"python benchmarks/{name}.py {arguments}".strip(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **_rounded(measured),
            **machine,
        }
        platform = machine["hardware"]["platform"]
        out = chosen.out or RESULTS / ("" if platform == "cpu" else platform) / f"{name}.json"
        with whole_file(out) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
        save_picture(draw(result), out)
        print(f"\n{show(result)}\n\nwrote {out} and its picture", flush=True)


def save_picture(figure: Figure, result_file: Path) -> None:
    """Write the picture of a result beside its JSON file."""
    with whole_file(result_file.with_suffix(".png")) as file:
        # Without Matplotlib's version, equal pictures are equal files.
        figure.savefig(file, format="png", metadata={"Software": None})


def read(name: str, results: Path = RESULTS) -> dict[Path, Result]:
    """Read the results of a benchmark, by their files: the CPU's first, then accelerators'."""
    files = [results / f"{name}.json", *sorted(results.glob(f"*/{name}.json"))]
    return {file: json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()}


def _rounded(value: Any) -> Any:
    """Round every number in a tree to six digits, which is more than the measurements have."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
