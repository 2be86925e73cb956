"""What every script shares: arguments from a dataclass, and errors in one line.

JAX and Tyro are imported in the functions only: until `one_line_errors` begins, Ctrl-C still ends
in a traceback, and so it has to begin at once.
"""

import contextlib
import gc
import io
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TextIO, TypeVar, cast

Options = TypeVar("Options")

# 128 and the signal's number, as shells have it.
_EXIT_INTERRUPTED = 130  # SIGINT
_EXIT_BROKEN_PIPE = 141  # SIGPIPE
_EXIT_STOPPED = 143  # SIGTERM


class _Stopped(KeyboardInterrupt):
    """SIGTERM came; all that cleans up after Ctrl-C does so after this as well."""


def parse(options: type[Options], arguments: Sequence[str] | None = None) -> Options:
    """Make an object of a dataclass from the command line; the docstrings are the help.

    Raises:
        ConfigError: an argument is unknown or can't be used; Tyro's box made one line.
        SystemExit: help was asked for and printed.
    """
    import tyro

    from cvae_jax.types import ConfigError

    arguments = sys.argv[1:] if arguments is None else arguments
    for option, value in itertools.pairwise(["", *arguments]):
        # As a path it would be the current folder, and a variable is meant that is not set.
        if value == "" or re.fullmatch("--[a-z-]+=", value):
            raise ConfigError(
                f"{value or f'{option} '}'' is empty; give a value, or leave the option out"
            )
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(options, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(message.getvalue())) from None


def _one_line(box: str) -> str:
    """Take the message, and what Tyro suggests instead, out of the box that it draws."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colours
    lines = [line.strip("│ ") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    blocks = itertools.groupby(lines, key=lambda line: bool(line) and set(line) <= {"─", "-"})
    said = [" ".join(block).strip() for is_rule, block in blocks if not is_rule]
    if "╭" not in box:  # where the output can't show the box, its title is a block of its own
        said = said[1:]
    wanted = [block for block in said if not block.startswith(("For full", "Argument helptext"))]
    line = re.sub(r"\s+", " ", "; ".join(wanted))
    # An option that may be left out has two types; only the one that a user can mean is named.
    line = re.sub(r"no type matching \{None\}\|(\w+) .* from \[(.*?)\]\. .*", r"\2 is no \1", line)
    return f"{line} (see --help)"


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process as a user expects: one line on stderr and an exit status, no traceback.

    Bad arguments exit with 2, a failed run with 1, Ctrl-C with 130, SIGTERM with 143. What is
    printed is there at once, in a file or a pipe too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold what the output's encoding does not.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        with _sigterm_like_control_c():
            from cvae_jax.types import InterruptedRunError, PartedError, UserError

            try:
                yield
            except InterruptedRunError as stop:
                _leave(str(stop), stop.exit_status)
            except PartedError as error:
                _leave(f"error: {error}", error.exit_status)
            except UserError as error:
                _stop(f"error: {error}", error.exit_status)
            gc.freeze()  # at its end Python would look through all that JAX and Matplotlib hold
    except (MemoryError, RuntimeError) as error:
        # JAX has no type of its own for it, and importing JAX just to look would slow --help.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        options = "--batch-size, --hidden-dim, --num or --num-samples"
        _stop(f"error: out of memory; try a smaller {options}, where this script has it", 1)
    except _Stopped:
        _leave("stopped", _EXIT_STOPPED)
    except KeyboardInterrupt:
        _leave("interrupted", _EXIT_INTERRUPTED)
    except BrokenPipeError:  # the output goes to a program that has read enough, such as `head`
        _drop_output()
        sys.exit(_EXIT_BROKEN_PIPE)
    except OSError as error:
        if not _output_fails():
            raise
        _drop_output()
        _stop(f"error: the standard output can't be written: {error.strerror}", 1)


@contextlib.contextmanager
def many_imports() -> Iterator[None]:
    """Import without Python's garbage collector, then have it leave alone what was imported.

    Modules stay. To look for garbage among their million objects, while they are made and once
    more at the end of the process, takes a quarter of the time of a short script.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _sigterm_like_control_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread have signals
        return

    def stop(*_: Any) -> NoReturn:
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _output_fails() -> bool:
    try:
        print(flush=True)  # Python forgets what it could not write, so a flush alone may succeed
    except OSError:
        return True
    return False


def _drop_output() -> None:
    """Let what is still to be written go nowhere, or Python fails once more at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(message: str, status: int) -> NoReturn:
    """End at once: Python's own way out waits for what JAX computes, or crashes on it."""
    _say(message)
    os._exit(status)


def _stop(message: str, status: int) -> NoReturn:
    _say(message)
    sys.exit(status)


def _say(message: str) -> None:
    # A path in it may hold anything, such as the end of a line.
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
    with contextlib.suppress(OSError):  # whoever read it may be gone
        print(line, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


class _Tolerant:
    """A stream that goes on when nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Let work go on, and be saved, though its output can't be written.

    Ctrl-C, for one, ends the `tee` that a run is piped to before the run itself.
    """
    with (
        contextlib.redirect_stdout(cast(TextIO, _Tolerant(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, _Tolerant(sys.stderr))),
    ):
        yield
