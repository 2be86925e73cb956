"""Signals that stop a run: the first one asks it to save, the second one ends it at once."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_Handler = Callable[[int, FrameType | None], object] | signal.Handlers

_ONE_REQUEST_SECONDS = 0.2


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], int | None]]:
    """Take SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM as a request to stop.

    A second signal ends the process at once; in IPython it raises KeyboardInterrupt. One that
    comes within a fifth of a second belongs to the first: a program that stops a whole group of
    processes often sends a signal to each of them as well. Ignored signals, as in a shell's job in
    the background, stay ignored. Outside the main thread Python allows no handlers, and nothing is
    watched.

    Where several processes train together, Ctrl-C is passed on as SIGTERM. JAX's preemption
    service takes that, and stops all processes after the same dispatch.

    Yields:
        A function that returns the number of the signal that came, or None. With several
        processes each must call it equally often, once for each dispatch.
    """
    import jax  # late: the command line imports this module and is quick without JAX
    from jax.experimental import multihost_utils

    is_alone = jax.process_count() == 1
    numbers = (signal.SIGINT, signal.SIGTERM) if is_alone else (signal.SIGINT,)
    received: list[int] = []
    first_time = 0.0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first_time
        if received:
            if time.monotonic() - first_time > _ONE_REQUEST_SECONDS:
                if in_ipython():
                    raise KeyboardInterrupt
                os._exit(128 + number)
            return
        first_time = time.monotonic()
        received.append(number)
        if not is_alone:
            os.kill(os.getpid(), signal.SIGTERM)
        name = signal.Signals(number).name
        # The reader may be gone, or the handler may interrupt a write to the same stream.
        with contextlib.suppress(OSError, RuntimeError):
            print(f"\n{name}: saving, then stopping; a second one stops at once", file=sys.stderr)

    dispatches = itertools.count()
    is_agreed = False

    def find_signal() -> int | None:
        nonlocal is_agreed
        if is_alone:
            return received[0] if received else None
        if not is_agreed:
            is_agreed = multihost_utils.reached_preemption_sync_point(next(dispatches))
        return (received or [signal.SIGTERM])[0] if is_agreed else None

    with handled(numbers, handle):
        yield find_signal


def in_ipython() -> bool:
    """Return whether IPython runs this code, where ending the process would end the notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


@contextlib.contextmanager
def handled(numbers: tuple[int, ...], handler: _Handler) -> Iterator[None]:
    """Handle these signals, except ignored ones; do nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)  # None: a handler that Python did not set
