"""Try to spoil runs, in every way we know and many times; write down what became of them.

`python benchmarks/reliability.py`, an hour or so on a laptop. Kills, signals, damage and full
disks meet real runs of the original model on all of MNIST; every other fault has its tests.
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
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed
# Like the tests; to try another device, say so. Two processes can't share most accelerators.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks import environment
from cvae_jax import checkpoints, cli, workdir
from cvae_jax.files import whole_file
from cvae_jax.types import ConfigError, UserError
from tests import fault_files, faults

_ROOT = Path(__file__).resolve().parents[1]
_OUT = _ROOT / "benchmarks" / "results" / "reliability.json"
_DOCUMENT = _ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- table -->", "<!-- end -->"
_RUN = ("--source", "bundled", "--epochs", 6, "--sample-every", 1)
_KILLS_A_RUN, _SIGNALS_A_RUN = 4, 4


@dataclasses.dataclass(frozen=True)
class Options:
    """Try to spoil runs in every way we know, and write the table of docs/reliability.md."""

    kills: int = 50
    """Kills with SIGKILL that hit their moment."""
    signals: int = 20
    """Signals that ask a run to stop, and as many that ask twice divided by four."""
    fuzz: int = 100_000
    """Random inputs for each parser."""
    seed: int = 0
    """Seed of all that is random."""

    def __post_init__(self) -> None:
        for name in ("kills", "signals", "fuzz"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)} can't be used; choose 1 or more")


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
        """Say what became of it: what we promise, or what went wrong."""
        if self.problems:
            return f"FAILED: {_without_folders(self.problems[0])} ({len(self.problems)} in all)"
        return f"skipped: {self.skipped}" if self.skipped else self.promise


def _without_folders(problem: str) -> str:
    """Keep the names of files alone: where they lay is of no use on another machine."""
    return re.sub(r"/(?:[^\s/]+/)+", "", problem)[:200]


class Place(NamedTuple):
    """Where runs are spoiled, and the run that they are compared with."""

    folder: Path
    reference: Path
    rng: random.Random

    def trainer(self, name: str) -> faults.Trainer:
        """Give the command of the reference for another workdir."""
        return faults.Trainer(self.folder / name, _RUN)

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
    """Ask twice while a run compiles."""
    trainer, problems = place.trainer("asked-twice"), []
    for index in range(number):
        asked = (signal.SIGTERM, signal.SIGINT)[index % 2]
        problems += faults.stop_at_once(trainer, asked, place.rng)
    problems += trainer.finish() + place.compare(trainer)
    return Row(
        "a second signal while compiling",
        f"{number}",
        "python benchmarks/reliability.py",
        f"ended within {faults.LONGEST_AT_ONCE} s; the next run works",
        problems,
    )


def try_damage(place: Place, rounds: int = 3) -> Row:
    """Damage each file of the newest checkpoint in each way; train on from one in three ways."""
    trainer, problems, tried = place.trainer("damaged"), [], 0
    directory = trainer.folder / workdir.CHECKPOINTS
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
    if len(list(directory.glob("*.damaged*"))) != 3:
        problems.append("a damaged checkpoint is gone")
    return Row(
        "a damaged checkpoint",
        f"{tried} damages, to each file of one in turn; 3 runs of each script",
        "python benchmarks/reliability.py",
        "each noticed and named; the next older one taken, the damaged one kept; same to the bit",
        problems + place.compare(trainer),
    )


def try_full_disk(place: Place) -> Row:
    """Fill the disk so that metrics.csv, a figure, or a checkpoint can't be written."""
    fault, command = "a full disk", "python benchmarks/reliability.py"
    problems: list[str] = []
    leaves = {"metrics.csv": 0, "loss.png": 20_000, "checkpoints": 5_000_000}
    for written, leave in leaves.items():
        try:
            with fault_files.small_disk(place.folder / "disk", "200m"):
                trainer = place.trainer("disk/run")
                problems += _fill_up(trainer, written, leave) + place.compare(trainer)
        except PermissionError as error:
            return Row(fault, "0", command, "", [], str(error))
    promise = "one line that names the path and the room; went on and ended the same to the bit"
    return Row(fault, f"{len(leaves)}: {', '.join(leaves)}", command, promise, problems)


def _fill_up(trainer: faults.Trainer, written: str, leave: int) -> list[str]:
    started = trainer.start()
    directory = trainer.folder / workdir.CHECKPOINTS
    started.wait_until(lambda: bool(checkpoints.list_steps(directory)))
    filler = fault_files.fill(trainer.folder.parent, leave)
    status, last = started.end(), started.lines[-1]
    problems = [f"printed: {line}" for line in started.noise]
    if status != 1 or str(trainer.folder / written) not in last or " free there)" not in last:
        problems.append(f"exit status {status}: {last}")
    problems += [f"{path} is left" for path in trainer.temporaries(*faults.TEMPORARIES)]
    filler.unlink()
    return problems + trainer.finish()


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


def try_all(place: Place, options: Options) -> Iterator[Row]:
    """Try every fault, one after the other."""
    line = "an error in one line that says what and how to mend it"
    # Beside all the rest, as it takes longest, and one processor only.
    parsers = ThreadPoolExecutor(1).submit(
        try_tests, "random bytes for the parsers", "read or refused", "-m=fuzz", fuzz=options.fuzz
    )
    yield try_kills(place, options.kills)
    yield try_signals(place, options.signals)
    yield try_two_signals(place, max(2, options.signals // 4))
    yield try_damage(place)
    yield try_full_disk(place)
    yield try_tests(
        "a disk that can't be written", line, "tests/test_faults.py", "-k=read_only or grow"
    )
    yield try_tests(
        "two trainers; readers while one writes",
        "the second trainer refused; every reading succeeds",
        "tests/test_faults.py",
        "-k=second_trainer or read_at_any_time",
    )
    records = ("tests/test_records.py", "tests/test_workdir.py", "tests/test_checkpoints.py")
    yield try_tests("a wrong record or workdir", "refused by name", *records)
    wrong = "-k=another_run or another_type or another_shape or other_settings or older_version"
    yield try_tests("a wrong checkpoint", "refused by field or array", *records, wrong)
    yield try_tests(
        "numbers that are not finite",
        "the step named, nothing of it saved",
        "-k=finite",
        "tests/test_progress.py",
        "tests/test_training.py",
        "tests/test_experiment.py",
    )
    yield try_tests("bad data, damaged caches", line, "tests/test_idx.py", "tests/test_data.py")
    yield try_tests(
        "no network, or a bad one", f"{line}; a later run succeeds", "tests/test_tfds_source.py"
    )
    arguments = ("tests/test_cli.py", "tests/test_config.py", "tests/test_drawing.py")
    yield try_tests("bad arguments", line, *arguments)
    yield parsers.result()


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
    table = ["| fault | tried | command | outcome |", "|---|---|---|---|"]
    for row in rows:
        cells = (row.fault, row.tried, f"`{row.command}`", row.outcome)
        table.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    before, _, rest = _DOCUMENT.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    text = f"{before}{_BEGIN}\n" + "\n".join(table) + f"\n{_END}{after}"
    with whole_file(_DOCUMENT) as file:
        file.write(text.encode())
    print("\n".join(["", *table, "", f"wrote {_OUT} and {_DOCUMENT}"]))


def main() -> None:
    """Parse the arguments, try everything, write the table; fail if anything did."""
    with cli.one_line_errors():
        options = cli.parse(Options)
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder), Path(folder) / "reference", random.Random(options.seed))
            if problems := place.trainer("reference").finish():
                raise UserError(f"a run that nothing was done to failed: {problems[0]}")
            rows = list(try_all(place, options))
        write(rows, options)
        if failed := [row.fault for row in rows if row.problems]:
            raise UserError(f"not as promised: {', '.join(failed)}")


if __name__ == "__main__":
    main()
