"""Start real runs, kill them, send them signals, and follow what they print.

`tests/test_stopping.py` and `tests/test_faults.py` try each fault once or a few times,
`benchmarks/reliability.py` many times. POSIX only.
"""

import functools
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cvae_jax.storage import checkpoints, workdir

SCRIPTS = Path(__file__).parents[1] / "scripts"
LONGEST = 120
"""Seconds after which a process counts as hanging."""
_POLL_SECONDS = 0.0005

TEMPORARIES = {
    "mid-metrics": (".metrics.csv.*.tmp",),
    "mid-figure": ("samples/.*.tmp", ".loss.png.*.tmp"),
    "mid-save": ("checkpoints/.*.tmp",),
}
MOMENTS = ("starting", "compiling", "mid-epoch", *TEMPORARIES)

# What a run may print; anything else, such as a library's own error, is noise.
_OUR_LINES = re.compile(
    r"devices: |data: |resuming after |compiling: |epoch \d+/\d+[:,]|results are in |SIG[A-Z]+: "
    r"|error: |stopped|interrupted|nothing left to do|.* is damaged|the damaged checkpoint"
)


class Started:
    """A command that runs as a process of its own, and what it has printed so far."""

    def __init__(
        self,
        script: str | Path,
        *arguments: object,
        redirect: str = "",
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start it.

        Args:
            script: a file in scripts/, or a path.
            *arguments: its arguments.
            redirect: what a shell does with its output, such as ">&-".
            environ: more variables of its environment.
        """
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell's job in the background ignores Ctrl-C, and so would what it starts.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._log, path = tempfile.mkstemp()
        Path(path).unlink()  # the open file is enough, and needs no clearing away
        weakref.finalize(self, os.close, self._log)
        command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
        self.process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" {redirect}', "sh", *command] if redirect else command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environ},
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
    def saved_at(self) -> str:
        """Where a signal stopped the run, as it printed it; "" where it had not begun."""
        found = re.search(r"stopped and saved after (.*); the same command resumes", self.output)
        return found[1] if found else ""

    @property
    def resumed_at(self) -> str:
        """Where the run went on, as it printed it; "" where it began anew."""
        found = re.search(r"resuming after (.*), from ", self.output)
        return found[1] if found else ""

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, pattern: str) -> bool:
        """Wait until the output has a pattern; return False where the process ends without it."""
        return self.wait_until(lambda: re.search(pattern, self.output) is not None)

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; return False where the process ends first."""
        end = time.monotonic() + LONGEST
        while self.is_running:
            if condition():
                return True
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no end in {LONGEST} seconds; last: {self.lines[-3:]}")
            time.sleep(_POLL_SECONDS)
        return condition()

    def wait_for_training(self) -> bool:
        """Wait until the run has trained on a batch."""
        return self.wait_for(r"epoch \d+/\d+: +\d+%")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LONGEST)

    def end(self) -> int:
        """Wait for the end; return the exit status."""
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

    @property
    def checkpoints(self) -> Path:
        return self.folder / workdir.CHECKPOINTS

    def start(self, redirect: str = "") -> Started:
        every = ("--checkpoint-every", self.every, "--workdir", self.folder)
        return Started("train.py", *self.arguments, *every, redirect=redirect)

    def start_and_wait(self) -> Started:
        """Start the run and wait for its first checkpoint."""
        started = self.start()
        started.wait_until(lambda: bool(checkpoints.list_steps(self.checkpoints)))
        return started

    def finish(self) -> list[str]:
        """Start the run and let it end; return what went wrong."""
        started = self.start()
        status = started.end()
        return [f"exit status {status}: {started.lines[-3:]}"] if status else []

    def temporaries(self, *moments: str) -> list[Path]:
        patterns = [pattern for moment in moments for pattern in TEMPORARIES[moment]]
        return [path for pattern in patterns for path in self.folder.glob(pattern)]


# A small run, for the tests.

EPOCHS = 4
_FOLDER = tempfile.TemporaryDirectory(prefix="cvae_jax-faults-")


@functools.cache
def small_run() -> tuple[object, ...]:
    """Write a data set of noise; return the arguments of a run on it.

    The data set streams, batch by batch, so that there are a hundred moments within an epoch at
    which the run can be stopped.
    """
    folder = Path(_FOLDER.name, "noise")
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, size in (("train", 800), ("t10k", 100)):
        image = generator.integers(256, size=(size, 28, 28), dtype=np.uint8)
        label = np.arange(size, dtype=np.uint8) % 10
        for kind, array in (("images", image), ("labels", label)):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            path = folder / f"{part}-{kind}-idx{array.ndim}-ubyte"
            path.write_bytes(header + array.tobytes())
    source = ("--source", "idx", "--data-dir", folder, "--data-memory", 1e-5)
    model = ("--hidden-dim", 16, "--latent-dim", 4, "--batch-size", 8)
    return (*source, *model, "--epochs", EPOCHS, "--sample-every", 2)


@functools.cache
def small_reference() -> Path:
    """Return the workdir of that run when nothing has happened to it."""
    trainer = Trainer(Path(_FOLDER.name, "reference"), small_run())
    assert trainer.finish() == []
    return trainer.folder


# SIGKILL.


def kill_at(trainer: Trainer, started: Started, moment: str, rng: random.Random) -> bool:
    """Kill a run with SIGKILL at a moment; return whether that moment was hit.

    It was if the file half-written at that moment is left behind, or if the output says that the
    run was just starting, compiling or training. A run that ends before is left alone.
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
        started.wait_for_training()
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
        The moments hit, what went wrong, and the number of kills: a moment that was missed is
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
            least_step = max([0, *checkpoints.list_steps(trainer.checkpoints)])
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
    found = re.search(r"resuming after epoch (\d+).*, from .*/(\d+)$", output, re.MULTILINE)
    epoch, step = (int(group) for group in found.groups()) if found else (0, 0)
    if step >= least_step and epoch >= least_epoch:
        return []
    return [f"went on from step {step}, epoch {epoch}, not {least_step}, {least_epoch}"]


# SIGTERM and SIGINT.


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
        started.wait_for_training()
    time.sleep(rng.uniform(0, 1.5))
    started.process.send_signal(number)
    status, last = started.end(), started.lines[-1]
    problems = [f"printed: {line}" for line in started.noise]
    if "compiling: " in started.output and started.resumed_at != least:
        problems.append(f"went on from {started.resumed_at!r}, not {least!r}")
    if status == 0 and last.startswith("results are in"):
        return "over", "", problems
    if status != 128 + number:
        problems.append(f"exit status {status}: {last}")
    if where := started.saved_at:
        return "saved", where, problems
    if last not in ("stopped", "interrupted") and "nothing to save" not in last:
        problems.append(f"last line: {last}")
    return "early", least, problems


def stop_twice(trainer: Trainer, number: int, rng: random.Random) -> tuple[float, list[str]]:
    """Send a signal twice while a run compiles; return the seconds to its end, and problems.

    Python runs no handler while XLA compiles. Then the two count as one, and the run is saved.
    """
    started = trainer.start()
    started.wait_for("compiling: ")
    time.sleep(rng.uniform(0, 0.5))
    began = time.monotonic()
    started.process.send_signal(number)
    time.sleep(0.3)  # sooner, it would belong to the first
    started.process.send_signal(number)
    status = started.end()
    problems = [] if status == 128 + number else [f"exit status {status}: {started.lines[-1]}"]
    return time.monotonic() - began, problems + [f"printed: {line}" for line in started.noise]
