"""Compare the files of runs, and spoil them: damaged checkpoints, full disks, read-only disks.

POSIX only; the disks need Linux and root.
"""

import contextlib
import dataclasses
import functools
import os
import random
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from cvae_jax.models import build_model
from cvae_jax.storage import checkpoints, workdir
from cvae_jax.storage.history import Progress
from cvae_jax.training.step import init_state
from tests.helpers import read_metrics


def restore(folder: Path) -> tuple[dict[str, Any], Progress]:
    """Restore the newest whole checkpoint of a workdir."""
    run = workdir.read_config(folder)
    model, optimizer = build_model(run.model), optax.adam(run.train.learning_rate)
    init = functools.partial(init_state, model=model, optimizer=optimizer)
    like = jax.eval_shape(init, jax.random.key(0))
    newest = checkpoints.find_newest(folder / workdir.CHECKPOINTS)
    assert newest is not None
    return checkpoints.restore(newest, like._asdict(), run)


def differences(folder: Path, reference: Path) -> list[str]:
    """Return in what a run differs from one that was left alone, but for the seconds it took."""
    (state, progress), (expected, expected_progress) = restore(folder), restore(reference)
    found = []
    leaves = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True)
    for (path, leaf), other in leaves:
        if np.asarray(leaf).tobytes() != np.asarray(other).tobytes() or leaf.dtype != other.dtype:
            found.append(f"state{jax.tree_util.keystr(path)}")
    if _without_seconds(progress) != _without_seconds(expected_progress):
        found.append("progress")
    if read_metrics(folder) != read_metrics(reference):
        found.append("metrics.csv")
    names = {path.name for place in (folder, reference) for path in place.glob("samples/*")}
    for name in ["loss.png", *(f"samples/{name}" for name in sorted(names))]:
        if _bytes(folder / name) != _bytes(reference / name):
            found.append(name)
    found += [f"{path} is left" for path in sorted(folder.rglob("*")) if ".tmp" in path.name]
    steps = checkpoints.list_steps(folder / workdir.CHECKPOINTS)
    if len(steps) > checkpoints.NUM_KEPT:
        found.append(f"{len(steps)} checkpoints")
    return found + [
        f"checkpoint {step}: {damage}"
        for step in steps
        if (damage := checkpoints.find_damage(folder / workdir.CHECKPOINTS / str(step)))
    ]


def _without_seconds(progress: Progress) -> Progress:
    history = tuple(row._replace(seconds=0) for row in progress.history)
    return dataclasses.replace(progress, history=history)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


# Damage on the disk.


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut short": lambda path, rng: os.truncate(path, rng.randrange(path.stat().st_size)),
    "emptied": lambda path, rng: os.truncate(path, 0),
    "deleted": lambda path, rng: path.unlink(),
    "first byte": lambda path, rng: _flip(path, 0),
    "last byte": lambda path, rng: _flip(path, -1),
    "random byte": lambda path, rng: _flip(path, rng.randrange(path.stat().st_size)),
}


def damage_each(checkpoint: Path, rng: random.Random) -> Iterator[str]:
    """Damage each file of a checkpoint in each way, one after the other, and mend it again."""
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for name, damage in DAMAGES.items():
            damage(path, rng)
            try:
                yield f"{path.relative_to(checkpoint)}: {name}"
            finally:
                path.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    """Swap two folders, as `mv one x; mv other one; mv x other` does."""
    between = one.with_name("x")
    one.rename(between)
    other.rename(one)
    between.rename(other)


# Disks that are full, or can't be written.


def _mount(*arguments: object) -> bool:
    try:
        done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a file system in memory.

    Raises:
        PermissionError: only root may, and not everywhere.
    """
    folder.mkdir(exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
        raise PermissionError("no file system can be mounted")
    try:
        yield
    finally:
        # Lazily, or a process that still writes there would keep it for ever.
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nothing more be written in a folder, as if its disk had been mounted read-only.

    Raises:
        PermissionError: only root may, and not everywhere.
    """
    # Over the folder itself, as its lock stays open for writing and the kernel minds that.
    if not _mount("--bind", folder, folder):
        raise PermissionError("no file system can be mounted")
    try:
        # It is refused while a file is open for writing there, which is soon over.
        end = time.monotonic() + 20
        while not _mount("-o", "remount,bind,ro", folder):
            if time.monotonic() > end:
                raise PermissionError("no file system can be made read-only")
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def limit_files(process: int, size: int) -> None:
    """Let a process write no file that is larger (Linux)."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, size))


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the disk of a folder but for some bytes; return the file to delete."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(path, max(0, path.stat().st_size - leave))
    return path
