"""A run's folder: its lock, and config.json, which holds its settings."""

import contextlib
import errno
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cvae_jax.config import RunConfig
from cvae_jax.errors import CheckpointError, ConfigError, UserError
from cvae_jax.runtime.files import reason, remove_leftovers, whole_file
from cvae_jax.storage import records
from cvae_jax.storage.history import METRICS

CHECKPOINTS = "checkpoints"
SAMPLES = "samples"
LOSS = "loss.png"
EVALUATION = "evaluation.json"

_CONFIG = "config.json"
_LOCK, _HOLDER = ".lock", ".lock_holder"
_NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Hold a workdir for this process alone, and delete a killed process's half-written files.

    The folder is made if it does not exist. The operating system holds the lock and frees it
    whatever ends the process.

    Raises:
        UserError: the folder can't be written, or another process trains there.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held = FileLock(workdir / _LOCK, timeout=0).acquire()
    except Timeout as error:
        raise UserError(
            f"{workdir} is in use by {_read_holder(workdir)}; wait for it, stop it, or "
            "choose another --workdir"
        ) from error
    except OSError as error:
        raise UserError(
            f"{workdir} can't be written: {reason(error, workdir)}; choose another --workdir"
        ) from error
    with held:
        with whole_file(workdir / _HOLDER) as file:
            file.write(f"process {os.getpid()} on host {socket.gethostname()}".encode())
        for pattern in (_HOLDER, _CONFIG, METRICS, LOSS, "evaluation.*"):
            remove_leftovers(workdir, pattern)
        remove_leftovers(workdir / SAMPLES, "*")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # such as a disk that has become read-only
                (workdir / _HOLDER).unlink()


def _read_holder(workdir: Path) -> str:
    try:
        return (workdir / _HOLDER).read_text(encoding="utf-8", errors="replace")[:200]
    except OSError:
        return "another process"


def is_claimed(workdir: Path) -> bool:
    """Return whether a folder has its config.json."""
    return (workdir / _CONFIG).exists()


def claim(workdir: Path, run: RunConfig, *, is_new: bool) -> None:
    """Write config.json into a new folder, or check that the one there has the same settings.

    Args:
        workdir: the folder.
        run: what is to be trained there.
        is_new: whether the folder has no checkpoint. If it has no metrics.csv either, it holds
            no results, and its config.json is overwritten.

    Raises:
        ConfigError: settings differ; the message names each with both values.
        CheckpointError: config.json can't be read.
    """
    is_empty = is_new and not (workdir / METRICS).exists()
    if is_empty or not is_claimed(workdir):
        with whole_file(workdir / _CONFIG) as file:
            file.write(records.encode(run))
        return
    if differing := records.differences(read_config(workdir), run):
        raise ConfigError(
            f"{workdir} holds a run with other settings: {differing}; give the same ones, or "
            "another --workdir"
        )


def read_config(workdir: Path) -> RunConfig:
    """Return the settings in config.json.

    Raises:
        ConfigError: there is none, so this is no workdir.
        CheckpointError: it is damaged, or of another version.
    """
    path = workdir / _CONFIG
    try:
        return records.decode(path.read_bytes())[0]
    except (OSError, records.RecordError) as error:
        if getattr(error, "errno", None) in _NO_SUCH_PLACE:
            if (workdir / CHECKPOINTS).is_dir():
                problem = f"{path} is missing; the command that trained there restores it"
                raise CheckpointError(problem) from error
            raise ConfigError(
                f"no trained model in {workdir}; use --pretrained best, the model of this package, "
                f"or make one with: {train_command(workdir)}"
            ) from error
        raise CheckpointError(
            f"{path} can't be read: {reason(error)}; delete it, and the command that trained "
            "there restores it"
        ) from error


def train_command(workdir: Path) -> str:
    """Return the command that trains in a folder."""
    return f"cvae-jax train --workdir {shlex.quote(str(workdir))}"
