"""Images of the class you ask for, drawn from p(x | y)."""

import jax
import jax.numpy as jnp

from cvae_jax.batches import in_rows
from cvae_jax.keys import fold_in_each
from cvae_jax.models import CVAE, decode
from cvae_jax.types import Dataset, Params


def sample(
    params: Params, key: jax.Array, index: jax.Array, label: jax.Array, *, model: CVAE
) -> jax.Array:
    """Decode one standard-normal latent for each label: pixel means, (B, H, W, C) in [0, 1].

    Args:
        params: the model's parameters.
        key: one typed key for the whole set of samples.
        index: (B,) int32, which sample of the set each one is; key, index and label fix an
            image, so that a set can be drawn in pieces of any size.
        label: (B,) int32, the classes to draw.
        model: the module that `params` belong to.
    """
    shape = (model.config.latent_dim,)
    latent = jax.vmap(lambda one: jax.random.normal(one, shape))(fold_in_each(key, index))
    return jax.nn.sigmoid(decode(model, params, latent, label))


def sample_dataset(
    params: Params, key: jax.Array, label: jax.Array, *, model: CVAE, batch_size: int
) -> Dataset:
    """Draw an image for each label (N,): a data set as a file would hold it, (N, D) uint8.

    Args:
        params: the model's parameters.
        key: as in `sample`.
        label: (N,) int32, the classes to draw.
        model: the module that `params` belong to.
        batch_size: images at a time; memory grows with it, and no image depends on it.
    """

    def draw(row: jax.Array) -> jax.Array:
        image = sample(params, key, row, label[row], model=model)
        return jnp.round(255 * image).astype(jnp.uint8).reshape(len(row), -1)

    images = jax.lax.map(draw, in_rows(jnp.arange(len(label)), batch_size))
    return Dataset(images.reshape(-1, images.shape[-1])[: len(label)], label)
