"""A person's own picture of a digit, prepared as the digits of MNIST were.

LeCun et al. (1998) scaled each digit, with its aspect kept, into a box of 20 of an image's 28
pixels and put its centre of mass into the middle. Here the digit has to be found first: darker or
lighter than a background whose light changes slowly, among noise, specks and the edges of paper.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from cvae_jax.errors import UserError
from cvae_jax.runtime.files import reason

_LARGEST = 2048  # pixels along the longer side that are read
_LOOKED_AT = 256  # pixels along the longer side on which the digit is looked for
_BOX = 20 / 28  # of an image's shorter side, for the digit
_MARGIN = 1 / 3  # around the digit when it is looked at once more
# Ink differs from its background by this share of the difference of the darkest ink, by as many
# standard deviations of the noise, and by this share of the difference of black and white. The
# darkest ink has as many pixels; a speck has fewer.
_SHARE_OF_PEAK, _TIMES_NOISE, _FAINTEST, _PEAK_PIXELS = 0.35, 5.0, 0.05, 20
_LEAST_PART = 0.06  # ink of a part of the digit, as a share of its largest part
# What touches the picture's border, such as a table's edge, is no digit where something else is at
# least this long, as a share of the picture.
_SHORTEST = 0.05
# What fills its box by more than this is a card. A thick 1 may too, but has no digit on it, half as
# high.
_CARD, _CARD_EDGE, _ON_CARD = 0.65, 0.03, 0.4
# A ballpoint's stroke would vanish in the box. It is drawn as wide as those of the thinnest quarter
# of MNIST's digits are, as a share of the digit's longer side.
_LEAST_STROKE = 0.08


class _Found(NamedTuple):
    """What stands out from the background of a picture, (h, w)."""

    ink: np.ndarray  # of it alone, in [0, 1] and of any size
    top: int  # of its box in the picture, pixels
    bottom: int
    left: int
    right: int
    fill: float  # share of the box that is ink
    is_free: bool  # it does not touch the picture's border


def read(path: Path) -> np.ndarray:
    """Return a picture as grey levels, (h, w) float32 in [0, 1], the way up it was taken.

    Raises:
        UserError: there is no such file, or it is no picture that Pillow can read.
    """
    with _reading(path), Image.open(path) as file:
        picture: Image.Image = file
        if picture.mode in "1P":  # whose pixels can't be averaged
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        picture.thumbnail((_LARGEST, _LARGEST))  # a JPEG is decoded in small at once
        return _to_grey(ImageOps.exif_transpose(picture))


def read_colours(path: Path) -> np.ndarray:
    """Return the pixels of a picture, (h, w, 3) uint8; raise `UserError` as `read` does."""
    with _reading(path), Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no picture; give a PNG or a JPEG, for example") from error
    except Exception as error:  # Pillow raises many types on damaged files
        raise UserError(f"{path} can't be read as a picture: {reason(error)}") from error


def _to_grey(picture: Image.Image) -> np.ndarray:
    if picture.mode[0] in "IF":  # more than 256 grey levels, in an unknown range
        levels = np.nan_to_num(np.asarray(picture, np.float32))
        return (levels - levels.min()) / max(float(np.ptp(levels)), 1e-6)
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB").convert("LA")
    level, alpha = np.moveaxis(np.asarray(picture, np.float32) / 255, -1, 0)
    # Whoever draws with white on nothing means black behind it.
    is_white = (level * alpha).sum() > 0.5 * alpha.sum()
    return level * alpha if is_white else level * alpha + 1 - alpha


def prepare(photo: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Find the digit in a picture; return it as an image of a data set, (H, W, 1) in [0, 1].

    Args:
        photo: (h, w) grey levels in [0, 1], of ink on paper or the other way round.
        image_shape: (H, W, 1).

    Raises:
        UserError: nothing in the picture differs clearly from its background.
    """
    found = _find(photo)
    if found and found.fill > _CARD:
        card = _cut(photo, found, -_CARD_EDGE)
        digit = _find(card)
        if digit and digit.is_free and digit.bottom - digit.top > _ON_CARD * len(card):
            photo, found = card, digit
    if not found:
        raise UserError(
            "no digit stands out from the background of the picture; draw it darker, larger, or "
            "crop the picture"
        )
    # Once more on the digit alone: a small one has more pixels now, and its light is more even.
    found = _find(_cut(photo, found, _MARGIN)) or found
    return _fit(_thicken(found.ink), image_shape)


def _cut(photo: np.ndarray, found: _Found, margin: float) -> np.ndarray:
    """Cut what was found out of a picture, with a margin as a share of its longer side."""
    edge = round(margin * max(found.bottom - found.top, found.right - found.left))
    top, left = (max(0, start - edge) for start in (found.top, found.left))
    return photo[top : found.bottom + edge, left : found.right + edge]


def _find(photo: np.ndarray) -> _Found | None:
    """Find a digit in a picture, (h, w); return None where nothing stands out."""
    if not photo.size:
        return None
    scale = _LOOKED_AT / max(photo.shape)
    height, width = (max(1, round(scale * side)) for side in photo.shape)
    level = _resize(photo, height, width)
    difference = ndimage.uniform_filter(level - _background(level), 3)
    # The ink covers less than the background, whose noise is as often darker as lighter.
    ink = difference * np.sign((difference**3).sum())
    noise = 1.4826 * float(np.median(-ink[ink < 0])) if (ink < 0).any() else 0.0
    parts = _stand_out(ink, noise)
    # Edges of paper and tables would hide a fainter digit.
    at_border = np.zeros(ink.shape, bool)
    for part in parts:
        at_border[part] = _is_at_border(part, ink.shape)
    inside = _stand_out(ink * ~ndimage.maximum_filter(at_border, 5), noise)
    inside = [part for part in inside if not _is_at_border(part, ink.shape)]
    is_free = any(max(map(np.ptp, part)) >= _SHORTEST * _LOOKED_AT for part in inside)
    parts = inside if is_free else parts
    if not parts:
        return None
    mass = [ink[part].sum() for part in parts]
    chosen = np.zeros(ink.shape, bool)
    for part, one in zip(parts, mass, strict=True):
        chosen[part] = one >= _LEAST_PART * max(mass)
    usual = float(np.median(ink[chosen]))
    # The soft edge of a stroke is lighter than the threshold, and lies around the part.
    ink = np.clip((ink - 0.2 * usual) / (0.7 * usual), 0, 1) * ndimage.maximum_filter(chosen, 5)
    rows, columns = (np.flatnonzero((ink > 0.1).any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return _Found(
        ink[top:bottom, left:right],
        *(int(top / scale), math.ceil(bottom / scale)),
        *(int(left / scale), math.ceil(right / scale)),
        fill=float(chosen.sum() / ((bottom - top) * (right - left))),
        is_free=is_free,
    )


def _background(level: np.ndarray) -> np.ndarray:
    """Return what a picture would be without ink: a surface of second order, most of it on it."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in level.shape)
    basis = np.stack([np.outer(y**i, x**j) for i in range(3) for j in range(3 - i)], axis=-1)
    some, value = basis[::4, ::4].reshape(-1, 6), level[::4, ::4].ravel()
    weight = np.ones_like(value)
    # The least sum of absolute errors, which a minority does not move, by weighted least squares.
    for _ in range(20):
        weighted = some * weight[:, np.newaxis]
        surface = np.linalg.lstsq(weighted, value * weight, rcond=None)[0]
        weight = 1 / np.sqrt(np.maximum(np.abs(value - some @ surface), 1e-3))
    return np.asarray(basis @ surface)


def _stand_out(ink: np.ndarray, noise: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the parts of a picture, (h, w), that differ clearly from its background."""
    peak = float(np.sort(ink, axis=None)[-_PEAK_PIXELS:][0])
    return _connected(ink > max(_SHARE_OF_PEAK * peak, _TIMES_NOISE * noise, _FAINTEST))


def _connected(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows and columns of the pixels of each connected part, corners included."""
    label, _ = ndimage.label(mask, np.ones((3, 3)))
    return [*ndimage.value_indices(label, ignore_value=0).values()]


def _is_at_border(part: tuple[np.ndarray, np.ndarray], shape: tuple[int, ...]) -> bool:
    ends = zip(part, shape, strict=True)
    return any(place.min() == 0 or place.max() == side - 1 for place, side in ends)


def _thicken(ink: np.ndarray) -> np.ndarray:
    """Widen strokes, (h, w) in [0, 1], that are too thin for a data set's few pixels."""
    mask = np.pad(ink > 0.5, 1)
    border = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
    width = 2 * mask.sum() / max(1, border)  # of a stroke; its border has two sides
    radius = round((_LEAST_STROKE * max(ink.shape) - width) / 2)
    return ink if radius < 1 else ndimage.maximum_filter(np.pad(ink, radius), 2 * radius + 1)


def _fit(ink: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Scale a digit into its box and put its centre of mass into the middle, (H, W, 1)."""
    sides = image_shape[:2]
    scale = _BOX * min(sides) / max(ink.shape)
    rows, columns = (max(1, round(scale * side)) for side in ink.shape)
    small = np.clip(_resize(ink, rows, columns), 0, 1)
    small /= small.max()
    image = np.zeros(sides, np.float32)
    # MNIST's centres of mass are at 14 of 28 pixels that are counted from 0.
    top, left = (
        min(max(0, round(side / 2 - centre)), side - size)
        for side, centre, size in zip(
            sides, ndimage.center_of_mass(small), small.shape, strict=True
        )
    )
    image[top : top + rows, left : left + columns] = small
    return image[..., np.newaxis]


def _resize(level: np.ndarray, height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(np.asarray(level, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
