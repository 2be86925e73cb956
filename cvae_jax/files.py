"""Files that are there whole or not at all, and whether a place can hold them."""

import contextlib
import fnmatch
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cvae_jax.types import ArrayLike, ConfigError, UserError

_LONGEST_REASON = 300


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name when it is complete and on the disk.

    A reader, or a process that is killed in the middle, finds the old file or the new one. A link
    of that name is replaced; what it leads to stays as it is.

    Raises:
        UserError: the folder can't be written or the disk is full; the old file stands.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink()
            raise
    except OSError as error:
        raise UserError(f"{path} can't be written: {reason(error, path)}") from error
    sync_folder(path.parent)


def write_arrays(path: Path, **arrays: ArrayLike) -> None:
    """Write arrays as an uncompressed NPZ file, whole or not at all; `numpy.load` reads it.

    Where the disk is full, NumPy's own `savez` leaves its archive open, and a traceback later.

    Raises:
        UserError: as `whole_file`.
    """
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, so that they survive a power loss."""
    # Windows and some network file systems can't, nor can who may write a folder and not read it.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have all of a folder on the disk, before it gets its name for example."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def require_room(folder: Path, num_bytes: int) -> None:
    """Fail by one OSError where a library's threads would print a hundred lines of tracebacks.

    A full disk, a quota and a limit on the size of files all show only when bytes are written.
    """
    room = folder / "room"
    room.write_bytes(bytes(num_bytes))
    room.unlink()


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete what a killed process had begun to write with `whole_file` and not finished.

    Args:
        folder: where to look; it need not exist. No other process may be writing those files.
        pattern: which files, for example "metrics.csv" or "epoch_*.png".
    """
    for path in folder.glob(".*.tmp"):
        name, _, process = path.name[1 : -len(".tmp")].rpartition(".")
        if process.isdecimal() and fnmatch.fnmatchcase(name, pattern):
            with contextlib.suppress(OSError):  # it is gone, or does no harm where it is
                path.unlink()


def reason(error: BaseException, path: Path | None = None) -> str:
    """Say in one line why something failed, and how much room there is at a path."""
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if len(line) > _LONGEST_REASON:
        line = f"{line[:_LONGEST_REASON]}..."
    return line if path is None else f"{line}{_free_space(path)}"


def cache_folder() -> Path | None:
    """Give the user's folder for what can be made again; None for a user without a home."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():  # it is to be ignored then, says the standard of that variable
        try:
            folder = Path.home() / ".cache"
        except RuntimeError:  # as in a container
            return None
    return folder / "cvae_jax" if folder.is_absolute() else None


def user_path(option: str, path: Path) -> Path:
    """Put the user's home in the place of `~`.

    Args:
        option: the name of the option that holds the path, without its dashes.
        path: what the user gave.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(
            f"--{option} {path} can't be used: there is no home of {path.parts[0]}; "
            "name the folder without '~'"
        ) from None


def require_writable(option: str, path: Path, *, folder: bool) -> None:
    """Check that a file, or a folder with files in it, can be made at a path; write nothing.

    Args:
        option: the name of the option that holds the path, without its dashes.
        path: where it shall be, `~` expanded.
        folder: whether it is a folder.

    Raises:
        ConfigError: it can't; the message says why.
    """
    try:
        obstacle = _find_obstacle(path, folder)
    except (OSError, ValueError) as error:  # such as too long a name, or a NUL in it
        obstacle = reason(error)
    if obstacle:
        raise ConfigError(
            f"--{option} {path} can't be used: {obstacle}; "
            f"name a {'folder' if folder else 'file'} that can be written"
        )


def _find_obstacle(path: Path, folder: bool) -> str | None:
    nearest = next((p for p in (path, *path.parents) if os.path.lexists(p)), path)
    if nearest == path and not folder:
        if _kind(path) != "a file":
            return f"{path} is {_kind(path)}"
        if not os.access(path, os.W_OK):
            return f"{path} can't be written"
        nearest = path.parent
    if _kind(nearest) != "a folder":
        return f"{nearest} is {_kind(nearest)}"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} can't be written"
    # Only to look at a name tells whether it is too long, by itself or with its folders.
    target = path if folder else _temporary(path)
    for name in target.relative_to(nearest).parts:
        _look(nearest / name)
    _look(target)
    return None


def _kind(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    if path.is_file():
        return "a file"
    return "a link to nothing" if path.is_symlink() and not path.exists() else "no file or folder"


def _look(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.lstat()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _free_space(path: Path) -> str:
    for place in (path, *path.parents):
        with contextlib.suppress(OSError, ValueError):
            return f" ({_size(shutil.disk_usage(place).free)} free there)"
    return ""


def _size(num_bytes: int) -> str:
    """Write a size as people do, for example "3.2 MB"."""
    size, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
