"""The source "idx": four files in the format of the MNIST family.

Format: two zero bytes, the type (0x08 is unsigned byte), the number of axes, each axis as a
big-endian 32-bit integer, the values (LeCun, Cortes & Burges, the MNIST database).
"""

import gzip
import hashlib
import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from cvae_jax.config import DataOptions
from cvae_jax.data.dataset import Dataset, Splits, check_splits
from cvae_jax.errors import ConfigError, DataError
from cvae_jax.runtime.files import reason

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_BLOCK = 1 << 20
_MOST_BYTES = 1 << 33  # ten times the largest of the well-known data sets of this kind


def load(name: str, options: DataOptions) -> Splits:
    """Load the four files of a folder; the data set may have any name.

    Raises:
        ConfigError: there is no such folder.
        DataError: as `load_directory`.
    """
    data_dir = options.data_dir
    if data_dir is None or not data_dir.is_dir():
        raise ConfigError(
            f"{name} can't be loaded from --data-dir {data_dir}, which does not exist; --source "
            "idx needs the folder of the four IDX files"
        )
    return load_directory(data_dir)


def load_directory(directory: Path, digests: Mapping[str, str] | None = None) -> Splits:
    """Read the files {train, t10k}-{images, labels}, each plain, .gz or .xz.

    The classes are 0 to the largest training label.

    Args:
        directory: the folder of the files.
        digests: the SHA-256 of each unpacked file, by "train-images" and so on.

    Raises:
        DataError: a file is missing, doubled or damaged, or the four don't fit together.
    """

    def read_part(part: str, num_axes: int) -> np.ndarray:
        return read(_find(directory, part), num_axes, digests[part] if digests else None)

    def read_split(split: str) -> Dataset:
        image, label = read_part(f"{split}-images", 3), read_part(f"{split}-labels", 1)
        return Dataset(image[..., np.newaxis], label.astype(np.int32))

    train, test = read_split("train"), read_split("t10k")
    num_classes = int(np.max(train.label, initial=0)) + 1
    return check_splits(Splits(train, test, num_classes), f"the data set in {directory}")


def read(path: Path, num_axes: int, sha256: str | None = None) -> np.ndarray:
    """Read the array of uint8 in a file that is plain or, by the end of its name, .gz or .xz.

    Unpacking stops soon after the size in the header, so that a small file can't fill the memory.

    Args:
        path: the file.
        num_axes: the number of axes that it must have.
        sha256: the digest that it must have when unpacked.

    Raises:
        DataError: the file can't be read, or is damaged or of another kind.
    """
    return read_from(path, path, num_axes, sha256)


def read_from(
    packed: Path | IO[bytes], path: Path, num_axes: int, sha256: str | None = None
) -> np.ndarray:
    """Read as `read` does, from a file or a member of an archive that is already open.

    Args:
        packed: the file, or its packed bytes.
        path: its name in errors, whose ending says how it is packed.
        num_axes: as of `read`.
        sha256: as of `read`.
    """
    magic = bytes([0, 0, 8, num_axes])
    try:
        with _OPENERS.get(path.suffix, open)(packed, "rb") as file:
            header = file.read(4 + 4 * num_axes)
            if header[:4] != magic or len(header) < 4 + 4 * num_axes:
                raise DataError(
                    f"{path} is not an IDX file of bytes with {num_axes} axes: it starts with "
                    f"{header[:4].hex() or 'nothing'}, expected {magic.hex()}"
                )
            shape = np.frombuffer(header, ">u4", offset=4).tolist()
            num_blocks = 1 + min(math.prod(shape), _MOST_BYTES) // _BLOCK
            content = b"".join(islice(iter(partial(file.read, _BLOCK), b""), num_blocks))
    except (OSError, EOFError, MemoryError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {reason(error)}") from error
    if sha256 and hashlib.sha256(header + content).hexdigest() != sha256:
        raise DataError(f"{path} is damaged: its SHA-256 is not the known one; reinstall cvae_jax")
    try:
        return np.frombuffer(content, np.uint8).reshape(shape)
    except ValueError as error:
        held = "more" if len(content) > math.prod(shape) else len(content)
        raise DataError(
            f"{path} is damaged: its header, shape {shape}, asks for {math.prod(shape)} bytes of "
            f"data; it holds {held}"
        ) from error


def _find(directory: Path, part: str) -> Path:
    """Return the one file with `part` in its name; the plain one where it is packed as well."""
    found = sorted(path for path in directory.glob(f"*{part}*") if path.is_file())
    if len({path.stem if path.suffix in _OPENERS else path.name for path in found}) != 1:
        raise DataError(
            f"{directory} must hold one file named like {part}-idx-ubyte (.gz, .xz or plain); "
            f"found: {', '.join(path.name for path in found) or 'none'}"
        )
    return found[0]
