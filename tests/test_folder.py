"""The source "folder": images as people have them."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvae_jax.data.dataset import Splits
from cvae_jax.data.sources import load_dataset
from cvae_jax.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cvae_jax" / "data"


def load(root: Path, **options: Any) -> Splits:
    return load_dataset("mine", source="folder", data_dir=root, **options)


def write(path: Path, image: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def grey(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape or (28, 28), np.uint8)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Return a folder of two classes, whose images stand in given splits."""
    for split, number in (("train", 4), ("test", 2)):
        for name in ("b", "a"):
            for i in range(number):
                write(tmp_path / "two" / split / name / f"{i}.png", grey())
    return tmp_path / "two"


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def test_images_of_the_right_size_are_as_they_are_in_the_order_of_names(two: Path) -> None:
    splits = load(two)
    assert splits.class_names == ("a", "b")
    for split, found in (("train", splits.train), ("test", splits.test)):
        paths = sorted((two / split).glob("*/*"))
        np.testing.assert_array_equal(found.image[..., 0], [picture(path) for path in paths])
        np.testing.assert_array_equal(found.label, ["ab".index(p.parent.name) for p in paths])


def test_without_given_splits_a_file_stays_in_its_own_whatever_is_added(tmp_path: Path) -> None:
    root = tmp_path / "all"
    images = {name: grey() for name in (f"猫 {i}.png" for i in range(200))}
    for name, image in images.items():
        write(root / "cat" / name, image)
    first = load(root)
    assert 5 < len(first.test.label) < 40
    assert len(first.train.label) + len(first.test.label) == 200
    write(root / "cat" / "new.png", grey())
    second = load(root)
    for before, after in ((first.train, second.train), (first.test, second.test)):
        there = {one.tobytes() for one in after.image}
        assert {one.tobytes() for one in before.image} <= there


def changed(path: Path, image: np.ndarray, **options: Any) -> np.ndarray:
    """Write an image, and return what it becomes, with 28 pixels a side."""
    write(path, image, **options)
    splits = load(path.parents[2], grey=True)
    place = sorted(path.parents[1].glob("*/*")).index(path)
    return np.asarray(splits.train.image[place, ..., 0])


def test_a_photo_is_turned_cropped_and_scaled(two: Path) -> None:
    photo = np.zeros((80, 120), np.uint8)
    photo[:, :20] = 99  # beyond the middle square
    photo[:40, 20:60] = 255  # a quarter of it
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top of the scene is at the right side
    found = changed(two / "train" / "a" / "0.jpg", photo, exif=exif, quality=95)
    expected = np.zeros((28, 28))
    expected[:14, 14:] = 255
    assert np.abs(found - expected)[1:13, 15:27].max() < 5
    assert np.abs(found - expected)[:, :13].max() < 30


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((30, 30, 4), (0, 0, 0, 0), np.uint8), 255),  # transparent
        (np.full((30, 30), 32768, np.uint16), 128),
        (np.full((1, 1), 77, np.uint8), 77),
        (np.full((1, 900), 77, np.uint8), 77),
        (np.full((30, 30), True), 255),
    ],
    ids=["transparent", "16 bits", "one pixel", "a line", "one bit"],
)
def test_any_kind_of_picture_becomes_an_image(image: np.ndarray, expected: int, two: Path) -> None:
    found = changed(two / "train" / "a" / "0.png", image)
    np.testing.assert_allclose(found, expected, atol=1)


def test_the_colours_of_print_are_read(two: Path) -> None:
    path = two / "train" / "a" / "0.jpg"
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(path)
    splits = load(two)
    assert splits.image_shape == (28, 28, 3)  # one file in colour is enough
    place = sorted((two / "train").glob("*/*")).index(path)
    red, green, blue = np.asarray(splits.train.image)[place].reshape(-1, 3).mean(axis=0)
    assert red > 180 > 80 > max(green, blue)
    assert load(two, grey=True, image_size=32).image_shape == (32, 32, 1)


def png(width: int, height: int) -> bytes:
    """Return the beginning of a grey PNG, as far as a reader looks for its size."""
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(1000)))
    packed = [
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no picture"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "a folder's own end": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "10 GB of pixels": lambda path: path.write_bytes(png(100_000, 100_000)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named_or_left_out(
    kind: str, two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two / "train" / "a" / "2.png"
    BROKEN[kind](path)
    with pytest.raises(DataError, match=f"^{path} can't be read as an image: .*--skip-broken"):
        load(two)
    splits = load(two, skip_broken=True)
    assert len(splits.train.label) == 7
    assert "1 of 8 train images are left out; " in caplog.text


def test_it_is_decoded_once_and_again_when_a_file_changes(two: Path, cache: Path) -> None:
    first = load(two)
    (kept,) = cache.iterdir()
    before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert load(two).fingerprint() == first.fingerprint()
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    write(two / "train" / "a" / "0.png", grey())
    assert load(two).fingerprint() != first.fingerprint()
    assert list(cache.iterdir()) == [kept]  # what is out of date is replaced


def test_a_large_set_stays_on_the_disk(two: Path) -> None:
    image = load(two).train.image
    base = image
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[assignment]
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / "a").mkdir()])
def test_a_folder_without_images_is_refused(make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match=f"^--data-dir {tmp_path} has no train images"):
        load(tmp_path)


def test_a_folder_that_may_not_be_read_is_one_line(two: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (two / "train").chmod(0)
    try:
        with pytest.raises(ConfigError, match="Permission denied"):
            load(two)
    finally:
        (two / "train").chmod(0o700)
