"""Signals that ask a run to stop: the first one politely, the second one at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], int | None]]:
    """Take SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM as a request to stop.

    A second signal ends the process at once, even while JAX compiles: a thread of its own
    reads the signals from a socket, as the main one runs Python's handlers only in between.
    Where several processes train together, the request is theirs all: JAX's own preemption
    service takes SIGTERM and makes them stop after the same dispatch.

    Yields:
        A function that gives the number of the signal that came, None while none has. With
        several processes each must call it equally often, once a dispatch.
    """
    if jax.process_count() > 1:
        counter = iter(range(2**63))
        yield (
            lambda: (
                signal.SIGTERM
                if multihost_utils.reached_preemption_sync_point(next(counter))
                else None
            )
        )
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python lets no other thread have signals
        return
    received: list[int] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while number := reader.recv(1)[0]:
            if number not in _SIGNALS:
                continue
            if received:
                os._exit(128 + number)
            received.append(number)
            name = signal.Signals(number).name
            print(
                f"\n{name}: saving, then stopping; a second one stops at once",
                file=sys.stderr,
                flush=True,
            )

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    old_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
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
