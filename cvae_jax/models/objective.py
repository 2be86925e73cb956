"""The evidence lower bound of p(x | y) and its parts, for any model, in nats.

log p(x|y) >= E_q[log p(x|z,y)] - KL(q(z|x,y) || p(z|y))    (Kingma & Welling 2014, eq. 3)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cvae_jax.models.family import Autoencoding, Model, Params


class ElboTerms(NamedTuple):
    """The terms of the evidence lower bound of each example, in nats."""

    log_likelihood: jax.Array  # (B,)
    kl: jax.Array  # (B, G)


def elbo_terms(
    params: Params, image: jax.Array, label: jax.Array, noise: jax.Array, *, model: Model
) -> ElboTerms:
    """Return the terms of the bound for each example, from one latent each.

    Args:
        params: the model's parameters.
        image: (B, ...) float32 in [0, 1].
        label: (B,) int32.
        noise: (B, Z) standard normal.
        model: the model that `params` belong to.
    """
    found = model.autoencode(params, image, label, noise)
    return ElboTerms(bernoulli_log_likelihood(found.logits, image), found.kl)


def log_weights(
    params: Params, image: jax.Array, label: jax.Array, noise: jax.Array, *, model: Model
) -> jax.Array:
    """Return log w = log p(x|z,y) + log p(z|y) - log q(z|x,y) of K latents of each example, (K, B).

    The mean of w over q is p(x|y), and that of log w is the evidence lower bound (Burda et al.
    2016, eq. 8).

    Args:
        params: the model's parameters.
        image: (B, ...) float32 in [0, 1].
        label: (B,) int32.
        noise: (K, B, Z) standard normal.
        model: the model that `params` belong to.
    """

    # What does not depend on the noise, such as an encoder, is computed once, not K times.
    @jax.vmap
    def weights(noise: jax.Array) -> jax.Array:
        found = model.autoencode(params, image, label, noise)
        return bernoulli_log_likelihood(found.logits, image) - found.log_ratio

    return weights(noise)


def bernoulli_log_likelihood(logits: jax.Array, image: jax.Array) -> jax.Array:
    """Return the sum of x log p + (1 - x) log(1 - p) over the pixels, (B,).

    It is minus the binary cross-entropy, and finite at any finite logit. Grey levels in [0, 1] are
    taken as they are, as in the original; only for binary images is it the logarithm of a
    probability.

    Args:
        logits: (B, ...) logits of the pixel probabilities.
        image: (B, ...) as many pixels, values in [0, 1].
    """
    # Flat, because XLA's loops over a short last axis, such as the channels, are slow on a CPU:
    # an epoch took 1.4 times as long.
    flat_logits, flat_image = (array.reshape(array.shape[0], -1) for array in (logits, image))
    return _pixel_log_likelihood(flat_logits, flat_image).sum(axis=-1)


# The value has one exponential where optax's cross-entropy has two, and the derivative does not use
# the value. On a CPU an epoch takes 0.9 times as long, and an estimate of log p(x|y) two thirds as
# long.
@jax.custom_jvp
def _pixel_log_likelihood(logits: jax.Array, image: jax.Array) -> jax.Array:
    softplus = jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return image * logits - softplus


_pixel_log_likelihood.defjvps(
    # x - p, in a form that is exact for binary pixels too, where x and p may be nearly equal
    lambda tangent, _, logits, image: (
        tangent * (image * jax.nn.sigmoid(-logits) - (1 - image) * jax.nn.sigmoid(logits))
    ),
    lambda tangent, _, logits, image: tangent * logits,
)


def autoencode_normal(
    mean: jax.Array,
    logvar: jax.Array,
    noise: jax.Array,
    decode: Callable[[jax.Array], jax.Array],
) -> Autoencoding:
    """Draw from q(z | x, y) = N(mean, exp(logvar)) and decode; `kl` has a column per dimension.

    Args:
        mean: (B, Z).
        logvar: (B, Z), the logarithm of the variance.
        noise: (B, Z) standard normal.
        decode: maps latents (B, Z) to logits (B, H, W, C).
    """
    latent = mean + jnp.exp(0.5 * logvar) * noise  # Kingma & Welling 2014, section 2.4
    return Autoencoding(
        latent=latent,
        logits=decode(latent),
        # The constants of the two normal densities cancel.
        log_ratio=-0.5 * (noise**2 + logvar - latent**2).sum(axis=-1),
        kl=kl_to_standard_normal(mean, logvar),
    )


def kl_to_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension (Kingma & Welling 2014, app. B).

    Args:
        mean: (B, Z).
        logvar: (B, Z), the logarithm of the variance.
    """
    return 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar)
