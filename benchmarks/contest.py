"""Taking turns: each contestant in a process of its own, which sits idle while others run."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

from cvae_jax import cli
from cvae_jax.types import UserError

# Else the first of them that uses JAX takes three quarters of an accelerator's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")

_PATIENCE_S = 5


class Timed(NamedTuple):
    """One piece of work."""

    seconds: float
    loss: float | None  # mean loss in nats per image, where anything was trained


Work = Callable[[], Timed]


def timed(train_epoch: Callable[[], float | None]) -> Work:
    """Time a function on the wall clock; what it gives is the loss."""

    def work() -> Timed:
        started = time.perf_counter()
        loss = train_epoch()
        return Timed(time.perf_counter() - started, loss)

    return work


def serve(prepare: Callable[[], Work], connection: Connection) -> None:
    """Do the work once each time a message comes, and answer with what it took."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    with cli.one_line_errors(), contextlib.suppress(EOFError):
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
        name: what to call it in an error.
        prepare: makes its work, in that process.
        losses: each piece of work adds its loss, if it has one.

    Yields:
        A function that has the work done over there and gives its seconds.
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
        here.close()  # which ends one that is idle
        process.join(_PATIENCE_S)
        process.terminate()
        process.join()


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure one after the other, again and again, so that a change of the machine meets all.

    Args:
        sides: each does its work once and gives the seconds it took. It is called once more
            beforehand, uncounted, to compile and to fill caches.
        rounds: calls of each that count.
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
