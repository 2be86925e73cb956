"""What the benchmarks share: where results lie, what is written, and how figures are put."""

import dataclasses
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from cvae_jax.files import whole_file
from cvae_jax.types import ConfigError

RESULTS = Path(__file__).resolve().parent / "results"
OURS, ORIGINAL = "cvae_jax", "PyTorch, the original"
NOTHING_KEPT = "cvae_jax, nothing kept"

Result = Mapping[str, Any]
"""What a benchmark measured, and on what; a JSON file holds it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How often to measure and where to write."""

    rounds: int = 5
    """Measurements of each side, in turns."""
    out: Path | None = None
    """File to write (JSON), with a picture (PNG) beside it.
    Left out: benchmarks/results; for an accelerator, a folder of its own in there."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"--rounds {self.rounds} can't be used; choose 1 or more")
        if self.out is not None and (self.out.suffix != ".json" or self.out.is_dir()):
            raise ConfigError(f"--out {self.out} can't be used; choose a name that ends in .json")


class Claim(NamedTuple):
    """A row of the README's table, as text."""

    what: str
    ours: str
    other: str  # what it is compared with
    ratio: str


class Spread(NamedTuple):
    """Of some measurements."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        """Put the median, then the range if there is one."""
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)} to {number(self.most)})"


def spread(values: Sequence[float]) -> Spread:
    """Give the median of some measurements, and their range."""
    return Spread(statistics.median(values), min(values), max(values))


def median(values: Sequence[float]) -> float:
    """Give the median of some measurements."""
    return spread(values).median


def ratios(ones: Sequence[float], others: Sequence[float]) -> Spread:
    """Divide pair by pair: those of one round ran one right after the other."""
    return spread([one / other for one, other in zip(ones, others, strict=True)])


def seconds_of(values: Sequence[float]) -> str:
    """Put the median of some measurements, in seconds."""
    return f"{number(median(values))} s"


def faster(what: str, ours: Sequence[float], name: str, others: Sequence[float]) -> Claim:
    """Claim to be faster than another that did the same."""
    ratio = f"{ratios(others, ours)} times faster"
    return Claim(what, seconds_of(ours), f"{name}: {seconds_of(others)}", ratio)


def number(value: float) -> str:
    """Put a number with three digits, or as many as stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds_table(seconds: Mapping[str, Sequence[float]]) -> str:
    """Compare the seconds of all with ours, round by round."""
    return table(
        ["", "seconds", f"times {OURS}"],
        [
            [name, str(spread(values)), str(ratios(values, seconds[OURS]))]
            for name, values in seconds.items()
        ],
    )


def publish(
    name: str,
    measured: Result,
    machine: Result,
    out: Path | None,
    *,
    show: Callable[[Result], str],
    draw: Callable[[Result], Figure],
) -> None:
    """Write the JSON file and the picture, and print the table.

    Args:
        name: of the benchmark, and so of its files.
        measured: what it found.
        machine: what it ran on, from `environment.describe`.
        out: the JSON file; None is the place for this kind of device.
        show: makes the table.
        draw: makes the picture.

    Raises:
        UserError: a file can't be written.
    """
    arguments = shlex.join(sys.argv[1:])
    result = {
        "command": f"python benchmarks/{name}.py {arguments}".strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_rounded(measured),
        **machine,
    }
    platform = machine["hardware"]["platform"]
    out = out or RESULTS / ("" if platform == "cpu" else platform) / f"{name}.json"
    with whole_file(out) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
    save_picture(draw(result), out)
    print(f"\n{show(result)}\n\nwrote {out} and its picture", flush=True)


def save_picture(figure: Figure, result_file: Path) -> None:
    """Write the picture of a result beside its JSON file."""
    with whole_file(result_file.with_suffix(".png")) as file:
        # Matplotlib's version would make each of its releases another picture.
        figure.savefig(file, format="png", metadata={"Software": None})


def read(name: str, results: Path = RESULTS) -> dict[Path, Result]:
    """Read what a benchmark has written, file by file: the CPU's first, then accelerators'."""
    files = [results / f"{name}.json", *sorted(results.glob(f"*/{name}.json"))]
    return {file: json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()}


def _rounded(value: Any) -> Any:
    """Round every number in a tree to six digits, more than was measured."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
