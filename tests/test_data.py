"""Data sets by name: the bundled MNIST, where else data come from, and the check of all of them."""

import lzma
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import cvae_jax
from cvae_jax.data import sources
from cvae_jax.data.dataset import Dataset, Splits, check_splits
from cvae_jax.data.sources import load_dataset
from cvae_jax.errors import ConfigError, DataError

BUNDLED = Path(cvae_jax.__file__).parent / "data" / "mnist"
FINGERPRINT = "e06c4e8bd03f33d1386208ccb13ed14bed0effd5206702ada7aa98e31597d794"  # by version 0.2


@pytest.fixture
def small() -> Splits:
    """Return a data set that is not MNIST."""
    dataset = Dataset(np.full((4, 28, 28, 1), 7, np.uint8), np.arange(4, dtype=np.int32))
    return Splits(dataset, dataset, 10)


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every use of the network and every import of TFDS or TensorFlow."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in [*sys.modules, "tensorflow", "tensorflow_datasets"]:
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            monkeypatch.setitem(sys.modules, name, None)


# The bundled MNIST.


def test_bundled_mnist_is_the_published_one(mnist: Splits) -> None:
    for dataset, number in ((mnist.train, 60_000), (mnist.test, 10_000)):
        assert dataset.image.shape == (number, 28, 28, 1)
        assert dataset.image.dtype == np.uint8
        assert dataset.label.dtype == np.int32
    assert np.bincount(np.asarray(mnist.train.label)).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert np.asarray(mnist.train.label[:10]).tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.asarray(mnist.test.label[:10]).tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert mnist.fingerprint() == FINGERPRINT
    assert mnist._replace(num_classes=11).fingerprint() != FINGERPRINT


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_another(path: Path) -> None:
    """Leave a valid IDX file that differs in its last pixel."""
    content = bytearray(lzma.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.unlink()
    path.with_suffix("").write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_byte, replace_by_another, Path.unlink])
def test_a_damaged_bundled_file_is_never_used(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(BUNDLED, tmp_path / "mnist"))
    monkeypatch.setattr(sources, "_BUNDLED", copy)
    damage(copy / "t10k-images-idx3-ubyte.xz")
    with pytest.raises(DataError, match=f"{copy}.*t10k-images"):
        load_dataset("mnist", source="bundled")


@pytest.mark.usefixtures("sealed")
def test_auto_takes_the_bundled_files_without_network_or_tfds(tmp_path: Path) -> None:
    assert load_dataset(data_dir=tmp_path).fingerprint() == FINGERPRINT


@pytest.mark.usefixtures("sealed")
def test_idx_loads_a_folder_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for packed in BUNDLED.glob("*.xz"):
        (tmp_path / packed.name).symlink_to(packed)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    loaded = load_dataset("my digits", source="idx", data_dir=Path("~") / tmp_path.name)
    assert loaded.fingerprint() == FINGERPRINT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "minst"}, "'minst'.*mnist, fashion_mnist, kmnist"),
        ({"name": "kmnist", "source": "bundled"}, "'kmnist'.*--source tfds"),
        ({"source": "web"}, "'web'.*auto, bundled, tfds, emnist, idx, folder"),
        ({"source": "idx"}, "needs --data-dir, the folder of the four IDX files"),
        ({"image_size": 32}, "--image-size needs --source folder"),
        ({"source": "idx", "data_dir": "/no/such/folder"}, "/no/such/folder, which does not exist"),
        ({"data_dir": __file__}, f"--data-dir {__file__} .*a folder"),
        ({"data_dir": "x" * 300}, "--data-dir x+ can't be used: File name too long"),
        ({"data_dir": "~nobody_of_this_name/data"}, "--data-dir ~nobody_of_this_name"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(**arguments)


def test_auto_does_not_ignore_idx_files(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(ConfigError, match="add --source idx"):
        load_dataset("mnist", data_dir=tmp_path)


# The check that every source has to pass.


def changed(splits: Splits, **arrays: np.ndarray) -> Splits:
    return splits._replace(test=splits.test._replace(**arrays))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s._replace(num_classes=3), "labels from 0 to 3, outside the classes, 0 to 2"),
        (lambda s: changed(s, label=s.test.label - 1), "test labels from -1 to 2"),
        (lambda s: changed(s, label=s.test.label[1:]), "4 test images and 3 labels"),
        (lambda s: changed(s, label=s.test.label.astype(np.int64)), "int64, not int32"),
        (lambda s: changed(s, image=s.test.image / 255), "float64, not uint8"),
        (lambda s: changed(s, image=s.test.image[:, 1:]), r"two sizes: \(28, 28, 1\), \(27, 28"),
        (lambda s: changed(s, image=s.test.image[:0], label=s.test.label[:0]), "no test images"),
    ],
)
def test_what_is_no_data_set_is_refused(
    change: Callable[[Splits], Splits], problem: str, small: Splits
) -> None:
    assert check_splits(small, "the folder") is small
    with pytest.raises(DataError, match=f"^the folder has .*{problem}"):
        check_splits(change(small), "the folder")
