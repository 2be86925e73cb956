"""Ways to draw with a trained model; each returns a `Picture`.

They are functions of the parameters, and of labels, latents or images. A latent is in the
coordinates in which the prior p(z | y) is N(0, I), and is a handwriting.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cvae_jax.data.batches import images_at_a_time, map_rows, put_on_device, take_batch
from cvae_jax.data.dataset import ArrayLike, Dataset, Splits
from cvae_jax.drawing import figures
from cvae_jax.drawing.figures import class_captions
from cvae_jax.drawing.paths import arc, principal_components
from cvae_jax.drawing.pictures import Grid, Map, Picture, Table
from cvae_jax.errors import ConfigError
from cvae_jax.keys import Purpose
from cvae_jax.models.family import Model, Params
from cvae_jax.models.sampling import draw_images
from cvae_jax.storage.history import EpochMetrics

NUM_FRAMES = 48
"""Frames of a moving picture that ends where it began."""

_STEPS, _CHANGE = 11, (1 / 3, 2 / 3)  # images of an interpolation; where its class changes
_REACH, _REACH_STEPS = 3.0, 13  # of a direction, in standard deviations of the prior
_PLACES, _WITHIN = 9, 0.98  # along a side of a map; share of the test images between its sides
_COLUMNS, _MOST_CLASSES = 10, 26  # of reconstructions; that are drawn side by side
_IN_SHEET, _MOST_IN_SHEET = 12, 100  # images of a class; classes
_PHOTO_SCALE = 5  # a photo is shown with as many times the pixels of an image
# Of a film: rows, frames, the time of each, and how often the last one is repeated.
_FILM_ROWS, _MOST_IN_FILM, _FILM_SECONDS, _FILM_END = 6, 40, 0.4, 4

_AnyPicture = TypeVar("_AnyPicture", bound=Picture)


def samples(
    params: Params,
    label: np.ndarray,
    seed: int,
    *,
    model: Model,
    temperature: float = 1.0,
    title: str = "samples",
    description: str = "",
) -> Grid:
    """Draw one sample of p(x | y) for each label, with the label as its caption.

    Args:
        params: the model's parameters.
        label: (N,) int32, the classes to draw.
        seed: from 0 to 2**32 - 1; equal seeds give equal images.
        model: the model that `params` belong to.
        temperature: what the latents are multiplied by.
        title: the line over the picture.
        description: the name of a progress bar; empty for no bar.
    """
    image = draw_images(
        params, label, seed, model=model, temperature=temperature, description=description
    )
    caption = class_captions(label, model.config.names)
    return Grid(image, title, caption, num_columns=5 if len(label) <= 10 else 10)


def text(params: Params, label: np.ndarray, latent: np.ndarray, *, model: Model) -> Table:
    """Draw a text in several handwritings, a row for each.

    Args:
        params: the model's parameters.
        label: (L,) int32, the classes of the characters.
        latent: (R, Z), the handwritings.
        model: the model that `params` belong to.
    """
    hands = "in one hand" if len(latent) == 1 else f"in {len(latent)} hands, a row for each"
    title = f"{''.join(class_captions(label, model.config.names))} {hands}"
    image = _every_label(params, latent, label, model=model)
    return Table(image, title, num_columns=len(label), is_joined=True)


def same_style(params: Params, latent: np.ndarray, *, model: Model) -> Table:
    """Draw every class in several handwritings: a row has one latent, a column one class.

    Args:
        params: the model's parameters.
        latent: (R, Z), the handwritings; of a moving picture (T, R, Z), as from `paths.circle`.
        model: the model that `params` belong to.
    """
    label = shown_classes(model)
    return Table(
        _every_label(params, latent, label, model=model),
        f"{_shown(model)} in the same hand, a row for each hand",
        num_columns=len(label),
        columns=class_captions(label, model.config.names),
    )


def interpolate(
    params: Params,
    ends: np.ndarray,
    pair: tuple[int, int],
    *,
    model: Model,
    given: np.ndarray | None = None,
    is_moving: bool = False,
) -> Table:
    """Draw the way from images of one class to images of another, along latent and label.

    The latent turns from one end to the other (`paths.arc`). A model knows no class between two: in
    the first third of the way an image is decoded as the first class, in the last third as the
    second, and in between the log odds of its pixels are mixed, with a share of the second class
    that rises from 0 to 1. So the ends are the images of their latents, and the middle shows where
    the two classes agree.

    Args:
        params: the model's parameters.
        ends: (2, R, Z), the latents at both ends of R ways.
        pair: the class at each end.
        model: the model that `params` belong to.
        given: (2, R, H, W, C), the images that were encoded, to be shown beside their ends.
        is_moving: whether the way is gone there and back in time, instead of over the columns.
    """
    num_ways = ends.shape[1]
    # There and back, and slowly where it turns.
    swing = (1 - np.cos(_turn())) / 2
    position = swing if is_moving else np.linspace(0, 1, _STEPS)
    latent = arc(ends[0], ends[1], position).reshape(-1, ends.shape[-1])
    first, second = (
        _logits(params, latent, np.full(len(latent), one, np.int32), model=model) for one in pair
    )
    low, high = _CHANGE
    share = np.clip((position - low) / (high - low), 0, 1).astype(np.float32)
    share = np.repeat(share, num_ways).reshape(-1, 1, 1, 1)
    image = _means((1 - share) * first + share * second)
    image = image.reshape(len(position), num_ways, *image.shape[1:])
    names = class_captions(pair, model.config.names)
    title = f"from {names[0]} to {names[1]}"
    if is_moving:
        return Table(image, f"{title} and back", num_columns=min(5, num_ways))
    columns = [names[0], *[""] * (_STEPS - 2), names[1]]
    if given is not None:
        image = np.concatenate([given[:1], image, given[1:]])
        columns = ["test", *columns, "test"]
    return Table(
        image.swapaxes(0, 1).reshape(-1, *image.shape[2:]),
        title,
        num_columns=len(columns),
        columns=columns,
        note="the latent turns from end to end; the class changes in the middle third",
    )


def traverse(
    params: Params,
    dataset: Dataset,
    label: np.ndarray,
    num: int,
    *,
    model: Model,
    is_moving: bool = False,
) -> Table:
    """Follow the directions of the latent that matter most, by ± 3 standard deviations.

    They are the dimensions of the largest KL divergence where a model has one for each dimension,
    else the principal components of the encoded data set. All of them have the prior's standard
    deviation, 1, and cross in its centre.

    Args:
        params: the model's parameters.
        dataset: the images that choose the directions, on the host.
        label: (L,) int32, the classes to draw: one, or several that move side by side.
        num: the number of directions, a row for each.
        model: the model that `params` belong to.
        is_moving: whether a direction is followed in time, instead of over the columns.
    """
    latent, kl = encode(params, dataset, model=model)
    if kl.shape[1] == model.latent_dim:
        kl = kl.mean(axis=0)
        order = np.argsort(-kl)[:num]
        direction = np.eye(model.latent_dim)[order]
        rows = [f"z{i}  {kl[i]:.2f} nats" for i in order]
        title, beside = "along the latent dimensions that carry most", "its KL divergence"
    else:
        direction, variance = (array[:num] for array in principal_components(latent))
        rows = [f"{one:.1%}" for one in variance]
        title = "along the principal components of the latent"
        beside = "its share of the variance of the encoded test images"
    if is_moving:
        reach = _REACH * np.sin(_turn())
        note: str | list[str] = [f"{one:+.1f} standard deviations" for one in reach]
        columns = class_captions(label, model.config.names)
        along = reach[:, np.newaxis, np.newaxis] * direction
    else:
        reach = np.linspace(-_REACH, _REACH, _REACH_STEPS)
        note = f"by three standard deviations to both sides; beside each row {beside}"
        columns = [f"{one:+.0f}".replace("+0", "0") if one % 1 == 0 else "" for one in reach]
        along = (direction[:, np.newaxis] * reach[:, np.newaxis]).reshape(-1, model.latent_dim)
    return Table(
        _every_label(params, along.astype(np.float32), label, model=model),
        title,
        num_columns=len(columns),
        columns=columns,
        rows=rows,
        note=note,
    )


def reconstruct(params: Params, dataset: Dataset, *, model: Model) -> Table:
    """Draw images, and under each its reconstruction from the centre of q(z | x, y).

    Args:
        params: the model's parameters.
        dataset: the images, on the host.
        model: the model that `params` belong to.
    """
    latent, _ = encode(params, dataset, model=model)
    original = grey_levels(dataset.image)
    again = _means(_logits(params, latent, np.asarray(dataset.label), model=model))
    num_columns = min(_COLUMNS, len(original))
    pairs = figures.in_pairs(original, again, num_columns)
    return Table(
        pairs,
        "test images, and under each its reconstruction",
        num_columns=num_columns,
        rows=["image", "again"] * (len(pairs) // (2 * num_columns)),
        rows_in_band=2,
    )


def restyle(
    params: Params, image: np.ndarray, label: int, photo: np.ndarray, *, model: Model
) -> Table:
    """Draw every class in the hand of one image, beside the photo that it was made of.

    Args:
        params: the model's parameters.
        image: (H, W, 1) float32 in [0, 1].
        label: its class.
        photo: (h, w) grey levels in [0, 1].
        model: the model that `params` belong to.
    """
    noise = jnp.zeros((1, model.latent_dim))
    found = jax.jit(model.autoencode)(params, image[np.newaxis], np.array([label]), noise)
    classes = shown_classes(model)
    drawn = _every_label(params, np.asarray(found.latent), classes, model=model)
    # Two rows, which begin with the photo and with the image; white where no class is left.
    num_columns = 1 + math.ceil(len(drawn) / 2)
    blank = np.ones((-len(drawn) % 2, *image.shape), np.float32)
    drawn = np.concatenate([drawn, blank]).reshape(2, -1, *image.shape)
    large = np.concatenate([image[np.newaxis, np.newaxis].repeat(2, axis=0), drawn], axis=1)
    large = large.repeat(_PHOTO_SCALE, axis=2).repeat(_PHOTO_SCALE, axis=3)
    large[0, 0] = _fit_into(photo, large.shape[2:])
    return Table(
        large.reshape(-1, *large.shape[2:]),
        f"{_shown(model)} in the hand of {class_captions([label], model.config.names)[0]}",
        num_columns=num_columns,
        rows=["your picture", "prepared"],
    )


def _fit_into(photo: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a photo in the middle of white, (H, W, 1), as large as it fits."""
    scale = min(side / size for side, size in zip(shape, photo.shape, strict=False))
    height, width = (max(1, round(scale * size)) for size in photo.shape)
    picture = Image.fromarray(np.asarray(photo, np.float32))
    small = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    box = np.ones(shape, np.float32)
    box[top : top + height, left : left + width, 0] = small.clip(0, 1)
    return box


def latent_map(params: Params, dataset: Dataset, label: int | None = None, *, model: Model) -> Map:
    """Draw an encoded data set in two dimensions, and images decoded from places among it.

    The plane goes through the mean of the encoded images along their first two principal
    components. Each image is decoded from the latent of its place.

    Args:
        params: the model's parameters.
        dataset: the images to encode, on the host.
        label: the class to draw everywhere; None draws that of the nearest encoded image.
        model: the model that `params` belong to.
    """
    latent, _ = encode(params, dataset, model=model)
    (direction, variance), centre = principal_components(latent), latent.mean(axis=0)
    plane = np.zeros((2, model.latent_dim))  # a latent may have one dimension
    plane[: len(direction)] = direction[:2]
    dots = (latent - centre) @ plane.T
    side = np.linspace(-1, 1, _PLACES) * np.quantile(np.abs(dots), _WITHIN)
    place = np.stack(np.meshgrid(side, side[::-1]), axis=-1).reshape(-1, 2)
    nearest = [((dots - one) ** 2).sum(axis=1).argmin() for one in place]
    asked = np.asarray(dataset.label)[nearest] if label is None else np.full(len(place), label)
    where = (centre + place @ plane).astype(np.float32)
    return Map(
        _means(_logits(params, where, asked.astype(np.int32), model=model)),
        f"{len(dots):,} encoded test images, and images decoded from places among them",
        label=asked,
        place=place,
        dots=dots,
        dot_label=np.asarray(dataset.label),
        num_classes=model.config.num_classes,
        note=f"the first two principal components of the latent: {variance[:2].sum():.0%} of its "
        "variance; a colour is a class",
    )


def film(
    image: np.ndarray,
    epoch: Sequence[int],
    history: Sequence[EpochMetrics],
    *,
    names: Sequence[str],
) -> Table:
    """Draw the samples of a run's grids, which have the same latents, from epoch to epoch.

    Args:
        image: (T, N, H, W, C) float in [0, 1]; image i of a grid is of class i modulo Y.
        epoch: (T,) their epochs, from 1.
        history: the rows of these epochs, among others.
        names: Y, of the classes.
    """
    num_columns, num_rows = min(len(names), _MOST_CLASSES), _FILM_ROWS
    if len(names) > _MOST_CLASSES:
        num_rows = 1  # the next classes stand in the next row
    num_shown = num_columns * min(num_rows, image.shape[1] // num_columns)
    loss = {row.epoch: row.test_loss for row in history}
    notes = [f"epoch {i}: test loss {loss[i]:.2f} nats per image" for i in epoch]
    still = image[-1:].repeat(_FILM_END, axis=0)
    return Table(
        np.concatenate([image, still])[:, :num_shown],
        "the same samples, from epoch to epoch",
        num_columns=num_columns,
        columns=class_captions(range(num_columns), names),
        note=notes + notes[-1:] * _FILM_END,
        seconds=_FILM_SECONDS,
    )


def sheet(splits: Splits, name: str, seed: int) -> Table:
    """Draw images of a data set: training images at random, a row for each class.

    Args:
        splits: the data set.
        name: its name.
        seed: from 0 to 2**32 - 1; equal seeds choose equal images.
    """
    shown = np.unique(np.asarray(splits.train.label))[:_MOST_IN_SHEET]
    chosen = choose(splits.train, np.repeat(shown, _IN_SHEET).tolist(), seed)
    height, width, channels = splits.image_shape
    size = f"{height} x {width} pixels, {'grey' if channels == 1 else 'in colour'}"
    number = f"{len(splits.train.label):,} training and {len(splits.test.label):,} test images"
    return Table(
        grey_levels(chosen.image),
        name,
        num_columns=_IN_SHEET,
        rows=class_captions(shown, splits.names),
        note=f"{number} of {splits.num_classes} classes, {size}",
    )


def choose_epochs(epoch: Sequence[int]) -> list[int]:
    """Choose epochs for a film: at most 40, most of them early ones, when most changes."""
    if len(epoch) <= _MOST_IN_FILM:
        return [*epoch]
    place = np.geomspace(1, len(epoch), _MOST_IN_FILM).round().astype(int) - 1
    return [epoch[i] for i in np.unique(place)]


def binarize(picture: _AnyPicture, seed: int) -> _AnyPicture:
    """Return a picture whose pixels are drawn: white with their mean as the probability.

    In a moving picture a pixel that keeps its mean keeps its colour.
    """
    rng = np.random.default_rng([seed, Purpose.PIXELS])
    threshold = rng.random(picture.image.shape[-4:], np.float32)
    white = (threshold < picture.image).astype(np.float32)
    return dataclasses.replace(picture, image=white)


def choose(dataset: Dataset, label: Sequence[int], seed: int) -> Dataset:
    """Choose an image at random for each label; no image twice before all of its class.

    Args:
        dataset: the images to choose from, on the host.
        label: the classes.
        seed: from 0 to 2**32 - 1; equal seeds choose equal images.

    Raises:
        ConfigError: there is no image of a class.
    """
    rng, of = np.random.default_rng([seed, Purpose.CHOICE]), np.asarray(dataset.label)
    left = {one: cycle(rng.permutation(np.flatnonzero(of == one))) for one in set(label)}
    missing = sorted(set(label) - set(of.tolist()))
    if missing:
        there = ", ".join(map(str, np.unique(of)))
        raise ConfigError(f"the test set has no image of class {missing[0]}; choose one of {there}")
    index = [next(left[one]) for one in label]
    return Dataset(np.asarray(dataset.image)[index], of[index])


def encode(params: Params, dataset: Dataset, *, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres of q(z | x, y), (N, Z), and the KL divergences, (N, G), of images.

    Args:
        params: the model's parameters.
        dataset: the images, on the host.
        model: the model that `params` belong to.
    """

    @jax.jit
    def encode_row(params: Params, dataset: Dataset, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        image, label, _ = take_batch(dataset, row)
        noise = jnp.zeros((len(label), model.latent_dim))
        found = model.autoencode(params, image, label, noise)
        return found.latent, found.kl

    encode_all = partial(encode_row, params, put_on_device(dataset))
    found: tuple[np.ndarray, np.ndarray] = _by_rows(
        encode_all, len(dataset.label), model, "encoding"
    )
    return found


def shown_classes(model: Model) -> np.ndarray:
    """Return the classes that are drawn where every class is, (L,) int32."""
    return np.arange(min(model.config.num_classes, _MOST_CLASSES), dtype=np.int32)


def _shown(model: Model) -> str:
    number = model.config.num_classes
    return "every class" if number <= _MOST_CLASSES else f"{_MOST_CLASSES} of {number} classes"


def grey_levels(image: ArrayLike) -> np.ndarray:
    """Return images of whole grey levels as float32 in [0, 1]."""
    return np.asarray(image, np.float32) / 255


def _every_label(
    params: Params, latent: np.ndarray, label: np.ndarray, *, model: Model
) -> np.ndarray:
    """Decode latents, (R, Z) or (T, R, Z), as each class: (R * L, H, W, C) or (T, R * L, ...)."""
    flat = latent.reshape(-1, model.latent_dim)
    asked = np.tile(label.astype(np.int32), len(flat))
    image = _means(_logits(params, flat.repeat(len(label), axis=0), asked, model=model))
    return image.reshape(*latent.shape[:-2], -1, *image.shape[1:])


def _logits(params: Params, latent: np.ndarray, label: np.ndarray, *, model: Model) -> np.ndarray:
    """Decode latents, (N, Z), each as its class, (N,); return logits, (N, H, W, C)."""

    @jax.jit
    def decode_row(
        params: Params, latent: jax.Array, label: jax.Array, row: jax.Array
    ) -> jax.Array:
        return model.decode(params, latent[row], label[row])

    decode_all = partial(decode_row, params, jnp.asarray(latent), jnp.asarray(label))
    return np.asarray(_by_rows(decode_all, len(latent), model, "drawing"))


def _by_rows(function: Callable[[jax.Array], Any], number: int, model: Model, what: str) -> Any:
    at_a_time = images_at_a_time(math.prod(model.config.image_shape))
    return map_rows(function, number, min(number, at_a_time), description=what)


def _means(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.sigmoid(logits))


def _turn() -> np.ndarray:
    """Return the angles of the frames of a moving picture."""
    return np.linspace(0, 2 * np.pi, NUM_FRAMES, endpoint=False)
