"""Contestants that take turns, each in a process of its own that is idle while others run."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import matplotlib

from cvae_jax.commands.cli import one_line_errors
from cvae_jax.errors import UserError

# Without it, the first of them that uses JAX takes three quarters of an accelerator's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")

KEEP_NOTHING = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
"""The environment of a command that compiles everything anew."""

_ROOT = Path(__file__).resolve().parents[1]
_PATIENCE_S = 5


class Timed(NamedTuple):
    """One piece of work."""

    seconds: float
    loss: float | None  # mean loss in nats per image, where anything was trained


Work = Callable[[], Timed]


def timed(train_epoch: Callable[[], float | None]) -> Work:
    """Return the work of calling a function, which returns a loss, timed on the wall clock."""

    def work() -> Timed:
        started = time.perf_counter()
        loss = train_epoch()
        return Timed(time.perf_counter() - started, loss)

    return work


def serve(prepare: Callable[[], Work], connection: Connection) -> None:
    """Do the work once for each message that comes, and send back its time and loss."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and ends this process
    with one_line_errors(), contextlib.suppress(EOFError):
        work = prepare()
        while True:
            connection.recv()
            connection.send(work())


@contextlib.contextmanager
def contestant(
    name: str, prepare: Callable[[], Work], losses: list[float]
) -> Iterator[Callable[[], float]]:
    """Start a process for one contestant, and end it on leaving.

    Args:
        name: of the contestant, for errors.
        prepare: prepares its work, in that process.
        losses: each piece of work adds its loss, if it has one.

    Yields:
        A function that has the work done once in that process, and returns its seconds.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(prepare, there), daemon=True)
    process.start()
    there.close()

    def have_done() -> float:
        try:
            here.send("go")
            done: Timed = here.recv()
        except (EOFError, OSError):
            raise UserError(f"the process of {name} ended before its work did") from None
        if done.loss is not None:
            losses.append(done.loss)
        return done.seconds

    try:
        yield have_done
    finally:
        here.close()  # ends an idle process
        process.join(_PATIENCE_S)
        process.terminate()
        process.join()


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure all sides in turns, so that a change of the machine's speed affects all of them.

    Args:
        sides: each does its work once and returns its seconds. It is called once more at the
            start, uncounted, to compile and to fill caches.
        rounds: calls of each that count.

    Returns:
        The seconds of each round, by the name of the side.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        print(f"round {turn}/{rounds}" if turn else "warming up", flush=True)
        for name, side in sides.items():
            value = side()
            print(f"  {name}: {value:.3f} s", flush=True)
            if turn:
                seconds[name].append(value)
    return seconds


def compete(
    sides: Mapping[str, Callable[[], Work]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Start a process for each side and let them take turns.

    Args:
        sides: prepares the work of each, in its process.
        rounds: pieces of work of each that count.

    Returns:
        The seconds of each side, and the losses of all that it trained, the warm-up included.
    """
    losses: dict[str, list[float]] = {name: [] for name in sides}
    with contextlib.ExitStack() as stack:
        contestants = {
            name: stack.enter_context(contestant(name, prepare, losses[name]))
            for name, prepare in sides.items()
        }
        return take_turns(contestants, rounds), losses


def free_address() -> str:
    """Return an address of this machine, host:port, at which nobody listens yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def run_python(arguments: Sequence[str], **environ: str) -> float:
    """Run Python with these arguments in the root of the repository; return its seconds.

    Args:
        arguments: the script's path and its own arguments.
        **environ: more variables of its environment.

    Raises:
        UserError: it failed.
    """
    started = time.perf_counter()
    with _start_python(arguments, environ) as process:
        _, errors = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise _failed(arguments, errors)
    return seconds


def run_python_until(pattern: bytes, arguments: Sequence[str], **environ: str) -> float:
    """Run Python likewise until its error output matches a pattern, then kill it.

    Returns:
        The seconds from its start to the match.

    Raises:
        UserError: it ended before.
    """
    started = time.perf_counter()
    errors = b""
    with _start_python(arguments, environ) as process:
        assert process.stderr is not None
        while not re.search(pattern, errors):
            new = os.read(process.stderr.fileno(), 65536)
            if not new:
                raise _failed(arguments, errors)
            errors += new
        seconds = time.perf_counter() - started
        process.kill()
    return seconds


def _start_python(arguments: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Pictures go into files, so no window is opened. Matplotlib's list of fonts is shared, wherever
    # the other caches are.
    common = {
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
        "PYTHONPATH": str(_ROOT),  # however the package is installed
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env={**os.environ, **common, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _failed(arguments: Sequence[str], errors: bytes) -> UserError:
    last_line = (errors.decode(errors="replace").strip() or "no message").splitlines()[-1]
    return UserError(f"{' '.join(arguments[:2])} failed: {last_line}")
