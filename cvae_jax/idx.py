"""The IDX format of the MNIST family: a big-endian header, then unsigned bytes.

Format: two zero bytes, the type (0x08 is unsigned byte), the number of axes, each axis as
a 32-bit integer, the values (LeCun, Cortes & Burges, the MNIST database).
"""

import gzip
import hashlib
import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cvae_jax.types import DataError, Dataset, Splits

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_UNSIGNED_BYTE = 0x08


def read_bytes(path: Path) -> bytes:
    """Read a file that is plain or, by the end of its name, compressed (.gz, .xz).

    Raises:
        DataError: it can't be read or unpacked.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} can't be read: {reason}") from error


def parse(content: bytes, name: str, num_axes: int) -> np.ndarray:
    """Turn the bytes of an IDX file into an array of uint8.

    Args:
        content: the uncompressed file.
        name: what to call it in an error.
        num_axes: the number of axes that it must have.

    Raises:
        DataError: another type or number of axes, or more or fewer bytes than the header says.
    """
    header = 4 + 4 * num_axes
    magic = bytes([0, 0, _UNSIGNED_BYTE, num_axes])
    if content[:4] != magic or len(content) < header:
        raise DataError(
            f"{name} is not an IDX file of bytes with {num_axes} axes: it starts with "
            f"{content[:4].hex() or 'nothing'}, expected {magic.hex()}"
        )
    shape = tuple(np.frombuffer(content, ">u4", num_axes, offset=4).tolist())
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{name} holds {len(content) - header} bytes of data; "
            f"its header, shape {shape}, asks for {math.prod(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def to_dataset(image: np.ndarray, label: np.ndarray, name: str) -> Dataset:
    """Pair images (N, H, W) with labels (N,), both uint8, and give the images a channel axis.

    Raises:
        DataError: none at all, or their numbers differ; `name` says of what.
    """
    if len(image) != len(label) or image.size == 0:
        raise DataError(f"{name} has {len(image)} images and {len(label)} labels")
    return Dataset(image[..., np.newaxis], label.astype(np.int32))


def _uncompressed_name(path: Path) -> str:
    return path.stem if path.suffix in _OPENERS else path.name


def _find(directory: Path, part: str) -> Path:
    """Find the one file of a directory whose name has `part` in it; plain before compressed."""
    found = sorted(path for path in directory.glob(f"*{part}*") if path.is_file())
    if len({_uncompressed_name(path) for path in found}) != 1:
        seen = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{directory} must hold one file named like {part}-idx-ubyte (.gz, .xz or plain); "
            f"found: {seen}"
        )
    return found[0]


def load_directory(directory: Path, digests: Mapping[str, str] | None = None) -> Splits:
    """Read the four files of a data set: {train, t10k}-{images, labels}.

    Args:
        directory: the folder that holds them.
        digests: SHA-256 of each unpacked file by its name without .gz or .xz, to be checked.

    Raises:
        DataError: a file is missing, doubled or damaged, or the four don't fit together.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; it must hold four IDX files")

    def load(part: str, num_axes: int) -> np.ndarray:
        path = _find(directory, part)
        content = read_bytes(path)
        if digests and hashlib.sha256(content).hexdigest() != digests[_uncompressed_name(path)]:
            raise DataError(f"{path} is damaged: its SHA-256 is not the known one; install it anew")
        return parse(content, str(path), num_axes)

    train, test = (
        to_dataset(load(f"{split}-images", 3), load(f"{split}-labels", 1), f"{directory} ({split})")
        for split in ("train", "t10k")
    )
    if train.image.shape[1:] != test.image.shape[1:]:
        raise DataError(
            f"{directory} has training images of shape {train.image.shape[1:]} and test images "
            f"of shape {test.image.shape[1:]}"
        )
    return Splits(train, test, num_classes(train, test))


def num_classes(train: Dataset, test: Dataset) -> int:
    """Count the classes: labels run from 0 to the largest one seen."""
    return int(max(train.label.max(), test.label.max())) + 1
