import gzip
import hashlib
import lzma
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvae_jax import idx
from cvae_jax.types import DataError, Dataset, Splits

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
}
IMAGES = "train-images-idx3-ubyte"
T = TypeVar("T")


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_directory(
    directory: Path, train: Dataset, test: Dataset, endings: tuple[str, str] = ("", "")
) -> None:
    """Write the four files of a data set; `endings` are of the images and of the labels."""
    for split, dataset in (("train", train), ("t10k", test)):
        image, label = np.asarray(dataset.image)[..., 0], np.asarray(dataset.label)
        for part, array, ending in zip(
            ("images-idx3", "labels-idx1"), (image, label), endings, strict=True
        ):
            content = PACK[ending](idx_bytes(array))
            (directory / f"{split}-{part}-ubyte{ending}").write_bytes(content)


@pytest.fixture
def part(mnist: Splits) -> Splits:
    """Give the first twenty training and ten test images of MNIST."""
    train, test = (
        Dataset(d.image[:n], d.label[:n]) for d, n in ((mnist.train, 20), (mnist.test, 10))
    )
    return Splits(train, test, 10)


@pytest.fixture
def directory(part: Splits, tmp_path: Path) -> Path:
    write_directory(tmp_path, part.train, part.test)
    return tmp_path


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 2)])
def test_parse_gives_back_what_was_written(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    parsed = idx.parse(idx_bytes(array), "a file", len(shape))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, array, strict=True)


def test_parse_reads_the_published_bytes() -> None:
    # The header of train-labels-idx1-ubyte as its authors describe it, cut to three labels.
    content = bytes.fromhex("00000801 00000003 05 00 04")
    assert idx.parse(content, "a file", num_axes=1).tolist() == [5, 0, 4]


VALID = idx_bytes(np.zeros((2, 3, 3)))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(VALID[:3], id="cut in the magic number"),
        pytest.param(VALID[:15], id="cut in the header"),
        pytest.param(VALID[:-1], id="too short"),
        pytest.param(VALID + b"\0", id="too long"),
        pytest.param(b"\1" + VALID[1:], id="wrong first byte"),
        pytest.param(b"\0\0\x0d" + VALID[3:], id="floats"),
        pytest.param(idx_bytes(np.zeros(18)), id="other number of axes"),
        pytest.param(VALID[:4] + b"\xff" * 12 + VALID[16:], id="a shape beyond any memory"),
        pytest.param(VALID[:4] + bytes(4) + b"\xff" * 8, id="nothing, in a shape beyond counting"),
        pytest.param(b"<html>404 Not Found</html>", id="a web page"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(content: bytes, directory: Path) -> None:
    path = directory / IMAGES
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        idx.load_directory(directory)


PACKED = gzip.compress(VALID)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        pytest.param(".gz", VALID, id="not a gzip"),
        pytest.param(".gz", b"", id="empty gzip"),
        pytest.param(".gz", PACKED[:5], id="gzip cut in its header"),
        pytest.param(".gz", PACKED[:-9], id="gzip cut"),
        pytest.param(".gz", PACKED + b"more", id="gzip with a tail"),
        pytest.param(".gz", PACKED[:10] + b"\xff" + PACKED[11:], id="gzip with bad codes"),
        pytest.param(".gz", PACKED[:-8] + bytes(8), id="gzip with a wrong sum"),
        pytest.param(".xz", VALID, id="not an xz"),
        pytest.param(".xz", b"", id="empty xz"),
        pytest.param(".xz", lzma.compress(VALID)[:-9], id="xz cut"),
    ],
)
def test_a_file_that_does_not_unpack_is_an_error_that_names_it(
    ending: str, content: bytes, directory: Path
) -> None:
    (directory / IMAGES).unlink()
    path = directory / f"{IMAGES}{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        idx.load_directory(directory)


def test_a_file_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/missing.* No such file"):
        idx.read_bytes(tmp_path / "missing.gz")


@pytest.mark.parametrize("endings", [("", ""), (".gz", ".gz"), (".xz", ".xz"), (".gz", "")])
def test_files_are_read_however_they_are_packed(
    endings: tuple[str, str], part: Splits, tmp_path: Path
) -> None:
    write_directory(tmp_path, part.train, part.test, endings)
    assert idx.load_directory(tmp_path).train.image.tobytes() == part.train.image.tobytes()


def test_real_mnist_written_as_idx_is_the_same_to_the_bit(mnist: Splits, tmp_path: Path) -> None:
    write_directory(tmp_path, mnist.train, mnist.test)
    loaded = idx.load_directory(tmp_path)
    assert loaded.fingerprint() == mnist.fingerprint()
    np.testing.assert_array_equal(loaded.test.image, mnist.test.image, strict=True)


def test_the_classes_are_those_of_the_training_labels(part: Splits, tmp_path: Path) -> None:
    label = np.asarray(part.train.label).copy()
    label[3] = 25
    write_directory(tmp_path, Dataset(part.train.image, label), part.test)
    assert idx.load_directory(tmp_path).num_classes == 26


def test_a_test_label_outside_the_classes_is_an_error_that_names_its_file(
    part: Splits, directory: Path
) -> None:
    letters = Dataset(part.test.image, np.array([3, 25, 0, 1, 1, 1, 1, 1, 1, 1], np.int32))
    write_directory(directory, part.train, letters)
    said = f"{directory}/t10k-labels-idx1-ubyte has the label 25, .*{directory}/train-.* 0 to 9"
    with pytest.raises(DataError, match=said):
        idx.load_directory(directory)


def test_the_same_file_plain_and_packed_is_no_conflict(directory: Path, part: Splits) -> None:
    (directory / f"{IMAGES}.gz").write_bytes(gzip.compress((directory / IMAGES).read_bytes()))
    assert len(idx.load_directory(directory).train.image) == len(part.train.image)


@pytest.mark.parametrize("name", [IMAGES, "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named_with_its_folder(name: str, directory: Path) -> None:
    (directory / name).unlink()
    split_and_part = name.split("-idx")[0]
    with pytest.raises(DataError, match=f"{directory} .*{split_and_part}.* found: none"):
        idx.load_directory(directory)


def test_two_files_for_one_part_are_both_named(directory: Path) -> None:
    (directory / "copy-of-train-images").write_bytes(b"")
    with pytest.raises(DataError, match=f"{directory} .*copy-of-train-images, {IMAGES}"):
        idx.load_directory(directory)


@pytest.mark.parametrize("num_labels", [0, 19, 21])
def test_as_many_labels_as_images_are_asked_for(num_labels: int, directory: Path) -> None:
    labels = directory / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(num_labels)))
    said = f"{directory}/{IMAGES} has 20 images and {labels} has {num_labels} labels"
    with pytest.raises(DataError, match=said):
        idx.load_directory(directory)


def test_a_data_set_without_images_is_refused(directory: Path, part: Splits) -> None:
    write_directory(directory, part.train, Dataset(part.test.image[:0], part.test.label[:0]))
    with pytest.raises(DataError, match=f"{directory}/t10k-images-idx3-ubyte has no images"):
        idx.load_directory(directory)


def test_images_of_two_sizes_are_refused(directory: Path, part: Splits) -> None:
    write_directory(directory, part.train, Dataset(part.test.image[:, 2:], part.test.label))
    said = rf"{directory}/{IMAGES} .*\(28, 28, 1\).* {directory}/t10k-images.*\(26, 28, 1\)"
    with pytest.raises(DataError, match=said):
        idx.load_directory(directory)


def test_a_folder_that_is_none_is_named(directory: Path) -> None:
    with pytest.raises(DataError, match=f"{directory}/elsewhere is not a folder"):
        idx.load_directory(directory / "elsewhere")


def test_digests_are_of_the_unpacked_files(part: Splits, tmp_path: Path) -> None:
    write_directory(tmp_path, part.train, part.test)
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in tmp_path.iterdir()}
    packed = tmp_path / "packed"
    packed.mkdir()
    write_directory(packed, part.train, part.test, (".gz", ".xz"))
    assert idx.load_directory(packed, digests).fingerprint() == part.fingerprint()

    changed = Dataset(255 - np.asarray(part.train.image), part.train.label)
    write_directory(packed, changed, part.test, (".gz", ".xz"))
    with pytest.raises(DataError, match=f"{packed}/{IMAGES}.gz is damaged"):
        idx.load_directory(packed, digests)


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
            idx.parse(idx.read_bytes(path), str(path), num_axes=3)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_keeps_a_huge_promise_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idx, "_MOST_BYTES", 5 << 20)
    path = tmp_path / f"{IMAGES}.xz"
    path.write_bytes(lzma.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(50 << 20)))
    with pytest.raises(DataError, match=f"{path} can't be read: it holds more than 5242880 bytes"):
        idx.read_bytes(path)


# Random input. Bytes from nowhere never get past the magic number: mutations of a file do.

EXTREMES = [bytes(4), b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\x80" + bytes(3), b"\0\0\0\1"]
EDITS: list[Callable[[bytes, bytes], bytes]] = [
    lambda old, new: bytes(byte ^ (new[0] or 1) for byte in old[:1]) + old[1:],
    lambda old, new: new + old[len(new) :],
    lambda old, new: new + old,
    lambda old, new: old[len(new) :],
    lambda old, new: b"",
    lambda old, new: old + old,
]


def mutate(content: bytes, seed: int) -> bytes:
    """Change a file in one to three places, every second one near its start."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        place = rng.randint(0, min(24, len(content)) if rng.random() < 0.5 else len(content))
        piece = rng.choice([*EXTREMES, rng.randbytes(1), rng.randbytes(4)])
        content = content[:place] + rng.choice(EDITS)(content[place:], piece)
    return content


def mutations(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(mutate, st.sampled_from(originals), st.integers(0, 2**32))


def outcome(call: Callable[[], T]) -> T | DataError:
    """Give what a function returns or, where the data are bad, the error that says so."""
    try:
        return call()
    except DataError as error:
        return error


IDX_FILES = [VALID, idx_bytes(np.arange(7)), idx_bytes(np.arange(24).reshape(2, 3, 4))]
ANY_IDX = st.binary(max_size=64) | mutations(IDX_FILES)


@pytest.mark.fuzz
@given(content=ANY_IDX, num_axes=st.sampled_from([1, 3]))
@example(content=VALID, num_axes=3)
def test_any_bytes_are_an_array_that_is_written_the_same_or_an_error(
    content: bytes, num_axes: int
) -> None:
    parsed = outcome(lambda: idx.parse(content, "a file", num_axes))
    if isinstance(parsed, DataError):
        assert str(parsed).startswith("a file ")
        assert "\n" not in str(parsed)
    else:
        assert idx_bytes(parsed) == content


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that all the examples of a test share."""
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.fuzz
@given(
    content=ANY_IDX | mutations([pack(VALID) for pack in PACK.values()]),
    ending=st.sampled_from(sorted(PACK)),
    packed=st.booleans(),
)
def test_any_file_is_read_or_an_error_that_names_it(
    content: bytes, ending: str, packed: bool, scratch: Path
) -> None:
    path = scratch / f"file{ending}"
    path.write_bytes(PACK[ending](content) if packed else content)
    read = outcome(lambda: idx.read_bytes(path))
    if isinstance(read, DataError):
        assert ending
        assert str(read).startswith(f"{path} can't be read: ")
    elif packed or not ending:
        assert read == content


@pytest.mark.fuzz
@given(seed=st.integers(0, 2**32))
def test_any_four_files_are_a_data_set_or_an_error_that_names_the_folder(
    seed: int, scratch: Path
) -> None:
    arrays = (array for n in (5, 3) for array in (np.ones((n, 2, 2)), np.arange(n)))
    contents = (
        mutate(idx_bytes(array), seed + i) if seed >> i & 1 else idx_bytes(array)
        for i, array in enumerate(arrays)
    )
    names = (f"{split}-{part}" for split in ("train", "t10k") for part in ("images", "labels"))
    for name, content in zip(names, contents, strict=True):
        (scratch / name).write_bytes(content)
    loaded = outcome(lambda: idx.load_directory(scratch))
    if isinstance(loaded, DataError):
        assert str(scratch) in str(loaded)
    else:
        train, test, num_classes = loaded
        assert train.image.shape[1:] == test.image.shape[1:]
        for image, label in (train, test):
            assert len(image) == len(label) > 0
            assert label.max() < num_classes
