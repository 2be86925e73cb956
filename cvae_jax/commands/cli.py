"""The command line: choose a command, parse its options, run it, report errors in one line.

A command is a module with a dataclass of options and a function `run(options)`, and one line in
`COMMANDS`; where defaults depend on the arguments, it has a function `defaults(arguments)` too. The
module imports no JAX, so that `--help` and bad arguments are answered at once.
`run` begins with the slow imports:

    def run(options: SampleOptions) -> None:
        with many_imports():
            from cvae_jax import api
            from cvae_jax.drawing import figures, modes
        ...
"""

import contextlib
import errno
import gc
import importlib
import io
import itertools
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

import cvae_jax
from cvae_jax.errors import ConfigError, HostError, InterruptedRunError, UserError
from cvae_jax.runtime import signals

COMMANDS = {  # name: module and its dataclass of options
    "train": ("train", "TrainCommand"),
    "sample": ("sample", "SampleOptions"),
    "evaluate": ("evaluate", "EvaluateOptions"),
    "page": ("page", "PageOptions"),
    "export": ("export", "ExportOptions"),
    "data": ("data", "DataCommand"),
    "import": ("import_", "ImportOptions"),
    "train-judge": ("train_judge", "JudgeOptions"),
}
_LEAST_COLUMNS = 40  # Tyro's help never ends in a terminal of one or two


def main(command: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run a command, by default that of the first argument, with the arguments of this process."""
    with one_line_errors():
        arguments, program = sys.argv[1:] if arguments is None else arguments, None
        if "--version" in arguments:
            print(f"cvae_jax {cvae_jax.__version__}")
            return
        if command is None:
            command, arguments = _choose_command(arguments)
            program = f"cvae-jax {command}"
        module, options = _load_command(command)
        defaults = getattr(module, "defaults", None)
        values = _parse(options, arguments, program, defaults and defaults(arguments))
        if not getattr(values, "show", False):
            # A notebook's value may name a module that this environment lacks; nothing needs it.
            os.environ.pop("MPLBACKEND", None)
        with many_imports():
            from cvae_jax.runtime import compilation_cache
        compilation_cache.keep()
        module.run(values)


def _choose_command(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: cvae-jax COMMAND [OPTIONS]\n")
        for name in COMMANDS:
            print(f"  {name:12} {(_load_command(name)[1].__doc__ or '').splitlines()[0]}")
        print("\ncvae-jax COMMAND --help lists the options; --version prints the version.")
        sys.exit(0 if arguments else 2)
    if arguments[0] not in COMMANDS:
        raise ConfigError(f"there is no command {arguments[0]}; choose {', '.join(COMMANDS)}")
    return arguments[0], arguments[1:]


def _load_command(name: str) -> tuple[Any, type]:
    """Return the module of a command and its dataclass of options."""
    module = importlib.import_module(f"cvae_jax.commands.{COMMANDS[name][0]}")
    return module, getattr(module, COMMANDS[name][1])


def _parse(
    options: type, arguments: Sequence[str], program: str | None, default: Any = None
) -> Any:
    import tyro

    for option, value in itertools.pairwise(["", *arguments]):
        # An empty path would be the current folder; most often a shell variable is not set.
        if value == "" or re.fullmatch("--[a-z-]+=", value):
            raise ConfigError(
                f"{value or f'{option} '}'' is empty; give a value, or leave the option out"
            )
    if shutil.get_terminal_size().columns < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(_LEAST_COLUMNS)
    config = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(options, prog=program, args=arguments, default=default, config=config)


@contextlib.contextmanager
def many_imports() -> Iterator[None]:
    """Import without Python's garbage collector, which then ignores what was imported.

    Modules stay. A search for garbage among their million objects, during the imports and at the
    end of the process, takes a quarter of the time of a short command.
    """
    received: list[int] = []
    gc.disable()
    try:
        # A C extension would turn the KeyboardInterrupt into an error of its own.
        with signals.handled((signal.SIGINT, signal.SIGTERM), lambda n, _: received.append(n)):
            yield
    finally:
        gc.freeze()
        gc.enable()
    if received:
        raise KeyboardInterrupt(*received[:1])


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on stderr and an exit status instead of a traceback.

    Bad arguments exit with 2, a failed run with 1, Ctrl-C with 130, SIGTERM with 143. Output is
    written line by line, to a file or a pipe too.
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold characters that the output's encoding lacks.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        with signals.handled((signal.SIGTERM,), _raise_stopped):
            yield
            gc.freeze()  # or Python searches all objects of JAX and Matplotlib when it exits
    except InterruptedRunError as stop:
        _end(str(stop), stop.exit_status, at_once=True)
    except UserError as error:
        _end(f"error: {error}", error.exit_status, at_once=isinstance(error, HostError))
    except (MemoryError, RuntimeError) as error:
        # JAX has no exception of its own for it.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        options = "--batch-size, --hidden-dim, --num or --num-samples"
        _end(f"error: out of memory; try a smaller {options}, where the command has it", 1)
    except KeyboardInterrupt as stop:
        message = "stopped" if signal.SIGTERM in stop.args else "interrupted"
        _end(message, 128 + next(iter(stop.args), signal.SIGINT), at_once=True)
    except BrokenPipeError:  # the output goes to a program that has read enough, such as `head`
        _drop_output()
        sys.exit(141)  # 128 and the number of SIGPIPE, as in shells
    except OSError as error:
        if error.errno != errno.ENOSPC:  # every file of ours is reported by a UserError
            raise
        _drop_output()
        _end(f"error: the output can't be written: {error.strerror}", 1)


def _raise_stopped(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)  # so SIGTERM runs the same clean-up as Ctrl-C


def _end(message: str, status: int, *, at_once: bool = False) -> NoReturn:
    # A path in the message may hold any character, such as a line break.
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
    with contextlib.suppress(OSError):  # the reader may be gone
        print(line, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    if at_once and not signals.in_ipython():
        os._exit(status)  # sys.exit waits for what JAX computes, or crashes on it
    sys.exit(status)


def _open_closed_streams() -> None:
    """Open standard streams that a daemon, `pythonw` or `>&-` has closed; discard their output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # or a file opened later would receive what C code writes to these numbers
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115


def _drop_output() -> None:
    """Discard buffered output, on which Python would fail once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Tolerant:
    """A stream that ignores write errors, such as those of a pipe without a reader."""

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
    """Ignore errors of the output, so that a run still saves.

    Ctrl-C, for example, ends the `tee` that a run is piped to before the run itself.
    """
    with (
        contextlib.redirect_stdout(cast(TextIO, _Tolerant(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, _Tolerant(sys.stderr))),
    ):
        yield
