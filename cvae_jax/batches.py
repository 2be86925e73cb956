"""From a data set on the device to batches, with nothing left out and nothing counted twice."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from cvae_jax import sharding
from cvae_jax.types import ArrayLike, Batch, Dataset, Gathered

_MOST_AT_A_TIME = 1000
_PIXELS_AT_A_TIME = 8_000_000  # whatever the size of an image

NO_EXAMPLE = -1
"""Index that fills up a short batch; its mask is 0."""


def put_on_device(dataset: Dataset, where: NamedSharding | None = None) -> Dataset:
    """Copy a data set to the default device, or `where` it says, images flat and still uint8."""
    put = jax.device_put if where is None else partial(sharding.put, sharding=where)
    flat = dataset.image.reshape(len(dataset.label), -1)
    return Dataset(image=put(flat), label=put(dataset.label))


def gather(dataset: Dataset, order: np.ndarray, where: NamedSharding) -> Gathered:
    """Gather the examples of rows (S, B) of indices on the host, each process its devices' own.

    Args:
        dataset: on the host, of NumPy arrays.
        order: indices; NO_EXAMPLE gathers what `take_batch` does.
        where: how (S, B, ...) lies on the devices.
    """
    num_pixels = math.prod(dataset.image.shape[1:])

    def images(index: Any) -> np.ndarray:
        rows = order[index[:2]]
        return np.asarray(dataset.image)[rows].reshape(*rows.shape, num_pixels)

    shape = (*order.shape, num_pixels)
    return Gathered(
        image=jax.make_array_from_callback(shape, where, images),
        label=sharding.put(np.asarray(dataset.label)[order], where),
    )


def images_at_a_time(num_pixels: int) -> int:
    """Say how many images of D pixels to work on at a time where nothing is trained."""
    return max(1, min(_MOST_AT_A_TIME, _PIXELS_AT_A_TIME // num_pixels))


def binarize(key: jax.Array, image: jax.Array) -> jax.Array:
    """Draw each pixel 1 with its grey level as the probability, else 0, (B, ...) float32."""
    return jax.random.bernoulli(key, image).astype(jnp.float32)


def binarize_dataset(key: jax.Array, dataset: Dataset) -> Dataset:
    """Draw a black-and-white copy of a data set on the device, (N, D) uint8 of 0 and 255.

    Image i depends on the key and i alone.
    """

    def draw(index: jax.Array, image: jax.Array) -> jax.Array:
        white = binarize(jax.random.fold_in(key, index), image.astype(jnp.float32) / 255)
        return (255 * white).astype(jnp.uint8)

    images = jnp.asarray(dataset.image)
    index = jnp.arange(len(images))
    at_a_time = images_at_a_time(images.shape[1])
    binary = jax.lax.map(lambda one: draw(*one), (index, images), batch_size=at_a_time)
    return Dataset(binary, dataset.label)


def epoch_order(
    key: jax.Array, epoch: jax.Array | int, *, num_examples: int, batch_size: int
) -> jax.Array:
    """Shuffle all examples for one epoch: (ceil(N / B), B) int32, filled up with NO_EXAMPLE.

    Args:
        key: one typed key for the whole run.
        epoch: number of the epoch; it and the key fix the order.
        num_examples: N.
        batch_size: B.
    """
    shuffled = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return in_rows(shuffled, batch_size)


def in_rows(indices: ArrayLike, batch_size: int) -> jax.Array:
    """Cut indices (N,) into rows (ceil(N / B), B), the last one filled up with NO_EXAMPLE."""
    fill = -indices.shape[0] % batch_size
    padded = jnp.pad(indices, (0, fill), constant_values=NO_EXAMPLE)
    return padded.reshape(-1, batch_size)


def take_batch(dataset: Dataset, row: jax.Array) -> Batch:
    """Gather the examples of one row (B,) of indices and scale them to [0, 1].

    NO_EXAMPLE counts from the end and so gathers the last example, which the mask then
    leaves out of every sum.
    """
    return _scale(jnp.asarray(dataset.image)[row], jnp.asarray(dataset.label)[row], row)


def in_turn(examples: Dataset | Gathered, order: jax.Array) -> tuple[Any, Callable[[Any], Batch]]:
    """Say what to scan over for the batches of `order` (S, B), and how to make one of them.

    Args:
        examples: a data set on the device, or what the host has gathered of one.
        order: indices into the data set.
    """
    if isinstance(examples, Gathered):
        return (*examples, order), lambda entry: _scale(*entry)
    return order, partial(take_batch, examples)


def _scale(image: jax.Array, label: jax.Array, row: jax.Array) -> Batch:
    return Batch(
        image=image.astype(jnp.float32) / 255,
        label=label,
        mask=(row != NO_EXAMPLE).astype(jnp.float32),
    )
