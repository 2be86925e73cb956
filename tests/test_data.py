import lzma
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, get_args

import numpy as np
import pytest

from cvae_jax import data, tfds_source
from cvae_jax.data import load_dataset
from cvae_jax.options import Source
from cvae_jax.types import ConfigError, DataError, Dataset, Splits


@pytest.fixture
def small() -> Splits:
    """Give a data set that is not MNIST, and that is told from it at a glance."""
    label = np.arange(4, dtype=np.int32)
    dataset = Dataset(np.full((4, 28, 28, 1), 7, np.uint8), label)
    return Splits(dataset, dataset, 10)


@pytest.fixture
def prepared(small: Splits, tmp_path: Path) -> Path:
    """Give a folder that looks as if TFDS had prepared MNIST there, and it had been decoded."""
    directory = tmp_path / "tfds" / "mnist" / "3.0.1"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    data._write_cache(directory / "cvae_jax.npz", small)
    return tmp_path / "tfds"


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every use of the network and every import of TFDS or TensorFlow fail."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in [*sys.modules, "tensorflow", "tensorflow_datasets"]:
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            monkeypatch.setitem(sys.modules, name, None)


def test_bundled_mnist_has_its_published_sizes(mnist: Splits) -> None:
    for dataset, number in ((mnist.train, 60_000), (mnist.test, 10_000)):
        assert dataset.image.shape == (number, 28, 28, 1)
        assert dataset.label.shape == (number,)
        assert dataset.image.dtype == np.uint8
        assert dataset.label.dtype == np.int32
    assert mnist.num_classes == 10


def test_bundled_mnist_has_its_published_label_counts(mnist: Splits) -> None:
    train, test = (np.bincount(np.asarray(d.label)) for d in (mnist.train, mnist.test))
    assert train.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_bundled_mnist_has_its_published_mean_and_deviation(mnist: Splits) -> None:
    # 0.1307 and 0.3081 are the numbers by which everyone normalises MNIST.
    image = np.asarray(mnist.train.image)
    level, frequency = np.arange(256) / 255, np.bincount(image.ravel()) / image.size
    mean = level @ frequency
    assert mean == pytest.approx(0.1307, abs=5e-5)
    assert np.sqrt((level - mean) ** 2 @ frequency) == pytest.approx(0.3081, abs=5e-5)


def test_the_first_digits_of_mnist_come_first(mnist: Splits) -> None:
    assert np.asarray(mnist.train.label[:10]).tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.asarray(mnist.test.label[:10]).tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def put_another_in_its_place(path: Path) -> None:
    """Leave a file that is read without complaint and differs in its last pixel."""
    content = bytearray(lzma.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.unlink()
    path.with_suffix("").write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_byte, cut, put_another_in_its_place, Path.unlink])
def test_a_damaged_bundled_file_is_never_used(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "mnist"
    shutil.copytree(data._BUNDLED, copy)
    monkeypatch.setattr(data, "_BUNDLED", copy)
    damage(copy / "train-images-idx3-ubyte.xz")
    with pytest.raises(DataError, match=f"{copy}.*train-images"):
        load_dataset("mnist", source="bundled")


@pytest.mark.usefixtures("sealed")
def test_auto_takes_the_bundled_files_without_network_or_tfds(
    mnist: Splits, tmp_path: Path
) -> None:
    assert load_dataset("mnist", data_dir=tmp_path).fingerprint() == mnist.fingerprint()


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize("source", ["auto", "tfds"])
def test_what_tfds_has_prepared_comes_first(source: Source, prepared: Path, small: Splits) -> None:
    loaded = load_dataset("mnist", source=source, data_dir=prepared)
    assert loaded.fingerprint() == small.fingerprint()


def test_bundled_is_bundled_whatever_is_prepared(prepared: Path, mnist: Splits) -> None:
    loaded = load_dataset("mnist", source="bundled", data_dir=prepared)
    assert loaded.fingerprint() == mnist.fingerprint()


def test_the_folder_is_the_one_that_tfds_is_told_of(
    prepared: Path, small: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert load_dataset("mnist").fingerprint() == small.fingerprint()


@pytest.mark.parametrize("variable", [None, ""])
def test_without_one_the_folder_is_in_the_home_directory(
    variable: str | None, prepared: Path, small: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(prepared.parent))
    prepared.rename(prepared.parent / "tensorflow_datasets")
    if variable is None:
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    else:
        monkeypatch.setenv("TFDS_DATA_DIR", variable)
    assert load_dataset("mnist").fingerprint() == small.fingerprint()


def test_a_tilde_is_the_home_directory(
    prepared: Path, small: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(prepared))
    loaded = load_dataset("mnist", source="tfds", data_dir=Path("~"))
    assert loaded.fingerprint() == small.fingerprint()


@pytest.mark.parametrize("source", ["auto", "tfds"])
@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_what_is_not_bundled_is_asked_of_tfds(
    name: str, source: Source, small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path]] = []

    def prepare(name: str, data_dir: Path) -> Path:
        asked.append((name, data_dir))
        return data_dir

    monkeypatch.setattr(tfds_source, "prepare", prepare)
    monkeypatch.setattr(tfds_source, "decode", lambda directory: small)
    assert load_dataset(name, source=source, data_dir=tmp_path) is small
    assert asked == [(name, tmp_path)]


@pytest.mark.parametrize("source", sorted(set(get_args(Source)) - {"idx", "bundled"}))
@pytest.mark.parametrize("name", ["minst", "MNIST", "emnist/letters", "", "../mnist"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str, source: Source) -> None:
    with pytest.raises(ConfigError, match=r"'fashion_mnist', 'kmnist', 'mnist'") as caught:
        load_dataset(name, source=source)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["kmnist", "minst"])
def test_only_mnist_is_bundled(name: str) -> None:
    with pytest.raises(ConfigError, match=f"only mnist .*'{name}'.*--source tfds"):
        load_dataset(name, source="bundled")


def test_idx_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="folder of the four IDX files"):
        load_dataset("anything", source="idx")


@pytest.mark.usefixtures("sealed")
def test_idx_takes_the_folder_under_any_name(
    mnist: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for packed in data._BUNDLED.glob("*.xz"):
        (tmp_path / packed.name).symlink_to(packed)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    loaded = load_dataset("my digits", source="idx", data_dir=Path("~") / tmp_path.name)
    assert loaded.fingerprint() == mnist.fingerprint()


def test_idx_files_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(ConfigError, match="add --source idx"):
        data.load_dataset("mnist", data_dir=tmp_path)


def test_a_data_dir_of_idx_files_that_does_not_exist_is_a_bad_argument(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match=f"--data-dir {missing} does not exist"):
        load_dataset("mine", source="idx", data_dir=missing)


@pytest.mark.parametrize("source", ["auto", "tfds", "idx"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("file", "is not a folder"),
        ("x" * 300, "can't be used"),
        ("~nobody_of_this_name", "can't be used"),
    ],
)
def test_a_data_dir_that_is_no_folder_is_a_bad_argument(
    source: Source, name: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    data_dir = Path(name) if name.startswith("~") else tmp_path / name
    with pytest.raises(ConfigError, match=f"--data-dir .*({problem})"):
        load_dataset("mnist", source=source, data_dir=data_dir)
