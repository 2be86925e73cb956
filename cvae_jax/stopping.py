"""Signals that ask a run to stop: the first one politely, the second one at once."""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.experimental import multihost_utils

_ONE_REQUEST_SECONDS = 0.2


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], int | None]]:
    """Take SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM as a request to stop.

    A second signal ends the process at once, even while JAX compiles. One that comes within a
    fifth of a second belongs to the first: what stops a whole group of processes often sends a
    signal to each of them as well. A signal that is ignored, as in a shell's job in the
    background, stays so.
    Where several processes train together, the request is theirs all: JAX's own preemption
    service takes SIGTERM, which Ctrl-C is passed on as, and makes them stop after the same
    dispatch. Only a second Ctrl-C then ends a process at once.

    Yields:
        A function that gives the number of the signal that came, None while none has. With
        several processes each must call it equally often, once a dispatch.
    """
    received: list[int] = []
    if jax.process_count() == 1:
        with _listen((signal.SIGINT, signal.SIGTERM), received.append):
            yield lambda: received[0] if received else None
        return

    def pass_on(number: int) -> None:
        received.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    dispatches, is_reached = itertools.count(), False

    def find_signal() -> int | None:
        nonlocal is_reached
        if not is_reached:
            is_reached = multihost_utils.reached_preemption_sync_point(next(dispatches))
        return next(iter(received), signal.SIGTERM) if is_reached else None

    with _listen((signal.SIGINT,), pass_on):
        yield find_signal


@contextlib.contextmanager
def _listen(signals: Iterable[int], ask: Callable[[int], object]) -> Iterator[None]:
    """Ask once, at the first of these signals; the second one ends the process.

    A thread of its own reads them from a socket, as the main one runs Python's handlers only
    where it is not in C: not while JAX compiles, nor while it waits for a device.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread have signals
        return
    taken = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        first = None
        while number := reader.recv(1)[0]:
            if number not in taken:
                continue
            if first is None:
                first = time.monotonic()
                ask(number)
                name = signal.Signals(number).name
                with contextlib.suppress(OSError):  # whoever read it may be gone
                    print(
                        f"\n{name}: saving, then stopping; a second one stops at once",
                        file=sys.stderr,
                        flush=True,
                    )
            elif time.monotonic() - first > _ONE_REQUEST_SECONDS:
                os._exit(128 + number)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    old_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in taken}
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_descriptor)
        writer.send(b"\0")  # no signal: the listener ends
        listener.join()
        reader.close()
        writer.close()
