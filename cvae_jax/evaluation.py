"""How good a model is on data it was not trained on."""

import jax
import jax.numpy as jnp

from cvae_jax import objective
from cvae_jax.batches import in_rows, take_batch
from cvae_jax.keys import fold_in_each
from cvae_jax.models import CVAE
from cvae_jax.types import Dataset, LossSums, Params


def evaluate(
    params: Params, key: jax.Array, dataset: Dataset, *, model: CVAE, batch_size: int
) -> LossSums:
    """Give the loss of every batch of a data set, each example once, one draw of noise each.

    Made to be bound and compiled by the caller, like `training.train_step`.

    Args:
        params: the model's parameters.
        key: fixes the noise; that of example i depends on the key and i alone, so the batch
            size changes nothing but rounding.
        dataset: the data set on the device.
        model: the module that `params` belong to.
        batch_size: examples at a time; memory grows with it.

    Returns:
        Sums for each batch, (ceil(N / B),), in nats.
    """

    def batch_sums(row: jax.Array) -> LossSums:
        batch = take_batch(dataset, row)
        return objective.batch_loss(model, params, fold_in_each(key, row), batch)

    order = in_rows(jnp.arange(len(dataset.label)), batch_size)
    sums: LossSums = jax.lax.map(batch_sums, order)
    return sums
