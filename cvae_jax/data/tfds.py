"""The source "tfds": TensorFlow Datasets without TensorFlow.

TFDS's own MNIST needs TensorFlow to unpack, to read IDX and to encode PNG. Here its builder reads
IDX with `idx`, encodes with Pillow and writes ArrayRecord, which TFDS reads without TensorFlow.
Pooch downloads, because TFDS waits for a silent server without end. Images are decoded once, then
kept as arrays beside what TFDS has prepared.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from cvae_jax.config import DataOptions, require
from cvae_jax.data import idx, packed
from cvae_jax.data.dataset import Dataset, Splits, check_splits
from cvae_jax.data.download import fetch
from cvae_jax.errors import DataError
from cvae_jax.runtime.files import reason, user_path

NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""The data sets that can be prepared here, and the names of their TFDS builders."""

_FORMAT = "array_record"
_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_FILES = [f"{part}-ubyte.gz" for part in _PARTS]


def load(name: str, options: DataOptions) -> Splits:
    """Load a data set that TFDS has prepared, or download and prepare it first.

    Raises:
        ConfigError: the data set is not in `NAMES`.
        DataError: it can't be downloaded, prepared or read.
    """
    require(
        name in NAMES, "dataset", repr(name), f"{', '.join(NAMES)}, or --source idx with --data-dir"
    )
    data_dir = options.data_dir or default_folder()
    directory = find_prepared(name, data_dir) or prepare(name, data_dir)
    return packed.keep(directory / "cvae_jax", partial(decode, directory))


def default_folder() -> Path:
    """Return the folder in which TFDS itself keeps data sets."""
    return user_path("data-dir", Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """Return the newest version of a data set that TFDS has prepared as ArrayRecord."""
    versions = {}
    for path in (data_dir / name).glob("*/dataset_info.json"):
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name, re.ASCII):
            try:
                file_format = json.loads(path.read_text()).get("fileFormat")
            except (OSError, ValueError, AttributeError, RecursionError) as error:
                raise DataError(f"{path} can't be read: {error}; delete its folder") from error
            if file_format == _FORMAT:
                versions[tuple(map(int, path.parent.name.split(".")))] = path.parent
    return versions[max(versions)] if versions else None


def decode(directory: Path) -> packed.Decoding:
    """Decode every image of a prepared data set, in the order of the original files."""
    import tensorflow_datasets as tfds

    def read(split: str) -> Dataset:
        source = builder.as_data_source(split)
        position = _original_positions(split, len(source))
        image = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
        label = np.empty(len(source), np.int32)
        for i in tqdm(range(len(source)), desc=f"decoding {split}", unit="image", delay=1):
            example = source[i]
            image[position[i]], label[position[i]] = example["image"], int(example["label"])
        return Dataset(image, label)

    try:
        features = (directory / "features.json").read_text(encoding="utf-8")
        json.loads(features, object_hook=_refuse_foreign_classes)
        builder = tfds.builder_from_directory(directory)
        features = builder.info.features
        shape, num_classes = features["image"].shape, features["label"].num_classes
        check_splits(splits := Splits(read("train"), read("test"), num_classes), "it")
        return packed.Decoding(shape, num_classes, (), [splits.train], [splits.test])
    except Exception as error:  # TFDS and ArrayRecord raise any type on a damaged file
        raise DataError(
            f"the data set in {directory} can't be read ({reason(error)}); delete that folder, and "
            "the next start prepares it anew"
        ) from error


def _refuse_foreign_classes(description: dict[str, Any]) -> dict[str, Any]:
    """Raise where a part of features.json would make TFDS import a module that is not its own."""
    for key in ("pythonClassName", "python_class_name", "type"):
        name = description.get(key, "tensorflow_datasets.")
        if not str(name).startswith("tensorflow_datasets."):
            raise ValueError(f"features.json names the foreign class {name!r}")
    return description


def _original_positions(split: str, num_examples: int) -> np.ndarray:
    """Return the place in the original file of each example of TFDS, (N,).

    TFDS stores examples by the MD5 of the split's name and their key, here their number. It
    promises to keep that rule within a version of a data set.
    """

    def rank(index: int) -> bytes:
        return hashlib.md5(f"{split}{index}".encode(), usedforsecurity=False).digest()

    return np.array(sorted(range(num_examples), key=rank))


def prepare(name: str, data_dir: Path) -> Path:
    """Download a data set, let TFDS store it as ArrayRecord and return its folder."""
    import tensorflow_datasets as tfds

    try:
        builder = _make_builder(name, data_dir)
        directory = Path(builder.data_dir)
        if directory.exists():  # TFDS would take it for the prepared data set
            raise OSError(f"{directory} is incomplete, or in a format that needs TensorFlow")
        builder.paths = [_fetch(name, builder, file, data_dir / "downloads") for file in _FILES]
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config, file_format=_FORMAT)
    except DataError:
        raise
    except Exception as error:  # TFDS asserts what it expects in its folder; the disk may be full
        raise DataError(
            f"{name} can't be prepared: {reason(error, data_dir)}; delete {data_dir / name}, or "
            "choose another --data-dir"
        ) from error
    return directory


def _make_builder(name: str, data_dir: Path) -> Any:
    """Return TFDS's builder of a data set, with the steps that need TensorFlow replaced."""
    from PIL import Image
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    parent: Any = getattr(tfds_mnist, NAMES[name])

    class Builder(parent, skip_registration=True):  # type: ignore[misc, call-arg]
        url_infos = parent.url_infos  # TFDS would look for them beside this file

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            train, test = self.paths[:2], self.paths[2:]
            return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

        def _generate_examples(self, paths: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
            image, label = idx.read(paths[0], num_axes=3), idx.read(paths[1], num_axes=1)
            for key in range(len(image)):
                yield key, {"image": Image.fromarray(image[key]), "label": int(label[key])}

    Builder.name = name
    return Builder(data_dir=data_dir)


def _fetch(name: str, builder: Any, file: str, downloads: Path) -> Path:
    """Return the path of one of the four files; download it unless its TFDS digest is found."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    url, manual = builder.URL + file, downloads / "manual"
    info = builder.url_infos[url]
    to = downloads / name / get_dl_fname(url, info.checksum)  # TFDS's name
    copies = [manual / name / file, manual / file]  # TFDS's own place is the second one
    return fetch(name, url, info.size, info.checksum, to=to, copies=copies)
