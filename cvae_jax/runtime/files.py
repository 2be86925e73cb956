"""Files that are written whole or not at all, and the paths that users name."""

import contextlib
import fnmatch
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from cvae_jax.errors import ConfigError, UserError

_LONGEST_REASON = 300  # characters


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name once it is complete and on the disk.

    A reader, or a process that is killed in between, finds the old file or the new one. A symbolic
    link of that name is replaced; its target stays as it is.

    Raises:
        UserError: the folder can't be written or the disk is full; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # report the first error, not this one
                temporary.unlink()
            raise
    except BrokenPipeError:  # of the standard output: a file on a disk raises no such error
        raise
    except OSError as error:
        raise UserError(f"{path} can't be written: {reason(error, path)}") from error
    sync_folder(path.parent)


def write_arrays(path: Path, **arrays: ArrayLike) -> None:
    """Write arrays as an uncompressed NPZ file, whole or not at all.

    NumPy's own `savez` leaves its archive open on a full disk, and prints a traceback later.

    Raises:
        UserError: as `whole_file`.
    """
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def sync_folder(path: Path) -> None:
    """Write the names in a folder to the disk, so that they survive a power loss."""
    # Windows, some network file systems and folders without read permission do not support it.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Write a folder with all its files to the disk, for example before it gets its name."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("r+b") as file:  # Windows syncs no file that is open for reading only
                os.fsync(file.fileno())


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete the temporary files that killed processes left behind in `whole_file`.

    Args:
        folder: where to look; it need not exist. No other process may be writing these files.
        pattern: the names of the files that were being written, such as "epoch_*.png".
    """
    for path in folder.glob(".*.tmp"):
        name, _, process = path.name[1 : -len(".tmp")].rpartition(".")
        if process.isdecimal() and fnmatch.fnmatchcase(name, pattern):
            with contextlib.suppress(OSError):  # already deleted, or harmless
                path.unlink()


def reason(error: BaseException, path: Path | None = None) -> str:
    """Return in one line why something failed, with the free space at `path` if it is given."""
    text = getattr(error, "strerror", None) or str(error)
    lines = (line.strip() for line in text.splitlines() if line.strip())
    line = next(lines, type(error).__name__)[:_LONGEST_REASON]
    return line if path is None else f"{line}{_free_space(path)}"


def cache_folder() -> Path | None:
    """Return the user's folder for files that can be made again; None for a user without a home."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():  # the XDG standard says to ignore it then
        try:
            folder = Path.home() / ".cache"
        except RuntimeError:  # as in a container
            return None
    return folder / "cvae_jax" if folder.is_absolute() else None


def user_path(option: str, path: Path) -> Path:
    """Return a path of the user with `~` replaced by the home folder.

    Args:
        option: the name of the option that holds the path, without its dashes.
        path: the value of the option.

    Raises:
        ConfigError: there is no such home, or the path is not valid UTF-8.
    """
    try:
        expanded = path.expanduser()
        str(expanded.resolve()).encode()  # Orbax fails on such a path, at the first checkpoint
    except (RuntimeError, UnicodeEncodeError, OSError) as error:  # OSError: no current folder
        raise ConfigError(
            f"--{option} {path} can't be used: {reason(error)}; name another path"
        ) from error
    return expanded


def _free_space(path: Path) -> str:
    for place in (path, *path.parents):
        with contextlib.suppress(OSError, ValueError):
            return f" ({shutil.disk_usage(place).free / 1e6:,.1f} MB free there)"
    return ""
