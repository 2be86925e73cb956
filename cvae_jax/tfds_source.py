"""TensorFlow Datasets without TensorFlow.

TFDS's own MNIST needs TensorFlow to unpack, to read IDX and to encode PNG. Here TFDS
downloads, checks, stores and decodes; its builder is told to read IDX with our reader, to
encode with Pillow and to write ArrayRecord, the format that is read without TensorFlow.
What was decoded once is kept as packed arrays beside the prepared data set.
"""

import hashlib
import json
import logging
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cvae_jax import idx
from cvae_jax.files import whole_file
from cvae_jax.types import DataError, Dataset, Splits, UserError

NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""The data sets that can be prepared here, and the names of their TFDS builders."""

_FORMAT = "array_record"
_CACHE = "cvae_jax.npz"
_PROBE_SECONDS = 5
_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

_log = logging.getLogger(__name__)


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """Find the newest version of a data set that TFDS has prepared as ArrayRecord."""
    versions = {
        tuple(map(int, path.parent.name.split("."))): path.parent
        for path in (data_dir / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name, re.ASCII)
        and _file_format(path) == _FORMAT
    }
    return versions[max(versions)] if versions else None


def _file_format(dataset_info: Path) -> str:
    try:
        # Where old versions of TFDS said nothing, it was TFRecord.
        return str(json.loads(dataset_info.read_text()).get("fileFormat", "tfrecord"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{dataset_info} can't be read: {error}; delete its folder") from error


def load(name: str, data_dir: Path) -> Splits:
    """Load a data set that TFDS has prepared, or fetch and prepare it first.

    Raises:
        DataError: it is not there and can't be fetched, or what is there is damaged.
    """
    directory = find_prepared(name, data_dir) or _prepare(name, data_dir)
    cache = directory / _CACHE
    cached = _read_cache(cache)
    if cached is not None:
        return cached
    splits = _decode(directory)
    try:
        _write_cache(cache, splits)
    except UserError as error:  # the folder may be shared and read-only
        _log.warning("%s; the next start has to decode the images again", error)
    return splits


def _decode(directory: Path) -> Splits:
    """Read every image of a prepared data set, in the order of the original files."""
    import tensorflow_datasets as tfds

    def read(split: str) -> Dataset:
        source = builder.as_data_source(split)
        position = _original_positions(split, len(source))
        image = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
        label = np.empty(len(source), np.int32)
        for i in tqdm(range(len(source)), desc=f"decoding {split}", unit="image"):
            example = source[i]
            image[position[i]], label[position[i]] = example["image"], example["label"]
        return Dataset(image, label)

    try:
        builder = tfds.builder_from_directory(directory)
        return Splits(read("train"), read("test"), builder.info.features["label"].num_classes)
    except Exception as error:  # TFDS and ArrayRecord raise what they like on a damaged file
        raise DataError(
            f"the data set in {directory} can't be read ({_first_line(error)}); delete that "
            "folder, and the next start prepares it anew"
        ) from error


def _original_positions(split: str, num_examples: int) -> np.ndarray:
    """Undo TFDS's shuffle: entry i is the place in the original file of its example i.

    TFDS stores examples by the MD5 of the split's name and their key, here their number; it
    promises to keep that rule within a version of a data set.
    """

    def rank(index: int) -> bytes:
        return hashlib.md5(f"{split}{index}".encode(), usedforsecurity=False).digest()

    return np.array(sorted(range(num_examples), key=rank))


def _write_cache(path: Path, splits: Splits) -> None:
    with whole_file(path) as file:
        np.savez(
            file,
            train_image=splits.train.image,
            train_label=splits.train.label,
            test_image=splits.test.image,
            test_label=splits.test.label,
            num_classes=splits.num_classes,
            fingerprint=splits.fingerprint(),
        )


def _read_cache(path: Path) -> Splits | None:
    """Read the packed arrays; None, with a warning where they are damaged, to decode again."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            splits = Splits(
                train=Dataset(arrays["train_image"], arrays["train_label"]),
                test=Dataset(arrays["test_image"], arrays["test_label"]),
                num_classes=int(arrays["num_classes"]),
            )
            if splits.fingerprint() != str(arrays["fingerprint"]):
                raise ValueError("its arrays don't match its fingerprint")
    except Exception as error:  # on a damaged file zipfile and NumPy raise a dozen types
        _log.warning("%s is damaged (%s); decoding the images again", path, _first_line(error))
        return None
    return splits


def _prepare(name: str, data_dir: Path) -> Path:
    """Let TFDS download a data set and store it as ArrayRecord; return where."""
    import tensorflow_datasets as tfds

    try:
        builder = _make_builder(name, data_dir)
    except Exception as error:  # it reads what lies in its folder, and asserts what it expects
        raise DataError(
            f"what lies in {data_dir / name} can't be used ({_first_line(error)}); delete that "
            "folder, or choose another --data-dir"
        ) from error
    directory = Path(builder.data_dir)
    if directory.exists():
        raise DataError(
            f"{directory} holds {name} in a format that can't be read without TensorFlow; choose "
            "another --data-dir, where it will be prepared as ArrayRecord"
        )
    downloads = data_dir / "downloads"
    manual = downloads / "manual" / name
    if name == "mnist" and not manual.is_dir():
        manual = manual.parent  # TFDS's own place; the others' files have MNIST's names
    if not all((manual / file).is_file() for file in _FILES):
        _require_network(name, builder.URL, downloads / "manual" / name)
    try:
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False),
            file_format=_FORMAT,
        )
    except Exception as error:  # network, checksums, disk: TFDS lets all of it through
        raise DataError(
            f"{name} could not be prepared in {data_dir}: {_first_line(error)}"
        ) from error
    return directory


def _make_builder(name: str, data_dir: Path) -> Any:
    """Make TFDS's builder of a data set with the steps replaced that need TensorFlow."""
    from PIL import Image
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    parent: Any = getattr(tfds_mnist, NAMES[name])

    class Builder(parent, skip_registration=True):  # type: ignore[misc, call-arg]
        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            paths = dl_manager.download({file: self.URL + file for file in _FILES})
            train_image, train_label, test_image, test_label = (paths[file] for file in _FILES)
            return {
                "train": self._generate_examples(train_image, train_label),
                "test": self._generate_examples(test_image, test_label),
            }

        def _generate_examples(
            self, image_path: Path, label_path: Path
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            image = idx.parse(idx.read_bytes(image_path), str(image_path), num_axes=3)
            label = idx.parse(idx.read_bytes(label_path), str(label_path), num_axes=1)
            for key in range(len(image)):
                yield key, {"image": Image.fromarray(image[key]), "label": int(label[key])}

    Builder.name = name
    return Builder(data_dir=data_dir)


def _require_network(name: str, url: str, manual: Path) -> None:
    """Fail within seconds where TFDS would retry for minutes.

    The request runs in a thread of its own because looking up a host has no time limit.
    """
    import requests

    answers: queue.Queue[str | None] = queue.Queue()  # what went wrong, None for nothing

    def probe() -> None:
        try:
            requests.head(url + _FILES[1], timeout=_PROBE_SECONDS).raise_for_status()
            answers.put(None)
        except requests.RequestException as error:
            answers.put(type(error).__name__)

    threading.Thread(target=probe, daemon=True).start()
    try:
        problem = answers.get(timeout=2 * _PROBE_SECONDS)
    except queue.Empty:
        problem = f"no answer in {2 * _PROBE_SECONDS} seconds"
    if problem:
        raise DataError(
            f"{name} is not prepared here and {url} can't be reached ({problem}); where there "
            f"is no network, put {', '.join(_FILES)} of {name} into {manual}"
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
