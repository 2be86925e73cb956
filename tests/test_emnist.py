"""EMNIST, from an archive in the official layout."""

import gzip
import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from cvae_jax.data.sources import load_dataset
from cvae_jax.errors import ConfigError, DataError


class Info(NamedTuple):
    size: int
    checksum: str


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def upright() -> np.ndarray:
    """Return images (N, 28, 28) of an L, whose foot points to the right."""
    image = np.zeros((6, 28, 28), np.uint8)
    image[:, 4:24, 8:11] = 255
    image[:, 21:24, 8:20] = 255
    return image


MAPPINGS = {
    "letters": "1 65 97\n2 66 98\n3 67 99\n",
    "balanced": "0 48\n1 65\n2 97\n",
}


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data folder with the archive placed by hand."""
    from tensorflow_datasets.image_classification.mnist import EMNIST

    path = tmp_path / "downloads" / "manual" / "gzip.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for part, mapping in MAPPINGS.items():
            first = int(mapping[0])
            archive.writestr(f"gzip/emnist-{part}-mapping.txt", mapping)
            for split, number in (("train", 6), ("test", 3)):
                image, label = upright()[:number], first + np.arange(number) % 3
                name = f"gzip/emnist-{part}-{split}"
                archive.writestr(f"{name}-images-idx3-ubyte.gz", idx(image.swapaxes(1, 2)))
                archive.writestr(f"{name}-labels-idx1-ubyte.gz", idx(label))
    content = path.read_bytes()
    info = Info(len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(EMNIST, "url_infos", {EMNIST.URL: info})
    return tmp_path


@pytest.mark.parametrize("part", MAPPINGS)
def test_letters_are_upright_with_their_names(part: str, data_dir: Path) -> None:
    splits = load_dataset(f"emnist/{part}", data_dir=data_dir)
    np.testing.assert_array_equal(splits.train.image[..., 0], upright())
    np.testing.assert_array_equal(splits.train.label, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(splits.test.label, [0, 1, 2])
    assert splits.class_names == (("A", "B", "C") if part == "letters" else ("0", "A", "a"))


def test_the_archive_is_needed_once(data_dir: Path) -> None:
    first = load_dataset("emnist/letters", data_dir=data_dir)
    (data_dir / "downloads" / "manual" / "gzip.zip").unlink()
    assert load_dataset("emnist/letters", data_dir=data_dir).fingerprint() == first.fingerprint()


def test_an_unknown_part_and_a_damaged_member_are_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"'emnist/words' .* emnist/balanced, emnist/letters"):
        load_dataset("emnist/words", data_dir=data_dir)
    with pytest.raises(DataError, match=r"gzip\.zip can't be read: .*emnist-digits-mapping"):
        load_dataset("emnist/digits", data_dir=data_dir)


def test_another_archive_is_not_used(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(_: socket.socket, address: object) -> None:
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (data_dir / "downloads" / "manual" / "gzip.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"put the original gzip\.zip of emnist into .*manual"):
        load_dataset("emnist/letters", data_dir=data_dir)
