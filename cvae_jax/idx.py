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

from cvae_jax.files import reason
from cvae_jax.types import DataError, Dataset, Splits

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_UNSIGNED_BYTE = 0x08
_BLOCK = 1 << 20
_MOST_BYTES = 1 << 33  # ten times the largest of the well-known data sets of this kind


def read_bytes(path: Path) -> bytes:
    """Read a file that is plain or, by the end of its name, compressed (.gz, .xz).

    Reading ends soon after what the IDX header asks for, so that a small file that unpacks to
    more than any memory does no harm.

    Raises:
        DataError: it can't be read or unpacked.
    """
    content = bytearray()
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            while len(content) <= _promised(content) and (block := file.read(_BLOCK)):
                content += block
                if len(content) > _MOST_BYTES:
                    raise OSError(f"it holds more than {_MOST_BYTES} bytes")
    except (OSError, EOFError, MemoryError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {reason(error)}") from error
    return bytes(content)


def _promised(content: bytes | bytearray) -> int:
    """Count the bytes of a whole file by its header; 0 where that is none, or not read yet."""
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        return 0
    header = 4 + 4 * content[3]
    if len(content) < header:
        return 0
    return header + math.prod(np.frombuffer(content[4:header], ">u4").tolist())


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
    held, expected = len(content) - header, math.prod(shape)
    if held != expected:
        raise DataError(
            f"{name} is damaged: its header, shape {shape}, asks for {expected} bytes of data; "
            f"it holds {'more' if held > expected else held}"
        )
    try:
        return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    except ValueError as error:  # no bytes at all, in a shape that NumPy can't count
        raise DataError(f"{name} is damaged: no array has the shape {shape}") from error


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

    The classes are those of the training labels: 0 to the largest one.

    Args:
        directory: the folder that holds them.
        digests: SHA-256 of each unpacked file by its name without .gz or .xz, to be checked.

    Raises:
        DataError: a file is missing, doubled or damaged, or the four don't fit together.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder; it must hold four IDX files")

    def load(part: str, num_axes: int) -> tuple[np.ndarray, Path]:
        path = _find(directory, part)
        content = read_bytes(path)
        if digests and hashlib.sha256(content).hexdigest() != digests[_uncompressed_name(path)]:
            raise DataError(f"{path} is damaged: its SHA-256 is not the known one; install it anew")
        return parse(content, str(path), num_axes), path

    def load_split(split: str) -> tuple[Dataset, Path, Path]:
        image, image_path = load(f"{split}-images", 3)
        label, label_path = load(f"{split}-labels", 1)
        if image.size == 0:
            raise DataError(f"{image_path} has no images: its shape is {image.shape}")
        if len(image) != len(label):
            raise DataError(
                f"{image_path} has {len(image)} images and {label_path} has {len(label)} labels; "
                "there must be one for each"
            )
        return Dataset(image[..., np.newaxis], label.astype(np.int32)), image_path, label_path

    train, train_images, train_labels = load_split("train")
    test, test_images, test_labels = load_split("t10k")
    if train.image.shape[1:] != test.image.shape[1:]:
        raise DataError(
            f"{train_images} has images of shape {train.image.shape[1:]} and {test_images} "
            f"images of shape {test.image.shape[1:]}; they must have the same"
        )
    largest, beyond = int(train.label.max()), int(test.label.max())
    if beyond > largest:
        raise DataError(
            f"{test_labels} has the label {beyond}, which is outside the classes: those of "
            f"{train_labels} are 0 to {largest}"
        )
    return Splits(train, test, largest + 1)
