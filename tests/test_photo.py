"""A person's picture of a digit: found, and prepared as MNIST's digits were."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from cvae_jax.data.batches import put_on_device
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.drawing import photo
from cvae_jax.errors import UserError
from cvae_jax.evaluation.judge import BUNDLED, judge_all, read

SHAPE = (28, 28, 1)
NUM = 100


def seen(images: list[np.ndarray], mnist: Splits) -> np.ndarray:
    """Return the classes that MNIST's judge sees in images."""
    judge = read(BUNDLED, mnist, mnist.fingerprint())
    image = np.rint(255 * np.stack(images)).astype(np.uint8)
    dataset = put_on_device(Dataset(image, np.zeros(len(image), np.int32)))
    verdict = judge_all(judge, dataset, image_shape=SHAPE, num_classes=10)
    return np.argmax(verdict.logits, axis=-1)


def scale(image: np.ndarray, size: int) -> np.ndarray:
    picture = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32) / 255


# Ways to photograph a digit, from its ink, 1 on 0, somewhere in a picture.


def white_on_noise(ink: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return 0.15 + 0.7 * ink + random.normal(0, 0.06, ink.shape)


def inverted(ink: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return 1 - white_on_noise(ink, random)


def pencil_in_uneven_light(ink: np.ndarray, random: np.random.Generator) -> np.ndarray:
    y, x = (place / side for place, side in zip(np.indices(ink.shape), ink.shape, strict=True))
    light = 0.7 + random.uniform(-0.4, 0.4) * (y - 0.5) + random.uniform(-0.4, 0.4) * (x - 0.5)
    return light * (1 - 0.3 * ink) + random.normal(0, 0.02, ink.shape)


def on_a_desk(ink: np.ndarray, random: np.random.Generator) -> np.ndarray:
    picture = pencil_in_uneven_light(ink, random)
    picture[:, -20:], picture[:15] = 0.1, 0.2  # beyond the paper
    picture[5:9, 5:9] = 0.1  # and a speck on it
    return picture


@pytest.mark.parametrize(
    "take", [white_on_noise, inverted, pencil_in_uneven_light, on_a_desk], ids=lambda f: f.__name__
)
def test_a_test_image_in_a_photo_comes_back_as_its_digit(
    take: Callable[[np.ndarray, np.random.Generator], np.ndarray], mnist: Splits
) -> None:
    random, found = np.random.default_rng(0), []
    for image in np.asarray(mnist.test.image)[:NUM, ..., 0]:
        size, sides = int(random.integers(40, 200)), random.integers(280, 500, 2)
        ink = np.zeros(sides, np.float32)
        top, left = (int(random.integers(10, side - size - 20)) for side in sides)
        ink[top : top + size, left : left + size] = scale(image, size)
        found.append(photo.prepare(take(ink, random).clip(0, 1), SHAPE))
    assert (seen(found, mnist) == mnist.test.label[:NUM]).sum() >= 97


def test_a_card_with_a_digit_that_lies_on_something_grey_is_read(mnist: Splits) -> None:
    random, found = np.random.default_rng(0), []
    for image in np.asarray(mnist.test.image)[:40, ..., 0]:
        size = int(random.integers(60, 200))
        picture = random.normal(0.5, 0.06, (400, 300)).astype(np.float32)
        picture[50 : 50 + size, 60 : 60 + size] = 1 - scale(image, size)
        found.append(photo.prepare(picture, SHAPE))
    assert (seen(found, mnist) == mnist.test.label[:40]).sum() >= 38


def test_an_image_of_mnist_is_as_it_was(mnist: Splits) -> None:
    image = np.asarray(mnist.test.image)[:40] / np.float32(255)
    found = np.stack([photo.prepare(one[..., 0], SHAPE) for one in image])
    # Half a pixel of rounding here and there; another digit would be at 0.15.
    assert np.abs(found - image).mean() < 0.035
    place = np.arange(28)
    for axis in (1, 2):
        centre = (found.sum(axis=(3 - axis, 3)) * place).sum(axis=1) / found.sum(axis=(1, 2, 3))
        assert np.abs(centre - 14).max() < 0.8


@pytest.mark.parametrize("shape", [(28, 28, 1), (40, 20, 1), (5, 4, 1)])
def test_the_digit_keeps_its_aspect_and_fills_the_box(shape: tuple[int, int, int]) -> None:
    picture = np.zeros((300, 400))
    picture[40:240, 100:150] = 1  # four times as high as wide
    found = photo.prepare(picture, shape)
    assert found.shape == shape
    rows, columns = (np.flatnonzero(found[..., 0].max(axis=axis) > 0.5) for axis in (1, 0))
    height = round(min(shape[:2]) * 20 / 28)
    assert len(rows) == height
    assert len(columns) == max(1, round(height / 4))


SEVEN = [[(0, 8), (30, 3), (72, 0), (60, 30), (44, 62), (34, 100)], [(22, 52), (40, 50), (66, 48)]]
FOUR = [[(40, 0), (20, 30), (0, 60), (40, 58), (80, 54)], [(62, 25), (58, 60), (52, 105)]]
THREE = [
    [(10, 8), (40, 0), (65, 15), (55, 38), (30, 46), (58, 54), (70, 76), (50, 98), (20, 100)],
]


def ballpoint(strokes: list[list[tuple[int, int]]]) -> Image.Image:
    """Return a sheet of paper with thin strokes, 1500 x 1100 pixels."""
    sheet = Image.new("L", (1500, 1100), 230)
    draw = ImageDraw.Draw(sheet)
    for stroke in strokes:
        draw.line([(500 + 4 * x, 300 + 4 * y) for x, y in stroke], fill=60, width=6)
    return sheet.filter(ImageFilter.GaussianBlur(1.5))


@pytest.mark.parametrize(("strokes", "digit"), [(SEVEN, 7), (FOUR, 4), (THREE, 3)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_ballpoint_in_a_large_jpeg_is_thickened_and_stands_upright(
    strokes: list[list[tuple[int, int]]],
    digit: int,
    is_turned: bool,
    tmp_path: Path,
    mnist: Splits,
) -> None:
    exif, sheet = Image.Exif(), ballpoint(strokes)
    if is_turned:
        sheet, exif[0x0112] = sheet.rotate(90, expand=True), 6  # a telephone held upright
    sheet.save(tmp_path / "photo.jpg", exif=exif)
    found = photo.prepare(photo.read(tmp_path / "photo.jpg"), SHAPE)
    assert seen([found], mnist) == [digit]
    usual = np.asarray(mnist.train.image[:2000]).mean(axis=(1, 2, 3)) / 255
    assert np.quantile(usual, 0.05) < found.mean() < np.quantile(usual, 0.95)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I;16", "F", "LA", "RGBA"])
@pytest.mark.parametrize("is_white", [False, True])
def test_every_kind_of_picture_is_read(mode: str, is_white: bool, tmp_path: Path) -> None:
    sheet = ballpoint(SEVEN).resize((300, 220))
    ink = 1 - np.asarray(sheet, np.float32) / 230
    level = ink if is_white else 1 - ink
    if mode == "I;16":
        picture = Image.fromarray((300 + 5000 * level).astype(np.uint16))
    elif mode == "F":
        picture = Image.fromarray(level.astype(np.float32) * 7 - 3)
    elif mode in ("LA", "RGBA"):  # drawn on nothing
        picture = Image.new("LA", sheet.size, (255 * is_white, 0))
        picture.putalpha(Image.fromarray((255 * ink.clip(0, 1)).astype(np.uint8)))
        picture = picture.convert(mode)
    else:
        picture = Image.fromarray((255 * level.clip(0, 1)).astype(np.uint8))
        picture = picture.convert(mode, dither=Image.Dither.NONE)
    path = tmp_path / ("a.tif" if mode in ("F", "CMYK", "I;16") else "a.png")
    picture.save(path)
    grey = photo.read(path)
    assert grey.dtype == np.float32
    assert grey.min() >= 0
    assert grey.max() <= 1
    expected = photo.prepare(1 - ink, SHAPE)
    assert np.abs(photo.prepare(grey, SHAPE) - expected).mean() < 0.03


@pytest.mark.parametrize(
    "content",
    [None, b"", b"text", Path(__file__).read_bytes(), "truncated"],
    ids=["missing", "empty", "text", "code", "truncated"],
)
def test_what_is_no_picture_is_one_line(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if content == "truncated":
        file = io.BytesIO()
        ballpoint(SEVEN).save(file, "PNG")
        content = file.getvalue()[:500]
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"a\.png (is no picture; give|can't be read as a picture: )"
    ):
        photo.read(path)
    with pytest.raises(UserError, match=r"a\.png"):
        photo.read_colours(path)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (50, 60)])
@pytest.mark.parametrize("level", [0.0, 1.0, "noise", "gradient"])
def test_a_picture_of_nothing_is_one_line(shape: tuple[int, int], level: float | str) -> None:
    if level == "noise":
        picture = np.random.default_rng(0).normal(0.5, 0.1, shape).clip(0, 1)
    elif level == "gradient":
        picture = np.indices(shape).sum(axis=0) / sum(shape)
    else:
        picture = np.full(shape, level)
    with pytest.raises(UserError, match="no digit stands out from the background of the picture"):
        photo.prepare(picture, SHAPE)
