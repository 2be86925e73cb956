"""From a data set on the device to batches, with nothing left out and nothing counted twice."""

import jax
import jax.numpy as jnp

from cvae_jax.types import Batch, Dataset

NO_EXAMPLE = -1
"""Index that fills up a short batch; its mask is 0."""


def put_on_device(dataset: Dataset) -> Dataset:
    """Copy a data set to the default device, images flat (N, D) and still uint8."""
    num_examples = len(dataset.label)
    return Dataset(
        image=jax.device_put(dataset.image.reshape(num_examples, -1)),
        label=jax.device_put(dataset.label),
    )


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
