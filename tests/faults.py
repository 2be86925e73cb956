"""Tools to spoil a run: kill it at a moment, send it signals, and see how it goes on.

`tests/test_faults.py` tries each fault a few times, `benchmarks/reliability.py` many times. Runs
are real ones, `scripts/train.py` in a process of its own. POSIX only.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from cvae_jax import checkpoints, workdir
from cvae_jax.models import CVAE, init_params

SCRIPTS = Path(__file__).parents[1] / "scripts"
LONGEST = 300  # seconds that anything may take before it counts as hanging
LONGEST_AT_ONCE = 5  # seconds, on a busy machine
_POLL = 0.0005

TEMPORARIES = {
    "mid-metrics": (".metrics.csv.*.tmp",),
    "mid-figure": ("samples/.*.tmp", ".loss.png.*.tmp"),
    "mid-save": ("checkpoints/.*.tmp",),
}
MOMENTS = ("starting", "compiling", "mid-epoch", *TEMPORARIES)

# What a run may print; anything else, such as a library's own error, is noise.
_OUR_LINES = re.compile(
    r"devices: |data: |going on after |compiling: |epoch \d+/\d+[:,]|results are in |\n*SIG[A-Z]+: "
    r"|error: |stopped|interrupted|nothing left to do|.* is damaged|the damaged checkpoint"
)


class Started:
    """A command that runs as a process of its own, and what it has printed so far."""

    def __init__(self, script: str, *arguments: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell's job in the background ignores Ctrl-C, and so would what it starts.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._log, path = tempfile.mkstemp()
        Path(path).unlink()  # the open file is enough, and needs no clearing away
        weakref.finalize(self, os.close, self._log)
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

    @property
    def output(self) -> str:
        # Not read(), which would move the place at which the process writes.
        text = os.pread(self._log, os.fstat(self._log).st_size, 0).decode(errors="replace")
        return text.replace("\r", "\n")

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.output.splitlines() if line.strip()]

    @property
    def noise(self) -> list[str]:
        return [line for line in self.lines if not _OUR_LINES.match(line)]

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, pattern: str) -> bool:
        """Wait until the output has a pattern; False where the process ends without it."""
        return self.wait_until(lambda: re.search(pattern, self.output) is not None)

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Look every half millisecond; False where the process ends first."""
        end = time.monotonic() + LONGEST
        while self.is_running:
            if condition():
                return True
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no end in {LONGEST} seconds; last: {self.lines[-3:]}")
            time.sleep(_POLL)
        return condition()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LONGEST)

    def end(self) -> int:
        """Wait for the end; give the exit status."""
        try:
            return self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Trainer(NamedTuple):
    """The command of a run, to be given again and again."""

    folder: Path
    arguments: tuple[object, ...]
    every: int = 1  # its --checkpoint-every

    def start(self) -> Started:
        every = ("--checkpoint-every", self.every)
        return Started("train.py", *self.arguments, *every, "--workdir", self.folder)

    def finish(self) -> list[str]:
        """Start it and let it end; say what went wrong."""
        started = self.start()
        status = started.end()
        return [f"exit status {status}: {started.lines[-3:]}"] if status else []

    def temporaries(self, *moments: str) -> list[Path]:
        patterns = [pattern for moment in moments for pattern in TEMPORARIES[moment]]
        return [path for pattern in patterns for path in self.folder.glob(pattern)]


def kill_at(trainer: Trainer, started: Started, moment: str, rng: random.Random) -> bool:
    """Kill a run with SIGKILL at a moment; tell whether that was hit.

    It was if the file half-written at that moment still lies there, or if the output says that
    it was just starting, compiling or training. A run that ends before is left alone.
    """
    if moment in TEMPORARIES:
        longest = {"mid-metrics": 0.0, "mid-figure": 0.05, "mid-save": 0.03}[moment]
        for _ in range(rng.randrange(2)):  # not always the first one
            started.wait_until(lambda: bool(trainer.temporaries(moment)))
            started.wait_until(lambda: not trainer.temporaries(moment))
        started.wait_until(lambda: bool(trainer.temporaries(moment)))
    elif moment == "starting":
        longest = 1.5
    elif moment == "compiling":
        longest = 0.2  # what an earlier run has compiled is kept
        started.wait_for("compiling: ")
    else:
        longest = 0.4
        started.wait_for(r"epoch \d+/\d+: +\d+%")
    time.sleep(rng.uniform(0, longest))
    if moment == "mid-epoch":  # which is short beside the files that are written after it
        started.wait_until(lambda: not trainer.temporaries(*TEMPORARIES))
    if not started.is_running:
        return False
    started.kill()
    left, output = trainer.temporaries(*TEMPORARIES), started.output
    if moment in TEMPORARIES:
        return bool(trainer.temporaries(moment))
    if moment == "mid-epoch":
        return not left and "results are in" not in output
    is_compiling = "compiling: " in output and not re.search(r"epoch \d+/\d+: ", output)
    return is_compiling if moment == "compiling" else "compiling: " not in output


def kill_often(
    trainer: Trainer, moments: list[str], rng: random.Random, most_tries: int = 10
) -> tuple[list[str], list[str], int]:
    """Kill a run at each of some moments, starting it again each time, then let it end.

    Returns:
        The moments hit, what went wrong, and the kills in all: a moment that was missed is
        tried again, unless the run has ended meanwhile.
    """
    hit: list[str] = []
    problems: list[str] = []
    num_kills = least_step = least_epoch = 0
    for moment in moments:
        for _ in range(most_tries):
            started = trainer.start()
            is_hit = kill_at(trainer, started, moment, rng)
            status = started.end()
            problems += _resumed_too_early(started.output, least_step, least_epoch)
            if status == -signal.SIGKILL:
                num_kills += 1
            elif status:
                problems.append(f"exit status {status}: {started.lines[-3:]}")
            else:  # it ended before the moment came
                return hit, problems, num_kills
            least_step = max([0, *checkpoints.list_steps(trainer.folder / workdir.CHECKPOINTS)])
            # While an epoch is trained, all that was to be saved before it has been.
            epochs = re.findall(r"epoch (\d+)/", started.output)
            running = max((int(epoch) for epoch in epochs), default=1)
            least_epoch = max(least_epoch, (running - 1) // trainer.every * trainer.every)
            if is_hit:
                hit.append(moment)
                break
    started = trainer.start()
    if status := started.end():
        problems.append(f"exit status {status}: {started.lines[-3:]}")
    problems += _resumed_too_early(started.output, least_step, least_epoch)
    return hit, problems, num_kills


def _resumed_too_early(output: str, least_step: int, least_epoch: int) -> list[str]:
    """Check that a run lost no checkpoint, and no more work than between two of them."""
    if "compiling: " not in output:
        return []
    found = re.search(r"going on after epoch (\d+).*, from .*/(\d+)$", output, re.MULTILINE)
    epoch, step = (int(group) for group in found.groups()) if found else (0, 0)
    if step >= least_step and epoch >= least_epoch:
        return []
    return [f"went on from step {step}, epoch {epoch}, not {least_step}, {least_epoch}"]


# Signals.


def stop_politely(
    trainer: Trainer, number: int, rng: random.Random, least: str
) -> tuple[str, str, list[str]]:
    """Send SIGTERM or SIGINT at a random time, from the reading of the data on.

    Args:
        trainer: the run.
        number: of the signal.
        rng: says when.
        least: where the run was saved before, and so has to go on; "" for nowhere.

    Returns:
        What happened ("early": there was nothing to save yet; "saved"; "over": the run ended
        before), where the run stands now, and what went wrong.
    """
    started = trainer.start()
    started.wait_for("devices: ")
    if rng.randrange(4):  # mostly in training, else in what comes before it
        started.wait_for(r"epoch \d+/\d+: +\d+%")
    time.sleep(rng.uniform(0, 1.5))
    started.process.send_signal(number)
    status, last = started.end(), started.lines[-1]
    problems = [f"printed: {line}" for line in started.noise]
    if "compiling: " in started.output and resumed_at(started) != least:
        problems.append(f"went on from {resumed_at(started)!r}, not {least!r}")
    if status == 0 and last.startswith("results are in"):
        return "over", "", problems
    if status != 128 + number:
        problems.append(f"exit status {status}: {last}")
    if where := saved_at(started):
        return "saved", where, problems
    if last not in ("stopped", "interrupted") and "nothing to save" not in last:
        problems.append(f"last line: {last}")
    return "early", least, problems


def stop_at_once(trainer: Trainer, number: int, rng: random.Random) -> list[str]:
    """Send a signal twice, while a run compiles; say what went wrong.

    Before the first dispatch a run stops too soon for a second one, how long that is depends on
    the machine: so each try comes later than the one before.
    """
    for attempt in range(15):
        started = trainer.start()
        started.wait_for("compiling: ")
        time.sleep(0.3 + 0.2 * attempt + rng.uniform(0, 0.2))
        started.process.send_signal(number)
        started.wait_for("a second one stops at once")
        time.sleep(0.25)  # sooner, it would belong to the first
        began = time.monotonic()
        started.process.send_signal(number)
        status, seconds = started.end(), time.monotonic() - began
        if not started.lines[-1].startswith("stopped"):
            problems = [] if status == 128 + number else [f"exit status {status}"]
            if seconds > LONGEST_AT_ONCE:
                problems.append(f"took {seconds:.1f} s to end")
            return problems
        # It had stopped politely before the second one came.
    return ["stopped politely each time: a second signal is not heeded"]


def saved_at(started: Started) -> str:
    """Say where a signal stopped a run, as it printed it; "" where it had not begun."""
    found = re.search(
        r"stopped and saved after (.*); the same command goes on from there", started.output
    )
    return found[1] if found else ""


def resumed_at(started: Started) -> str:
    """Say where a run went on, as it printed it; "" where it began anew."""
    found = re.search(r"going on after (.*), from ", started.output)
    return found[1] if found else ""


# Readers.


def read_while(started: Started, folder: Path) -> int:
    """Read the newest parameters again and again while a run writes; say how often."""
    run = workdir.read_config(folder)
    like = jax.eval_shape(lambda: init_params(jax.random.key(0), CVAE(run.model)))
    num_read = 0
    while started.is_running:
        newest = checkpoints.find_newest(folder / workdir.CHECKPOINTS)
        assert newest is not None
        checkpoints.restore_params(newest, like, run)
        num_read += 1
    return num_read
