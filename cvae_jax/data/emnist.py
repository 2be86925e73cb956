"""The source "emnist": letters and digits from the one official archive, without TensorFlow.

Cohen et al. (2017), EMNIST. Each part has its four IDX files in it, and a mapping from labels to
characters. Images lie there with rows and columns swapped, and the labels of `letters` begin at 1.
TFDS's record has the archive's address, size and digest.
"""

import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from cvae_jax.config import DataOptions, require
from cvae_jax.data import idx, packed
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.data.download import fetch
from cvae_jax.data.tfds import default_folder
from cvae_jax.errors import DataError
from cvae_jax.runtime.files import reason

PARTS = ("balanced", "letters", "digits", "byclass", "bymerge", "mnist")
"""The parts of the archive; the data set is called "emnist/" and its part."""

ARCHIVE = "gzip.zip"


def load(name: str, options: DataOptions) -> Splits:
    """Load a part of EMNIST, upright, with the names of its classes.

    Raises:
        ConfigError: there is no such part.
        DataError: the archive can't be downloaded or read.
    """
    prefix, _, part = name.rpartition("/")
    is_known = prefix == "emnist" and part in PARTS
    require(is_known, "dataset", repr(name), ", ".join(f"emnist/{one}" for one in PARTS))
    data_dir = options.data_dir or default_folder()
    return packed.keep(data_dir / name / "cvae_jax", partial(_decode, part, data_dir))


def copies(data_dir: Path) -> list[Path]:
    """Return the paths at which a copy of the archive is looked for."""
    manual = data_dir / "downloads" / "manual"
    return [manual / "emnist" / ARCHIVE, manual / ARCHIVE]


def _decode(part: str, data_dir: Path) -> packed.Decoding:
    path = _fetch(data_dir)
    try:
        with zipfile.ZipFile(path) as archive:
            lines = archive.read(f"gzip/emnist-{part}-mapping.txt").decode("ascii").splitlines()
            # A label, its character, and for letters the small one, by their numbers in ASCII.
            rows = sorted([int(word) for word in line.split()] for line in lines if line.strip())
            first, names = rows[0][0], tuple(chr(row[1]) for row in rows)

            def read(split: str) -> Dataset:
                image, label = (
                    _member(archive, path, f"emnist-{part}-{split}-{kind}-ubyte.gz", num_axes)
                    for kind, num_axes in (("images-idx3", 3), ("labels-idx1", 1))
                )
                upright = image.swapaxes(1, 2)[..., np.newaxis]
                return Dataset(upright, label.astype(np.int32) - first)

            train, test = read("train"), read("test")
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} can't be read: {reason(error)}; delete it") from error
    height, width, channels = train.image.shape[1:]
    return packed.Decoding((height, width, channels), len(names), names, [train], [test])


def _member(archive: zipfile.ZipFile, path: Path, name: str, num_axes: int) -> np.ndarray:
    with archive.open(f"gzip/{name}") as file:
        return idx.read_from(file, path / name, num_axes)


def _fetch(data_dir: Path) -> Path:
    from tensorflow_datasets.core.download.resource import get_dl_fname
    from tensorflow_datasets.image_classification.mnist import EMNIST

    info = EMNIST.url_infos[EMNIST.URL]
    to = data_dir / "downloads" / get_dl_fname(EMNIST.URL, info.checksum)  # TFDS's own place
    found = copies(data_dir)
    return fetch("emnist", EMNIST.URL, info.size, info.checksum, to=to, copies=found)
