"""The evidence lower bound and the importance weights of p(x | y), for any model, in nats.

log p(x|y) >= E_q[log p(x|z,y)] - KL(q(z|x,y) || p(z|y))    (Kingma & Welling 2014, eq. 3)
"""

from typing import NamedTuple

import jax

from cvae_jax.models.distributions import bernoulli_log_likelihood
from cvae_jax.models.family import Model, Params


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
