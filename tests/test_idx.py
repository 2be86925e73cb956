"""The IDX format: what is read, and that damage is reported with the file's name."""

import gzip
import hashlib
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cvae_jax.data import idx
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import DataError

PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_directory(directory: Path, splits: Splits, endings: tuple[str, str] = ("", "")) -> None:
    """Write the four files of a data set; `endings` are those of the images and the labels."""
    for split, (image, label) in (("train", splits.train), ("t10k", splits.test)):
        arrays = (np.asarray(image)[..., 0], np.asarray(label))
        for part, array, ending in zip(
            ("images-idx3", "labels-idx1"), arrays, endings, strict=True
        ):
            content = PACK[ending](idx_bytes(array))
            (directory / f"{split}-{part}-ubyte{ending}").write_bytes(content)


@pytest.fixture
def small() -> Splits:
    """Return 20 training and 10 test images of 5 x 4 pixels."""
    rng = np.random.default_rng(0)
    train, test = (
        Dataset(rng.integers(0, 256, (n, 5, 4, 1), np.uint8), np.arange(n, dtype=np.int32) % 10)
        for n in (20, 10)
    )
    return Splits(train, test, 10)


@pytest.fixture
def directory(small: Splits, tmp_path: Path) -> Path:
    write_directory(tmp_path, small)
    return tmp_path


def test_the_published_bytes_are_read(tmp_path: Path) -> None:
    # The header of train-labels-idx1-ubyte as its authors describe it, cut to three labels.
    (tmp_path / "file").write_bytes(bytes.fromhex("00000801 00000003 05 00 04"))
    assert idx.read(tmp_path / "file", num_axes=1).tolist() == [5, 0, 4]


@pytest.mark.parametrize("endings", [("", ""), (".gz", ".xz"), (".xz", "")])
def test_files_are_read_however_they_are_packed(
    endings: tuple[str, str], small: Splits, tmp_path: Path
) -> None:
    write_directory(tmp_path, small, endings)
    assert idx.load_directory(tmp_path).fingerprint() == small.fingerprint()


def test_names_as_other_sites_write_them_and_a_second_packed_file_are_no_obstacle(
    small: Splits, directory: Path
) -> None:
    for path in list(directory.iterdir()):
        path.rename(directory / f"emnist-{path.name.replace('-idx', '.idx')}")
    (directory / f"emnist-{IMAGES.replace('-idx', '.idx')}.gz").write_bytes(b"damaged, not used")
    assert idx.load_directory(directory).fingerprint() == small.fingerprint()


def test_the_classes_are_those_of_the_training_labels(small: Splits, directory: Path) -> None:
    small.train.label[3] = 25
    write_directory(directory, small)
    assert idx.load_directory(directory).num_classes == 26


VALID = idx_bytes(np.zeros((20, 5, 4)))
HEADER = VALID[:4]
GZIPPED = gzip.compress(VALID, mtime=0)  # a test's parameters have to be the same in each process


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", "starts with nothing, expected 00000803"),
        (IMAGES, VALID[:15], "not an IDX file"),
        (IMAGES, VALID[:-1], r"shape \[20, 5, 4\], asks for 400 bytes of data; it holds 399"),
        (IMAGES, VALID + b"\0", "it holds more"),
        (IMAGES, idx_bytes(np.zeros(18)), "with 3 axes: it starts with 00000801"),
        (IMAGES, HEADER + b"\xff" * 12 + VALID[16:], "is damaged"),
        (IMAGES, HEADER + bytes(4) + b"\xff" * 8, "is damaged"),
        (f"{IMAGES}.gz", VALID, "can't be read: Not a gzipped file"),
        (f"{IMAGES}.gz", GZIPPED[:-9], "can't be read"),
        (f"{IMAGES}.gz", GZIPPED[:-8] + bytes(8), "can't be read: CRC check failed"),
        (f"{IMAGES}.xz", lzma.compress(VALID)[:-9], "can't be read"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    name: str, content: bytes, message: str, directory: Path
) -> None:
    (directory / IMAGES).unlink()
    (directory / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{directory}/{name} .*{message}"):
        idx.load_directory(directory)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LABELS, None, "train-labels.* found: none"),
        ("copy-of-train-images", b"", f"found: copy-of-train-images, {IMAGES}"),
        (LABELS, idx_bytes(np.zeros(0)), "20 training images and 0 labels"),
        (IMAGES, idx_bytes(np.zeros((20, 4, 4))), "images of two sizes"),
        (IMAGES, idx_bytes(np.zeros((0, 5, 4))), "no training images"),
        (LABELS, idx_bytes(np.ones(20)), "test labels from 0 to 9, outside the classes, 0 to 1"),
    ],
)
def test_files_that_make_no_data_set_are_an_error_that_names_the_folder(
    name: str, content: bytes | None, message: str, directory: Path
) -> None:
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{directory} .*{message}"):
        idx.load_directory(directory)


def test_digests_are_those_of_the_unpacked_files(small: Splits, directory: Path) -> None:
    digests = {
        path.name.split("-idx")[0]: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
    }
    (directory / f"{IMAGES}.gz").write_bytes(gzip.compress((directory / IMAGES).read_bytes()))
    (directory / IMAGES).unlink()
    assert idx.load_directory(directory, digests).fingerprint() == small.fingerprint()

    (directory / f"{IMAGES}.gz").write_bytes(GZIPPED)
    with pytest.raises(DataError, match=f"{directory}/{IMAGES}.gz is damaged: its SHA-256"):
        idx.load_directory(directory, digests)


@pytest.mark.parametrize("ending", [".gz", ".xz"])
@pytest.mark.parametrize("start", [VALID, b"no IDX"], ids=["IDX", "no IDX"])
def test_a_small_file_that_unpacks_to_a_huge_one_is_not_unpacked(
    start: bytes, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{IMAGES}{ending}"
    path.write_bytes(PACK[ending](start + bytes(50 << 20)))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=str(path)):
            idx.read(path, num_axes=3)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", sorted(PACK))
def test_any_cut_or_flipped_byte_is_an_error_or_a_valid_file(ending: str, tmp_path: Path) -> None:
    content = PACK[ending](idx_bytes(np.arange(24).reshape(2, 3, 4)))
    path = tmp_path / f"file{ending}"
    for place in range(len(content)):
        flipped = content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]
        for damaged in (content[:place], flipped):
            path.write_bytes(damaged)
            try:
                array = idx.read(path, num_axes=3)
            except DataError as error:
                is_right = str(error).startswith(f"{path} ") and "\n" not in str(error)
            else:  # a pixel, or a byte of gzip's own header
                is_right = array.size == 24 and damaged == flipped
            assert is_right
