"""Batches of a data set: every example exactly once, in an order that a key fixes."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from tqdm.auto import tqdm

from cvae_jax.data.dataset import ArrayLike, Dataset
from cvae_jax.runtime.devices import put

_MOST_IMAGES_AT_A_TIME = 1000
_MOST_PIXELS_AT_A_TIME = 8_000_000

NO_EXAMPLE = -1
"""The index that fills up a short batch. Its mask is 0."""


class Batch(NamedTuple):
    """The examples of a batch as a model takes them."""

    image: jax.Array  # (B, ...) float32 grey levels in [0, 1]
    label: jax.Array  # (B,) int32
    mask: jax.Array  # (B,) float32: 1, or 0 for an example that only fills up the batch


class Gathered(NamedTuple):
    """The examples of several batches, gathered by the host."""

    image: jax.Array  # (S, B, D) uint8
    label: jax.Array  # (S, B) int32


def epoch_order(
    epoch: jax.Array | int, key: jax.Array, *, num_examples: int, batch_size: int
) -> jax.Array:
    """Return the indices of an epoch, shuffled: (ceil(N / B), B) int32, filled with NO_EXAMPLE.

    The order is a function of the key, one for the whole run, and the epoch's number.
    """
    shuffled = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return in_rows(shuffled, batch_size)


def in_rows(indices: ArrayLike, batch_size: int) -> jax.Array:
    """Cut indices (N,) into rows (ceil(N / B), B), the last one filled up with NO_EXAMPLE."""
    fill = -indices.shape[0] % batch_size
    padded = jnp.pad(indices, (0, fill), constant_values=NO_EXAMPLE)
    return padded.reshape(-1, batch_size)


def put_on_device(dataset: Dataset, sharding: NamedSharding | None = None) -> Dataset:
    """Copy a data set to the default device, or as `sharding` says; images are (N, D) uint8."""
    copy = jax.device_put if sharding is None else partial(put, sharding=sharding)
    flat = dataset.image.reshape(len(dataset.label), -1)
    return Dataset(image=copy(flat), label=copy(dataset.label))


def gather(dataset: Dataset, order: np.ndarray, sharding: NamedSharding) -> Gathered:
    """Gather batches on the host. Each process gathers what its own devices need.

    Args:
        dataset: NumPy arrays on the host.
        order: (S, B) indices. NO_EXAMPLE gathers the last example, as `take_batch` does.
        sharding: how arrays (S, B, ...) lie on the devices.
    """
    num_pixels = math.prod(dataset.image.shape[1:])

    def gather_images(index: Any) -> np.ndarray:
        rows = order[index[:2]]
        return np.asarray(dataset.image)[rows].reshape(*rows.shape, num_pixels)

    shape = (*order.shape, num_pixels)
    return Gathered(
        image=jax.make_array_from_callback(shape, sharding, gather_images),
        label=put(np.asarray(dataset.label)[order], sharding),
    )


def take_batch(dataset: Dataset, row: jax.Array) -> Batch:
    """Take the examples of one row (B,) of indices and scale them to [0, 1].

    NO_EXAMPLE is -1, so it takes the last example; the mask leaves that out of all sums.
    """
    return _scale(jnp.asarray(dataset.image)[row], jnp.asarray(dataset.label)[row], row)


def in_turn(examples: Dataset | Gathered, order: jax.Array) -> tuple[Any, Callable[[Any], Batch]]:
    """Return what `lax.scan` runs over, one entry for each row, and what makes a batch of an entry.

    Args:
        examples: a data set on the device, or the batches of `order`, gathered by the host.
        order: (S, B) indices into the data set.
    """
    if isinstance(examples, Gathered):
        return (*examples, order), lambda entry: _scale(*entry)
    return order, partial(take_batch, examples)


def _scale(image: jax.Array, label: jax.Array, row: jax.Array) -> Batch:
    mask = (row != NO_EXAMPLE).astype(jnp.float32)
    return Batch(image.astype(jnp.float32) / 255, label, mask)


def images_at_a_time(num_pixels: int) -> int:
    """Return how many images of D pixels to put in a batch where nothing is trained."""
    return max(1, min(_MOST_IMAGES_AT_A_TIME, _MOST_PIXELS_AT_A_TIME // num_pixels))


def map_rows(
    function: Callable[[jax.Array], Any],
    num_examples: int,
    batch_size: int,
    *,
    description: str = "",
) -> Any:
    """Call a function on the indices 0 to N - 1, a batch at a time, and join its results.

    Args:
        function: compiled, from a row (B,) int32 of indices to a pytree of arrays (B, ...). The
            last row is filled up with NO_EXAMPLE, whose results are left out.
        num_examples: N.
        batch_size: B. Memory grows with it.
        description: the name of a progress bar that appears after a second; empty for no bar.

    Returns:
        The function's pytree, with NumPy arrays (N, ...).
    """
    # NumPy makes the rows, because JAX would compile programs for them at each cold start.
    rows = np.full((math.ceil(num_examples / batch_size), batch_size), NO_EXAMPLE, np.int32)
    rows.flat[:num_examples] = np.arange(num_examples)
    bar = tqdm(rows, desc=description, unit="batch", delay=1, disable=not description)
    results = [jax.device_get(function(jnp.asarray(row))) for row in bar]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_examples], *results)


def binarize(image: jax.Array, key: jax.Array) -> jax.Array:
    """Draw each pixel 1 with its grey level as the probability, else 0, (B, ...) float32."""
    return jax.random.bernoulli(key, image).astype(jnp.float32)


def binarize_dataset(dataset: Dataset, key: jax.Array) -> Dataset:
    """Draw a black-and-white copy of a data set on the device; return (N, D) uint8, 0 or 255.

    Image i is a function of the key, i and its grey levels alone.
    """

    def draw(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, image = one
        white = binarize(image.astype(jnp.float32) / 255, jax.random.fold_in(key, index))
        return (255 * white).astype(jnp.uint8)

    image = jnp.asarray(dataset.image)
    at_a_time = images_at_a_time(image.shape[1])
    binary = jax.lax.map(draw, (jnp.arange(len(image)), image), batch_size=at_a_time)
    return Dataset(binary, dataset.label)
