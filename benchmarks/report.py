"""What both benchmarks share: taking turns, the options, the table and the JSON file."""

import dataclasses
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import environment
from cvae_jax.files import whole_file
from cvae_jax.types import ConfigError

OURS, THEIRS = "cvae_jax", "PyTorch"


@dataclasses.dataclass(frozen=True)
class Options:
    """How often to measure and where to write."""

    rounds: int
    """Measurements of each side, in turns."""
    out: Path
    """File to write (JSON)."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"--rounds {self.rounds} can't be used; choose 1 or more")
        if self.out.suffix != ".json" or self.out.is_dir():
            raise ConfigError(f"--out {self.out} can't be used; choose a name that ends in .json")


class Seconds(NamedTuple):
    """Seconds of each round; a pair of the same round ran one right after the other."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times as long as ours PyTorch took, pair by pair."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def take_turns(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Seconds:
    """Measure ours, theirs, ours, theirs, …, so that a change of the machine meets both.

    Args:
        ours: does its work once and gives the seconds it took; likewise theirs. Both are
            called once more beforehand, uncounted, to compile and to fill caches.
        theirs: the work in PyTorch.
        rounds: calls of each that count.
    """
    print(f"warming up: {OURS} {ours():.2f} s, {THEIRS} {theirs():.2f} s", flush=True)
    seconds = Seconds([], [])
    for number in range(1, rounds + 1):
        seconds.ours.append(ours())
        seconds.theirs.append(theirs())
        print(
            f"round {number}/{rounds}: {OURS} {seconds.ours[-1]:.2f} s, "
            f"{THEIRS} {seconds.theirs[-1]:.2f} s",
            flush=True,
        )
    return seconds


def publish(job: str, seconds: Seconds, out: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Print the table and write the JSON file.

    Args:
        job: what was timed.
        seconds: what it took.
        out: the file.
        extra: more to write into it.

    Raises:
        UserError: it can't be written.
    """
    print(f"\n{_table(job, seconds)}\n")
    content = {
        "job": job,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        OURS: {"seconds": seconds.ours, **_spread(seconds.ours)},
        THEIRS: {"seconds": seconds.theirs, **_spread(seconds.theirs)},
        f"{THEIRS} / {OURS}": {"ratios": seconds.ratios, **_spread(seconds.ratios)},
        **(extra or {}),
        **environment.describe(),
    }
    with whole_file(out) as file:
        file.write((json.dumps(_rounded(content), indent=2) + "\n").encode())
    print(f"wrote {out}")


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _table(job: str, seconds: Seconds) -> str:
    rows = {
        f"{OURS}, seconds": seconds.ours,
        f"{THEIRS}, seconds": seconds.theirs,
        f"{THEIRS} / {OURS}": seconds.ratios,
    }
    lines = [
        f"{name:22}" + "".join(f"{value:10.2f}" for value in _spread(values).values())
        for name, values in rows.items()
    ]
    return "\n".join(
        [
            f"{job} ({len(seconds.ours)} rounds)",
            " " * 22 + "".join(f"{name:>10}" for name in ("min", "median", "max")),
            *lines,
            f"The ratio is taken pair by pair; above 1, {OURS} is the faster one.",
        ]
    )


def _rounded(value: Any) -> Any:
    """Round every number in a tree to what was measured: a tenth of a millisecond."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
