"""Signals that ask a run to stop: the first one politely, the second one at once."""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_REQUEST_SECONDS = 0.2


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], int | None]]:
    """Take SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM as a request to stop.

    A second signal ends the process at once, even while JAX compiles: a thread of its own
    reads the signals from a socket, as the main one runs Python's handlers only in between.
    One that comes within a fifth of a second belongs to the first: what stops a whole group of
    processes often sends a signal to each of them as well. A signal that is ignored, as in a
    shell's job in the background, stays so.
    Where several processes train together, the request is theirs all: JAX's own preemption
    service takes SIGTERM, which Ctrl-C is turned into, and makes them stop after the same dispatch.
    Only a second Ctrl-C then ends a process at once.

    Yields:
        A function that gives the number of the signal that came, None while none has. With
        several processes each must call it equally often, once a dispatch.
    """
    if jax.process_count() > 1:
        counter = itertools.count()

        def is_reached() -> int | None:
            reached = multihost_utils.reached_preemption_sync_point(next(counter))
            return signal.SIGTERM if reached else None

        with _control_c_like_sigterm():
            yield is_reached
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python lets no other thread have signals
        return
    received: list[int] = []
    taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        first = 0.0
        while number := reader.recv(1)[0]:
            if number not in taken:
                continue
            if not received:
                first = time.monotonic()
                received.append(number)
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
        yield lambda: received[0] if received else None
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_descriptor)
        writer.send(b"\0")  # no signal: the listener ends
        listener.join()
        reader.close()
        writer.close()


@contextlib.contextmanager
def _control_c_like_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def pass_on(*_: object) -> None:
        if not first:
            first.append(time.monotonic())
            signal.raise_signal(signal.SIGTERM)
        elif time.monotonic() - first[0] > _ONE_REQUEST_SECONDS:
            os._exit(128 + signal.SIGINT)

    signal.signal(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
