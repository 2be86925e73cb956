"""What every script shares: arguments from a dataclass, and errors in one line."""

import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

import tyro

from cvae_jax.types import ConfigError, InterruptedRunError, UserError

Options = TypeVar("Options")

_EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells have it


def parse(options: type[Options], arguments: Sequence[str] | None = None) -> Options:
    """Make an object of a dataclass from the command line; the docstrings are the help.

    Raises:
        ConfigError: an argument is unknown or can't be used; Tyro's box made one line.
        SystemExit: help was asked for and printed.
    """
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

    Bad arguments exit with 2, a failed run with 1, Ctrl-C with 130. What is printed is there at
    once, in a file or a pipe too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        yield
    except UserError as error:
        _stop(f"error: {error}", error.exit_status)
    except (MemoryError, RuntimeError) as error:
        # JAX has no type of its own for it, and importing JAX just to look would slow --help.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _stop("error: out of memory; try a smaller --batch-size, --hidden-dim or --num", 1)
    except KeyboardInterrupt:
        _stop("interrupted", InterruptedRunError.exit_status)
    except BrokenPipeError:  # the output goes to a program that has read enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_EXIT_BROKEN_PIPE)


def _stop(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)
