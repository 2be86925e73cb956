"""From a data set on the device to batches, with nothing left out and nothing counted twice."""

import jax
import jax.numpy as jnp

from cvae_jax.types import Batch, Dataset

_MOST_AT_A_TIME = 1000
_PIXELS_AT_A_TIME = 8_000_000  # whatever the size of an image

NO_EXAMPLE = -1
"""Index that fills up a short batch; its mask is 0."""


def put_on_device(dataset: Dataset) -> Dataset:
    """Copy a data set to the default device, images flat (N, D) and still uint8."""
    num_examples = len(dataset.label)
    return Dataset(
        image=jax.device_put(dataset.image.reshape(num_examples, -1)),
        label=jax.device_put(dataset.label),
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


def in_rows(indices: jax.Array, batch_size: int) -> jax.Array:
    """Cut indices (N,) into rows (ceil(N / B), B), the last one filled up with NO_EXAMPLE."""
    fill = -indices.shape[0] % batch_size
    padded = jnp.pad(indices, (0, fill), constant_values=NO_EXAMPLE)
    return padded.reshape(-1, batch_size)


def take_batch(dataset: Dataset, row: jax.Array) -> Batch:
    """Gather the examples of one row (B,) of indices and scale them to [0, 1].

    NO_EXAMPLE counts from the end and so gathers the last example, which the mask then
    leaves out of every sum.
    """
    return Batch(
        image=jnp.asarray(dataset.image)[row].astype(jnp.float32) / 255,
        label=jnp.asarray(dataset.label)[row],
        mask=(row != NO_EXAMPLE).astype(jnp.float32),
    )
