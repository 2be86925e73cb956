"""The source "folder": images of any size in a folder for each class.

They lie in DIR/{train,test}/CLASS/ or in DIR/CLASS/. In the second case a file belongs to the test
set or to the training set by the SHA-256 of its class and name, so that files that are added or
deleted move no other. Classes and files are taken in the order of their names.
"""

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from cvae_jax.config import DataOptions
from cvae_jax.data import packed
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import ConfigError, DataError
from cvae_jax.runtime.files import cache_folder, reason

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_TRAIN, _TEST = "train", "test"
_TEST_SHARE = 0.1
_BLOCK = 1000  # files that are decoded before their pixels are written
_MOST_PIXELS = 50_000_000  # of a file; a photo has fewer
_GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"}

_log = logging.getLogger(__name__)


class _File(NamedTuple):
    path: Path
    label: int


def load(name: str, options: DataOptions) -> Splits:
    """Load the images below `data_dir`; the data set may have any name.

    Each is turned as its camera says, put on white where it is transparent, cropped to its middle
    square and scaled to `image_size`. Images are grey if all files are, or with `grey`.

    Raises:
        ConfigError: there is no such folder, or nothing like classes in it.
        DataError: a file can't be read, unless `skip_broken`, or a split is empty.
    """
    root = options.data_dir
    if root is None or not root.is_dir():
        raise ConfigError(
            f"{name} can't be loaded from --data-dir {root}, which does not exist; --source folder "
            "needs a folder that holds a folder of images for each class"
        )
    names, train, test = _find(root)
    decode, cache = partial(_decode, names, train, test, options), cache_folder()
    if cache is not None:
        place = f"{root.resolve()} {options.image_size} {options.grey} {options.skip_broken}"
        cache = cache / "data" / _sha256(place).hexdigest()
    return packed.keep(cache, decode, _state(root, [*train, *test]))


def _find(root: Path) -> tuple[list[str], list[_File], list[_File]]:
    """Return the names of the classes, and the files of both splits."""
    if all((root / split).is_dir() for split in (_TRAIN, _TEST)):
        names = sorted({*_folders(root / _TRAIN), *_folders(root / _TEST)})
        train, test = (_files(root / split, names) for split in (_TRAIN, _TEST))
    else:
        names = _folders(root)
        files = _files(root, names)
        is_test = [_is_test(file.path.relative_to(root)) for file in files]
        train = [file for file, is_one in zip(files, is_test, strict=True) if not is_one]
        test = [file for file, is_one in zip(files, is_test, strict=True) if is_one]
    for split, found in ((_TRAIN, train), (_TEST, test)):
        if not found:
            endings = ", ".join(sorted(_ENDINGS))
            raise ConfigError(
                f"--data-dir {root} has no {split} images; --source folder needs DIR/CLASS/ or "
                f"DIR/{_TRAIN}/CLASS/ and DIR/{_TEST}/CLASS/ with files that end in {endings}"
            )
    return names, train, test


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(root: Path, names: list[str]) -> list[_File]:
    """Return the images of all classes; they may lie in folders of folders."""
    found = []
    for label, name in enumerate(names):
        paths = (
            Path(folder, file)
            for folder, _, files in os.walk(root / name)
            for file in files
            if Path(file).suffix.lower() in _ENDINGS and not file.startswith(".")
        )
        found += [_File(path, label) for path in sorted(paths)]
    return found


def _is_test(path: Path) -> bool:
    digest = _sha256(path.as_posix()).digest()
    return int.from_bytes(digest[:8], "big") < _TEST_SHARE * 2**64


def _state(root: Path, files: list[_File]) -> str:
    """Return a digest of what is in a folder; a file that changed has another size or time."""
    lines = []
    for path, label in files:
        found = path.stat() if path.exists() else path.lstat()  # of a link to nowhere
        lines.append(f"{path.relative_to(root)}\0{label} {found.st_size} {found.st_mtime_ns}\n")
    return _sha256("".join(lines)).hexdigest()


def _sha256(text: str) -> Any:
    """Return the digest of a text with the names of files, which may be of any bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape"))


def _decode(
    names: list[str], train: list[_File], test: list[_File], options: DataOptions
) -> packed.Decoding:
    side = options.image_size
    is_grey = options.grey or _are_grey([*train, *test])
    shape = (side, side, 1 if is_grey else 3)

    def blocks(files: list[_File], split: str) -> Iterator[Dataset]:
        broken: list[str] = []
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=len(files), desc=f"decoding {split}", unit="image", delay=1) as bar,
        ):
            for start in range(0, len(files), _BLOCK):
                some = files[start : start + _BLOCK]
                image, label = [], []
                for file, found in zip(some, pool.map(partial(_read, shape), some), strict=True):
                    bar.update()
                    if isinstance(found, str):
                        broken.append(f"{file.path} can't be read as an image: {found}")
                        if not options.skip_broken:
                            raise DataError(f"{broken[0]}; delete it, or add --skip-broken")
                    else:
                        image.append(found)
                        label.append(file.label)
                if image:
                    yield Dataset(np.stack(image), np.array(label, np.int32))
        if broken:
            number = f"{len(broken):,} of {len(files):,} {split} images are left out"
            _log.warning("%s; %s", number, broken[0])

    return packed.Decoding(
        shape, len(names), tuple(names), blocks(train, _TRAIN), blocks(test, _TEST)
    )


def _are_grey(files: list[_File]) -> bool:
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(files), desc="looking for colours", unit="image", delay=1) as bar,
    ):
        for start in range(0, len(files), _BLOCK):
            some = files[start : start + _BLOCK]
            if not all(pool.map(_is_grey, some)):
                return False
            bar.update(len(some))
    return True


def _is_grey(file: _File) -> bool:
    """Return whether a file is grey, or none that can be read."""
    try:
        with Image.open(file.path) as picture:
            return picture.mode in _GREY_MODES
    except Exception:  # it is named when it is decoded
        return True


def _read(shape: tuple[int, int, int], file: _File) -> np.ndarray | str:
    """Return an image (H, W, C) uint8, or in a line why it can't be read."""
    height, width, channels = shape
    try:
        with Image.open(file.path) as opened:
            if math.prod(opened.size) > _MOST_PIXELS:
                return f"it has {opened.width} x {opened.height} pixels, too many"
            # A JPEG is decoded in small at once: four times as fast, for a photo.
            opened.draft("L" if channels == 1 else "RGB", (2 * width, 2 * height))
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 65,536 grey levels
                picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            return np.asarray(ImageOps.fit(picture, (width, height))).reshape(shape)
    except UnidentifiedImageError:
        return "it is none"
    except Exception as error:  # Pillow raises many types on damaged files
        return reason(error)
