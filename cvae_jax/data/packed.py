"""A data set decoded once: its arrays as files, which are mapped into memory where it is used.

So a data set may be larger than memory: training streams it (`batches.make_feed`).
"""

import itertools
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from cvae_jax.data.dataset import Dataset, Splits, check_splits
from cvae_jax.errors import DataError
from cvae_jax.runtime.files import reason

_ABOUT = "about.json"
_SPLITS = ("train", "test")

_log = logging.getLogger(__name__)


class Decoding(NamedTuple):
    """A data set on its way from its own format: blocks of images, each with its labels."""

    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int
    class_names: tuple[str, ...]
    train: Iterable[Dataset]  # (B, H, W, C) uint8 and (B,) int32, of any B
    test: Iterable[Dataset]


class _About(msgspec.Struct):
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    source: str = ""
    fingerprint: str = ""


def keep(folder: Path | None, decode: Callable[[], Decoding], source: str = "") -> Splits:
    """Return the data set that is kept in a folder; decode it first, and keep it, where it is not.

    Where the folder can't be written, the arrays are in memory.

    Args:
        folder: it is made; None keeps nothing.
        decode: called where there is nothing in the folder, or something old or damaged.
        source: names the state of what is decoded; what was kept of another one is replaced.

    Raises:
        DataError: what was decoded is no data set.
    """
    if folder is None:
        return _in_memory(decode())
    if folder.exists():
        try:
            if (found := _read(folder, source)) is not None:
                return found
        except (OSError, ValueError, DataError, msgspec.MsgspecError) as error:
            _log.warning("%s is damaged (%s); decoding the images again", folder, reason(error))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:  # it may be shared and read-only
        return _unkept(folder, decode, error)
    try:
        splits = _write(part, decode(), source)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        return splits
    except OSError as error:  # the disk may be full
        shutil.rmtree(part, ignore_errors=True)
        return _unkept(folder, decode, error)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _unkept(folder: Path, decode: Callable[[], Decoding], error: OSError) -> Splits:
    why = reason(error, folder)
    _log.warning("%s can't be written: %s; the next start decodes the images again", folder, why)
    return _in_memory(decode())


def _in_memory(decoding: Decoding) -> Splits:
    def join(blocks: Iterable[Dataset]) -> Dataset:
        image, label = zip(*itertools.chain([_empty(decoding)], blocks), strict=True)
        return Dataset(np.concatenate(image), np.concatenate(label))

    train, test = join(decoding.train), join(decoding.test)
    return check_splits(Splits(train, test, decoding.num_classes, decoding.class_names), "it")


def _empty(decoding: Decoding) -> Dataset:
    return Dataset(np.empty((0, *decoding.image_shape), np.uint8), np.empty(0, np.int32))


def _write(part: Path, decoding: Decoding, source: str) -> Splits:
    for split, blocks in zip(_SPLITS, (decoding.train, decoding.test), strict=True):
        with (
            (part / f"{split}_image").open("wb") as images,
            (part / f"{split}_label").open("wb") as labels,
        ):
            for image, label in blocks:
                images.write(np.ascontiguousarray(image, np.uint8).data)
                labels.write(np.asarray(label, "<i4").tobytes())
    about = _About(decoding.image_shape, decoding.num_classes, decoding.class_names, source)
    splits = _map(part, about)
    about.fingerprint = splits.fingerprint()
    (part / _ABOUT).write_bytes(msgspec.json.encode(about))
    return splits


def _read(folder: Path, source: str) -> Splits | None:
    """Return what is kept; None for that of another source.

    Raises:
        DataError: it is damaged.
    """
    about = msgspec.json.decode((folder / _ABOUT).read_bytes(), type=_About)
    if about.source != source:
        return None
    splits = _map(folder, about)
    if splits.fingerprint() != about.fingerprint:
        raise DataError("its arrays don't match its fingerprint")
    return splits


def _map(folder: Path, about: _About) -> Splits:
    def mapped(split: str) -> Dataset:
        label = np.fromfile(folder / f"{split}_label", "<i4").astype(np.int32)
        path, size = folder / f"{split}_image", len(label) * math.prod(about.image_shape)
        if path.stat().st_size != size:
            raise DataError(f"it has not {size} bytes of {split} images")
        shape = (len(label), *about.image_shape)
        image = np.memmap(path, np.uint8, "r", shape=shape) if size else np.empty(shape, np.uint8)
        return Dataset(np.asarray(image), label)

    train, test = map(mapped, _SPLITS)
    return check_splits(Splits(train, test, about.num_classes, about.class_names), "it")
