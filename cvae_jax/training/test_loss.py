"""The test loss of an epoch: every example of the test set once, one latent each."""

from typing import Any

import jax

from cvae_jax.data.batches import Gathered, binarize, in_turn
from cvae_jax.data.dataset import Dataset
from cvae_jax.keys import fold_in_each
from cvae_jax.models.family import Model, Params
from cvae_jax.noise import example_noise
from cvae_jax.storage.history import LossSums
from cvae_jax.training.step import batch_loss


def compute_test_loss(
    params: Params,
    examples: Dataset | Gathered,
    order: jax.Array,
    key: jax.Array,
    *,
    model: Model,
    binarize_key: jax.Array | None = None,
) -> LossSums:
    """Return the loss of every batch of a data set, summed over its examples, in nats.

    Args:
        params: the model's parameters.
        examples: the data set on the device, or the batches of `order`, gathered by the host.
        order: (S, B) indices of the examples, from `batches.in_rows`; memory grows with B.
        key: fixes the noise. The noise of example i is a function of the key and i alone, so the
            batch size changes the loss by rounding only.
        model: the model that `params` belong to.
        binarize_key: the images are drawn black and white, image i from this key and i alone.
            None: their grey levels are used as they are.

    Returns:
        Sums for each batch, (S,).
    """
    entries, make_batch = in_turn(examples, order)

    def batch_sums(inputs: tuple[Any, jax.Array]) -> LossSums:
        entry, row = inputs
        batch = make_batch(entry)
        if binarize_key is not None:
            keys = fold_in_each(binarize_key, row)
            batch = batch._replace(image=jax.vmap(binarize)(batch.image, keys))
        noise = example_noise(fold_in_each(key, row), model.latent_dim)
        return batch_loss(params, batch, noise, model=model)

    sums: LossSums = jax.lax.map(batch_sums, (entries, order))
    return sums
