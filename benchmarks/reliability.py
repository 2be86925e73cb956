"""Spoil runs in every way we know, many times, and write the table of docs/reliability.md.

`python benchmarks/reliability.py` takes about an hour on a laptop. Kills, signals, damage and full
disks meet real runs of the original model on all of MNIST; every other fault has its tests.
`--quick` tries the former on a tiny run, in a few minutes, and writes nothing.
"""

import dataclasses
import json
import logging
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed
# Like the tests; to try another device, say so. Two processes can't share most accelerators.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks import environment, report
from cvae_jax.commands.cli import one_line_errors
from cvae_jax.config import require_count
from cvae_jax.errors import UserError
from cvae_jax.runtime.files import whole_file
from cvae_jax.storage import checkpoints
from tests import fault_files, faults

_ROOT = Path(__file__).resolve().parents[1]
_OUT = report.RESULTS / "reliability.json"
_DOCUMENT = _ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- table -->", "<!-- end -->"
_RUN = ("--source", "bundled", "--epochs", 6, "--sample-every", 1)
_KILLS_A_RUN, _SIGNALS_A_RUN = 4, 4


@dataclasses.dataclass(frozen=True)
class Options:
    """Spoil runs in every way we know, and write the table of docs/reliability.md."""

    kills: int = 50
    """Kills with SIGKILL that hit their moment."""
    signals: int = 20
    """Signals that ask a run to stop; a quarter as many are sent twice."""
    fuzz: int = 100_000
    """Random inputs for each parser."""
    seed: int = 0
    """Seed of all that is random."""
    quick: bool = False
    """Spoil a tiny run instead of the original model's, leave out the tests, write nothing."""

    def __post_init__(self) -> None:
        for name in ("kills", "signals", "fuzz"):
            require_count(name, getattr(self, name))


class Row(NamedTuple):
    """What was tried of one fault in this run, and what went wrong."""

    fault: str
    tried: str
    command: str
    promise: str
    problems: list[str]
    skipped: str = ""

    @property
    def outcome(self) -> str:
        """What we promise, or what went wrong."""
        if self.problems:
            return f"FAILED: {_without_folders(self.problems[0])} ({len(self.problems)} in all)"
        return f"skipped: {self.skipped}" if self.skipped else self.promise


def _without_folders(problem: str) -> str:
    """Keep the names of files alone: their folders mean nothing on another machine."""
    return re.sub(r"/(?:[^\s/]+/)+", "", problem)[:200]


class Place(NamedTuple):
    """Where runs are spoiled, and the run that they are compared with."""

    folder: Path
    arguments: tuple[object, ...]
    rng: random.Random

    @property
    def reference(self) -> Path:
        """The workdir of the run that nothing happened to."""
        return self.folder / "reference"

    def trainer(self, name: str) -> faults.Trainer:
        """Return the command of a run in a workdir of this name."""
        return faults.Trainer(self.folder / name, self.arguments)

    def compare(self, trainer: faults.Trainer) -> list[str]:
        """Compare a run that has ended with the reference, and delete it."""
        found = [
            f"differs: {name}" for name in fault_files.differences(trainer.folder, self.reference)
        ]
        if not found:
            shutil.rmtree(trainer.folder)
        return found


def try_kills(place: Place, number: int) -> Row:
    """Kill runs until so many kills have hit the moment that was meant."""
    hits: Counter[str] = Counter()
    problems: list[str] = []
    num_kills = num_runs = 0
    while (missing := number - hits.total()) > 0 and num_runs < number:
        rarest = sorted(faults.MOMENTS, key=lambda moment: (hits[moment], place.rng.random()))
        moments = rarest[: min(missing, _KILLS_A_RUN)]
        place.rng.shuffle(moments)
        trainer = place.trainer(f"killed-{num_runs}")
        hit, found, kills = faults.kill_often(trainer, moments, place.rng)
        problems += found + place.compare(trainer)
        hits.update(hit)
        num_kills, num_runs = num_kills + kills, num_runs + 1
        print(f"kills: {hits.total()}/{number}, {len(problems)} problems", flush=True)
    if hits.total() < number:
        problems.append(f"only {hits.total()} of {number} kills hit their moment")
    counts = ", ".join(f"{hits[moment]} {moment}" for moment in faults.MOMENTS)
    return Row(
        "SIGKILL",
        f"{num_kills} kills in {num_runs} runs; {hits.total()} hit their moment: {counts}",
        f"python benchmarks/reliability.py --kills {number}",
        "at most one `--checkpoint-every` lost; ended the same to the bit",
        problems,
    )


def try_signals(place: Place, number: int) -> Row:
    """Stop runs politely at random times, going on each time from where they were saved."""
    happened: Counter[str] = Counter()
    problems: list[str] = []
    num_runs = num_within = 0
    while happened["saved"] + happened["early"] < number:
        trainer, where = place.trainer(f"stopped-{num_runs}"), ""
        for _ in range(_SIGNALS_A_RUN):
            asked = place.rng.choice([signal.SIGTERM, signal.SIGINT])
            what, where, found = faults.stop_politely(trainer, asked, place.rng, where)
            problems += found
            happened[what] += 1
            num_within += what == "saved" and "batch" in where
            if what == "over" or happened["saved"] + happened["early"] == number:
                break
        problems += trainer.finish() + place.compare(trainer)
        num_runs += 1
        done = happened["saved"] + happened["early"]
        print(f"signals: {done}/{number}, {len(problems)} problems", flush=True)
    return Row(
        "SIGTERM, Ctrl-C",
        f"{happened['saved']} in training, {num_within} of them in the middle of an epoch, "
        f"{happened['early']} before it, in {num_runs} runs",
        f"python benchmarks/reliability.py --signals {number}",
        "exit status 143 or 130, nothing lost, ended the same to the bit",
        problems,
    )


def try_two_signals(place: Place, number: int) -> Row:
    """Send a signal twice while a run compiles."""
    trainer, longest = place.trainer("asked-twice"), 0.0
    problems: list[str] = []
    for index in range(number):
        asked = (signal.SIGTERM, signal.SIGINT)[index % 2]
        seconds, found = faults.stop_twice(trainer, asked, place.rng)
        longest, problems = max(longest, seconds), problems + found
    problems += trainer.finish() + place.compare(trainer)
    return Row(
        "a signal sent twice while compiling",
        f"{number}",
        "python benchmarks/reliability.py",
        f"ended, after {longest:.1f} s at most; the next run ended the same to the bit",
        problems,
    )


def try_damage(place: Place, rounds: int = 3) -> Row:
    """Damage each file of the newest checkpoint in each way; train on after three of them."""
    trainer, tried = place.trainer("damaged"), 0
    problems: list[str] = []
    directory = trainer.checkpoints
    shutil.copytree(place.reference, trainer.folder)
    older, newest = (directory / str(step) for step in checkpoints.list_steps(directory)[-2:])
    logging.getLogger("cvae_jax").setLevel(logging.ERROR)  # hundreds of warnings are meant
    for _ in range(rounds):
        for damage in fault_files.damage_each(newest, place.rng):
            tried += 1
            if checkpoints.find_newest(directory) != older:
                problems.append(f"unnoticed: {damage}")
    for name in ("run.json", "SHA256SUMS", "state/_METADATA"):
        (newest / name).unlink()
        sample = faults.Started("sample.py", "--digit", 6, "--workdir", trainer.folder)
        if (
            sample.end()
            or f"model: {older}" not in sample.output
            or str(newest) not in sample.output
        ):
            problems.append(f"sampling without {name}: {sample.lines[-2:]}")
        (trainer.folder / "digit_6.png").unlink(missing_ok=True)
        started = trainer.start()
        if started.end() or f"{newest} is damaged" not in started.output:
            problems.append(f"training without {name}: {started.lines[-2:]}")
        problems += fault_files.differences(trainer.folder, place.reference)
    fault_files.swap(older, newest)
    sample = faults.Started("sample.py", "--digit", 6, "--workdir", trainer.folder)
    if (
        sample.end()
        or f"{newest} is damaged" not in sample.output
        or not re.search(
            rf"model: {directory}/(?!({older.name}|{newest.name})$)", sample.output, re.MULTILINE
        )
    ):
        problems.append(f"sampling from swapped checkpoints: {sample.lines[-2:]}")
    (trainer.folder / "digit_6.png").unlink(missing_ok=True)
    problems += trainer.finish() + fault_files.differences(trainer.folder, place.reference)
    if len(list(directory.glob("*.damaged*"))) != 5:
        problems.append("a damaged checkpoint is gone")
    return Row(
        "a damaged checkpoint",
        f"{tried} damages, to each file of one in turn; two swapped; 4 runs of each script",
        "python benchmarks/reliability.py",
        "each noticed and named; the next older one taken, the damaged one kept; same to the bit",
        problems + place.compare(trainer),
    )


def try_full_disk(place: Place) -> Row:
    """Fill the disk so that metrics.csv, a figure, or a checkpoint can't be written."""
    fault, command = "a full disk", "python benchmarks/reliability.py"
    problems: list[str] = []
    failed: Counter[str] = Counter()
    for leave in (0, 20_000, 400_000):
        try:
            with fault_files.small_disk(place.folder / "disk", "200m"):
                trainer = place.trainer("disk/run")
                written, found = _fill_up(trainer, leave)
                failed[written] += 1
                problems += found + place.compare(trainer)
        except PermissionError as error:
            return Row(fault, "0", command, "", [], str(error))
    promise = "one line that names the path and the room; went on and ended the same to the bit"
    tried = f"{failed.total()}: {', '.join(f'{n} {name}' for name, n in sorted(failed.items()))}"
    return Row(fault, tried, command, promise, problems)


def _fill_up(trainer: faults.Trainer, leave: int) -> tuple[str, list[str]]:
    """Fill the disk of a run but for some bytes, then let it go on with more room.

    Returns:
        What could not be written, and what went wrong.
    """
    started = trainer.start_and_wait()
    filler = fault_files.fill(trainer.folder.parent, leave)
    status, last = started.end(), started.lines[-1]
    problems = [f"printed: {line}" for line in started.noise]
    found = re.search(rf"{trainer.folder}/([^/ ]+)\S* can't be written: .* free there\)", last)
    if status != 1 or not found:
        problems.append(f"exit status {status}: {last}")
    problems += [f"{path} is left" for path in trainer.temporaries(*faults.TEMPORARIES)]
    filler.unlink()
    return found[1] if found else "nothing", problems + trainer.finish()


def try_tests(fault: str, promise: str, *selection: str, fuzz: int = 0) -> Row:
    """Run the tests that belong to a fault, and count their cases."""
    environ, prefix = dict(os.environ), ""
    if fuzz:
        environ["FUZZ_EXAMPLES"], prefix = str(fuzz), f"FUZZ_EXAMPLES={fuzz} "
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *selection]
        done = subprocess.run(
            [*command, f"--junitxml={report}"],
            cwd=_ROOT,
            env=environ,
            capture_output=True,
            text=True,
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    problems = [
        f"{case.get('name')}" for case in cases if {"failure", "error"} & {sub.tag for sub in case}
    ]
    if done.returncode and not problems:
        problems.append((done.stdout.strip() or "nothing printed").splitlines()[-1])
    skipped = [sub.get("message") or "" for case in cases for sub in case.iter("skipped")]
    num_tried = len(cases) - len(skipped)
    tried = f"{num_tried} tests" + (f" of up to {fuzz:,} inputs" if fuzz else "")
    tried += f" ({len(skipped)} skipped)" if skipped else ""
    reason = "" if num_tried else "; ".join(sorted(set(skipped))) or "no test was found"
    print(f"{fault}: {tried}, {len(problems)} problems", flush=True)
    command_line = prefix + shlex.join(["python", *command[1:]])
    return Row(fault, tried, command_line, promise, problems, reason)


_LINE = "an error in one line that says what and how to mend it"
_TESTS = (  # fault, promise, arguments of pytest
    (
        "a disk or workdir that can't be written",
        _LINE,
        ("tests/test_faults.py", "-k=read_only or grow or cannot_be_made"),
    ),
    (
        "output that is closed, or that nobody reads",
        "trained on to the end",
        ("tests/test_faults.py", "tests/test_cli.py", "-k=closed or reader"),
    ),
    (
        "a signal sent twice to a run that waits for its reader",
        "the second one ended it at once",
        ("tests/test_stopping.py", "-k=second_signal"),
    ),
    (
        "two trainers; readers while one writes",
        "the second trainer refused; every reading succeeds",
        ("tests/test_faults.py", "tests/test_workdir.py", "-k=second"),
    ),
    (
        "one of two processes stopped or lost",
        "the other one ended; continued to the bit",
        ("tests/test_hosts.py", "-k=two_processes"),
    ),
    (
        "checkpoints swapped, renamed or copied",
        "an older whole one taken, or refused in a line",
        (
            "tests/test_faults.py",
            "tests/test_checkpoints.py",
            "-k=swapped or newest_name or each_others",
        ),
    ),
    (
        "a wrong record, workdir or checkpoint",
        "refused by name",
        ("tests/test_workdir.py", "tests/test_checkpoints.py"),
    ),
    (
        "numbers that are not finite",
        "the step named, nothing of it saved",
        ("tests/test_loop.py", "tests/test_training.py", "-k=finite"),
    ),
    ("bad data, damaged caches", _LINE, ("tests/test_idx.py", "tests/test_data.py")),
    ("no network, or a bad one", f"{_LINE}; a later run succeeds", ("tests/test_tfds.py",)),
    ("bad arguments", _LINE, ("tests/test_cli.py", "tests/test_sample_command.py")),
)


def try_all(place: Place, options: Options) -> Iterator[Row]:
    """Try every fault, one after the other."""
    yield try_kills(place, options.kills)
    yield try_signals(place, options.signals)
    yield try_two_signals(place, max(2, options.signals // 4))
    yield try_damage(place)
    yield try_full_disk(place)
    if options.quick:
        return
    for fault, promise, selection in _TESTS:
        yield try_tests(fault, promise, *selection)
    yield try_tests("random bytes for the parsers", "read or refused", "-m=fuzz", fuzz=options.fuzz)


def make_table(rows: list[Row]) -> str:
    """Return the table of the document."""
    cells = [(row.fault, row.tried, f"`{row.command}`", row.outcome) for row in rows]
    escaped = [[cell.replace("|", "/") for cell in line] for line in cells]
    return report.table(("fault", "tried", "command", "outcome"), escaped)


def write(rows: list[Row], options: Options) -> None:
    """Write the JSON file and the table of the document."""
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/reliability.py", *sys.argv[1:]]),
        "options": dataclasses.asdict(options),
        "rows": [
            {
                **row._asdict(),
                "outcome": row.outcome,
                "problems": [_without_folders(problem) for problem in row.problems],
            }
            for row in rows
        ],
        **environment.describe(),
    }
    with whole_file(_OUT) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    before, _, rest = _DOCUMENT.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    with whole_file(_DOCUMENT) as file:
        file.write(f"{before}{_BEGIN}\n{make_table(rows)}\n{_END}{after}".encode())
    print(f"\nwrote {_OUT} and {_DOCUMENT}")


def main() -> None:
    """Parse the arguments, try everything, write the table; fail if anything did."""
    with one_line_errors():
        options = report.parse(Options)
        with tempfile.TemporaryDirectory() as folder:
            arguments = faults.small_run() if options.quick else _RUN
            place = Place(Path(folder), arguments, random.Random(options.seed))
            if problems := place.trainer("reference").finish():
                raise UserError(f"a run that nothing was done to failed: {problems[0]}")
            rows = list(try_all(place, options))
        print(f"\n{make_table(rows)}")
        if not options.quick:
            write(rows, options)
        if failed := [row.fault for row in rows if row.problems]:
            raise UserError(f"not as promised: {', '.join(failed)}")


if __name__ == "__main__":
    main()
