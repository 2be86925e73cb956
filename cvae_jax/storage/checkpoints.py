"""Orbax checkpoints, written whole or not at all, and verified by SHA-256 before they are used.

A checkpoint is a folder named by its step:
    state/        Orbax: step, parameters and optimizer state
    run.json      the settings of the run and its progress
    SHA256SUMS    the digest of every other file, written last; `sha256sum -c` reads it too
It is written under another name and renamed when all of it is on the disk. Orbax alone restores a
flipped bit silently, casts a wrong type, and has no fall-back to an older checkpoint.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from cvae_jax.config import RunConfig
from cvae_jax.errors import CheckpointError
from cvae_jax.runtime import hosts
from cvae_jax.runtime.files import reason, sync_folder, sync_tree
from cvae_jax.storage import records
from cvae_jax.storage.history import Progress

NUM_KEPT = 5
"""Checkpoints that are kept; older ones are deleted."""

_STATE, _RECORD, _SUMS = "state", "run.json", "SHA256SUMS"
_OVERHEAD = 2**18  # bytes that Orbax adds to the arrays
_LEFTOVERS = (".*.tmp", "*.orbax-checkpoint-tmp*")

_log = logging.getLogger(__name__)


def save(directory: Path, state: Mapping[str, Any], run: RunConfig, progress: Progress) -> None:
    """Write a checkpoint, then delete all but the newest `NUM_KEPT`.

    Where several processes train together, all of them call this, on a disk that they share.

    Args:
        directory: the folder of all checkpoints.
        state: a pytree of arrays; its "step" names the checkpoint.
        run: the settings.
        progress: how far the run has come.

    Raises:
        CheckpointError: it could not be written; the older ones stay.
    """
    step = int(state["step"])
    temporary = directory / f".{step}.tmp"
    try:
        with _errors_name(directory / str(step), "written"):
            if hosts.is_first():
                temporary.mkdir(parents=True)
                # A full disk fails here with one error, not with the tracebacks of Orbax's threads.
                room = temporary / "room"
                room.write_bytes(bytes(_OVERHEAD + sum(x.nbytes for x in jax.tree.leaves(state))))
                room.unlink()
            # All processes together. Orbax accepts a relative path, then fails.
            ocp.PyTreeCheckpointer().save((temporary / _STATE).resolve(), dict(state))
            if not hosts.is_first():
                return
            (temporary / _RECORD).write_bytes(records.encode(run, progress))
            (temporary / _SUMS).write_bytes(_sums(temporary))
            sync_tree(temporary)
            temporary.rename(directory / str(step))
            sync_folder(directory)
    except BaseException:
        if hosts.is_first():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in list_steps(directory)[:-NUM_KEPT]:
        shutil.rmtree(directory / str(old), ignore_errors=True)


def list_steps(directory: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, whole or damaged, oldest first."""
    with _errors_name(directory, "listed"):
        names = [path.name for path in directory.glob("*") if path.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint; None where it is whole."""
    try:
        recorded, found = (checkpoint / _SUMS).read_bytes(), _sums(checkpoint)
    except OSError as error:
        return f"{_SUMS} and the files it lists can't be read: {error.strerror}"
    if recorded != found or not found:
        lines = set(recorded.splitlines()) ^ set(found.splitlines())
        names = sorted({line[66:].decode(errors="replace") or "?" for line in lines})
        return f"{', '.join(names[:3]) or 'every file'} not as recorded in {_SUMS}"
    with contextlib.suppress(records.RecordError):  # another version's record is no damage
        step = _step(*records.decode((checkpoint / _RECORD).read_bytes()))
        if step != int(checkpoint.name):
            return f"it is the checkpoint of step {step}, renamed"
    return None


def _step(run: RunConfig, progress: Progress) -> int:
    """Return the step that a run had reached: whole epochs, then full batches."""
    whole = progress.history[-1].step if progress.history else progress.steps_before
    return whole + round(progress.num_examples / run.train.batch_size)


def find_newest(directory: Path) -> Path | None:
    """Return the newest whole checkpoint; warn of each damaged one that is newer.

    Returns:
        Its folder; None where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and every one of them is damaged.
    """
    damages = []
    for step in reversed(list_steps(directory)):
        checkpoint = directory / str(step)
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        damages.append(f"{checkpoint} is damaged ({damage})")
        _log.warning("%s; looking for an older one", damages[-1])
    if damages:
        raise CheckpointError(f"no whole checkpoint is left in {directory}: {damages[0]}")
    return None


def clean(directory: Path, newest: Path | None) -> None:
    """Delete what a killed process left half-written, and set newer damaged checkpoints aside.

    Damaged checkpoints that are newer than `newest` are renamed, never deleted. Only the process
    that holds the lock of the workdir may call this.

    Raises:
        CheckpointError: a folder can't be renamed.
    """
    for pattern in _LEFTOVERS:
        for leftover in directory.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
    for step in list_steps(directory):
        if newest is not None and step > int(newest.name):
            checkpoint = directory / str(step)
            aside = directory / f"{step}.damaged"
            number = 1
            while aside.exists():
                number += 1
                aside = directory / f"{step}.damaged-{number}"
            with _errors_name(checkpoint, f"renamed to {aside.name}"):
                checkpoint.rename(aside)
            _log.warning("the damaged checkpoint is kept as %s", aside)


def restore(
    checkpoint: Path, like: Mapping[str, Any], run: RunConfig, where: Sharding | None = None
) -> tuple[dict[str, Any], Progress]:
    """Restore a checkpoint, or some of its arrays, whatever devices it was saved from.

    Args:
        checkpoint: its folder.
        like: the parts wanted ("step", "params", "opt_state") with their structure, shapes and
            types, for example from `jax.eval_shape`.
        run: the settings that it must have been made with.
        where: the devices to put it on; None for this process's first.

    Returns:
        The parts of `like`, restored, and the progress of the run.

    Raises:
        CheckpointError: it can't be read, or is of another run; the message names what differs.
    """
    progress = require_run(checkpoint, run)
    where = where or SingleDeviceSharding(jax.local_devices()[0])
    item = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), dict(like)
    )
    path = (checkpoint / _STATE).resolve()
    with _errors_name(checkpoint, "read"), ocp.PyTreeCheckpointer() as checkpointer:
        there = checkpointer.metadata(path).item_metadata.tree
        _require_same_arrays({name: there[name] for name in item if name in there}, item)
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        return checkpointer.restore(path, args=args), progress


def require_run(checkpoint: Path, run: RunConfig) -> Progress:
    """Check that a checkpoint was made with these settings; return its progress.

    Raises:
        CheckpointError: it is of another run, or can't be read.
    """
    with _errors_name(checkpoint, "read"):
        there, progress = records.decode((checkpoint / _RECORD).read_bytes())
    if differing := records.differences(there, run):
        raise CheckpointError(f"the checkpoint {checkpoint} is of another run: {differing}")
    return progress


def _require_same_arrays(there: Any, wanted: Any) -> None:
    """Compare the arrays of a checkpoint with those wanted; Orbax would cast another type."""

    def describe(tree: Any) -> dict[str, str]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{[*leaf.shape]}"
            for path, leaf in leaves
        }

    found, expected = describe(there), describe(wanted)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{name} is {found.get(name, 'missing')}, the model's is "
                f"{expected.get(name, 'missing')}"
            )


def _sums(folder: Path) -> bytes:
    """Return the text of SHA256SUMS for the files as they are now."""
    lines = []
    for path in sorted(folder.rglob("*")):
        # Names with a dot are the system's, such as macOS's .DS_Store.
        if path.is_file() and path.name[0] != "." and path != folder / _SUMS:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return os.fsencode("".join(lines))


@contextlib.contextmanager
def _errors_name(path: Path, done: str) -> Iterator[None]:
    """Raise a `CheckpointError` for any error, since Orbax has no exception type of its own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            raise  # Orbax waited for a process that has ended
        why = reason(error, path.parent if done == "written" else None)
        raise CheckpointError(f"the checkpoint {path} can't be {done}: {why}") from error
