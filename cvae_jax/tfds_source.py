"""TensorFlow Datasets without TensorFlow.

TFDS's own MNIST needs TensorFlow to unpack, to read IDX and to encode PNG. Here TFDS says
what to download, stores and decodes; its builder is told to read IDX with our reader, to
encode with Pillow and to write ArrayRecord, the format that is read without TensorFlow.
Downloading is ours: TFDS waits without end for a silent server, and 204 s without a network.
"""

import hashlib
import json
import queue
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cvae_jax import idx
from cvae_jax.files import reason, whole_file
from cvae_jax.types import DataError, Dataset, Splits

NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""The data sets that can be prepared here, and the names of their TFDS builders."""

_FORMAT = "array_record"
_WAIT_SECONDS = 10  # for the next part of a download
_SLOWEST_BYTES_PER_SECOND = 10_000
_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


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


def decode(directory: Path) -> Splits:
    """Read every image of a prepared data set, in the order of the original files.

    Raises:
        DataError: it is damaged.
    """
    import tensorflow_datasets as tfds

    def read(split: str) -> Dataset:
        source = builder.as_data_source(split)
        position = _original_positions(split, len(source))
        image = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
        label = np.empty(len(source), np.int32)
        for i in tqdm(range(len(source)), desc=f"decoding {split}", unit="image"):
            example = source[i]
            image[position[i]], label[position[i]] = example["image"], int(example["label"])
        return Dataset(image, label)

    try:
        features = (directory / "features.json").read_text(encoding="utf-8")
        json.loads(features, object_hook=_refuse_foreign_classes)
        builder = tfds.builder_from_directory(directory)
        return Splits(read("train"), read("test"), builder.info.features["label"].num_classes)
    except Exception as error:  # TFDS and ArrayRecord raise what they like on a damaged file
        raise DataError(
            f"the data set in {directory} can't be read ({reason(error)}); delete that "
            "folder, and the next start prepares it anew"
        ) from error


def _refuse_foreign_classes(description: dict[str, Any]) -> dict[str, Any]:
    """Pass over a part of features.json, unless TFDS would import a module of others for it."""
    for key in ("pythonClassName", "python_class_name", "type"):
        name = description.get(key, "tensorflow_datasets.")
        if not str(name).startswith("tensorflow_datasets."):
            raise ValueError(f"features.json names the foreign class {name!r}")
    return description


def _original_positions(split: str, num_examples: int) -> np.ndarray:
    """Undo TFDS's shuffle: entry i is the place in the original file of its example i.

    TFDS stores examples by the MD5 of the split's name and their key, here their number; it
    promises to keep that rule within a version of a data set.
    """

    def rank(index: int) -> bytes:
        return hashlib.md5(f"{split}{index}".encode(), usedforsecurity=False).digest()

    return np.array(sorted(range(num_examples), key=rank))


def prepare(name: str, data_dir: Path) -> Path:
    """Download a data set and let TFDS store it as ArrayRecord; return where.

    Raises:
        DataError: it can't be fetched or stored.
    """
    import tensorflow_datasets as tfds

    try:
        builder = _make_builder(name, data_dir)
    except Exception as error:  # it reads what lies in its folder, and asserts what it expects
        raise DataError(
            f"what lies in {data_dir / name} can't be used ({reason(error)}); delete it, or choose "
            "another --data-dir"
        ) from error
    if (directory := Path(builder.data_dir)).exists():
        raise DataError(
            f"{directory} holds {name} in part, or in a format for TensorFlow alone; delete it or "
            "choose another --data-dir, to have it prepared as ArrayRecord"
        )
    builder.paths = [_fetch(name, builder, file, data_dir / "downloads") for file in _FILES]
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format=_FORMAT,
        )
    except Exception as error:  # a full disk, a class that TFDS refuses: all of it comes through
        raise DataError(f"{name} can't be prepared: {reason(error, data_dir)}") from error
    return directory


def _make_builder(name: str, data_dir: Path) -> Any:
    """Make TFDS's builder of a data set with the steps replaced that need TensorFlow."""
    from PIL import Image
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    parent: Any = getattr(tfds_mnist, NAMES[name])

    class Builder(parent, skip_registration=True):  # type: ignore[misc, call-arg]
        url_infos = parent.url_infos  # TFDS would look for them beside this file

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            train_image, train_label, test_image, test_label = self.paths
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


def _fetch(name: str, builder: Any, file: str, downloads: Path) -> Path:
    """Find one of the four files, or download it, and check its digest, which TFDS knows."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    url = builder.URL + file
    info = builder.url_infos[url]
    manual = downloads / "manual"
    by_hand = [manual / name / file]
    if name == "mnist":  # TFDS's own place; the others' files have MNIST's names
        by_hand.append(manual / file)
    for path in filter(Path.exists, by_hand):
        if not _has_digest(path, info.checksum):
            raise DataError(
                f"{path} is damaged or another file: its SHA-256 is not {info.checksum}; "
                "replace it, or delete it, and it is downloaded"
            )
        return path
    # Where TFDS itself keeps it, so that its own are used.
    path = downloads / name / get_dl_fname(url, info.checksum)
    if not (path.exists() and _has_digest(path, info.checksum)):
        content, problem = _download(url, int(info.size))
        if not problem and hashlib.sha256(content).hexdigest() != info.checksum:
            problem = f"what came has another SHA-256 than {info.checksum}"
        if problem:
            raise DataError(
                f"{name} is not prepared here and {url} can't be downloaded ({problem}); try "
                f"again, or put {', '.join(_FILES)} of {name} into {manual / name}"
            )
        with whole_file(path) as opened:
            opened.write(content)
    return path


def _has_digest(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError as error:
        raise DataError(f"{path} can't be read: {reason(error)}; delete it") from error


def _download(url: str, size: int) -> tuple[bytearray, str]:
    """Download a file of a known size; give its bytes and, where it failed, what went wrong.

    Receiving has a thread of its own: looking up a host has no time limit, nor has a drip.
    """
    import requests

    plain = {"Accept-Encoding": "identity"}
    blocks: queue.Queue[bytes | str] = queue.Queue()  # text is what went wrong
    deadline = time.monotonic() + 2 * _WAIT_SECONDS + size / _SLOWEST_BYTES_PER_SECOND

    def receive() -> None:
        try:
            with requests.get(url, headers=plain, stream=True, timeout=_WAIT_SECONDS) as response:
                response.raise_for_status()
                received = 0
                for block in response.iter_content(1 << 16):
                    blocks.put(block)
                    received += len(block)
                    if received > size:
                        break
            blocks.put(b"")
        except Exception as error:  # what is raised in a thread is seen by nobody
            blocks.put(type(error).__name__)

    threading.Thread(target=receive, daemon=True).start()
    content = bytearray()
    with tqdm(total=size, desc=url.rpartition("/")[2], unit="B", unit_scale=True) as bar:
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                block = blocks.get(timeout=min(2 * _WAIT_SECONDS, left))
            except queue.Empty:
                block = f"nothing came for {2 * _WAIT_SECONDS} seconds, or too slowly"
            if isinstance(block, str):
                return content, f"{block} after {len(content)} of {size} bytes"
            if not block:
                return content, ""
            content += block
            bar.update(len(block))
