"""Images of the class you ask for, drawn from p(x | y)."""

import jax

from cvae_jax.keys import fold_in_each
from cvae_jax.models import CVAE, decode
from cvae_jax.types import Params


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
