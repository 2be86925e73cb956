"""The log-likelihood of images by importance sampling, for any model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from cvae_jax.keys import fold_in_each
from cvae_jax.models.family import Model, Params
from cvae_jax.models.objective import log_weights
from cvae_jax.noise import example_noise


class Likelihood(NamedTuple):
    """An estimate of log p(x|y) for each example, in nats, and how far to trust it."""

    log_likelihood: jax.Array  # (B,)
    effective_samples: jax.Array  # (B,), 1 to K; near 1 the estimate is too low


def importance_log_likelihood(
    params: Params,
    image: jax.Array,
    label: jax.Array,
    keys: jax.Array,
    *,
    model: Model,
    num_samples: int,
    chunk_size: int,
) -> Likelihood:
    """Estimate log p(x|y) by importance sampling: the log of the mean of K weights.

    In expectation it is a lower bound, which rises with K to the likelihood itself (Burda et al.
    2016, theorem 1). Only for binary images is it the logarithm of a probability.

    Args:
        params: the model's parameters.
        image: (B, ...) float32 in [0, 1].
        label: (B,) int32.
        keys: typed keys (B,), one for each example, whose estimate depends on no other.
        model: the model that `params` belong to.
        num_samples: K.
        chunk_size: latents of an example that are decoded at a time. Memory grows with it and with
            B, not with K. It changes the estimate by rounding alone.
    """

    def add_chunk(
        sums: tuple[jax.Array, jax.Array], start: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        index = start + jnp.arange(chunk_size)
        of_latents = jax.vmap(lambda key: fold_in_each(key, index), out_axes=1)(keys)  # (chunk, B)
        noise = jax.vmap(lambda some: example_noise(some, model.latent_dim))(of_latents)
        log_weight = log_weights(params, image, label, noise, model=model)  # (chunk, B)
        log_weight = jnp.where((index < num_samples)[:, jnp.newaxis], log_weight, -jnp.inf)
        log_sum, log_square_sum = sums
        return (
            jnp.logaddexp(log_sum, logsumexp(log_weight, axis=0)),
            jnp.logaddexp(log_square_sum, logsumexp(2 * log_weight, axis=0)),
        ), None

    nothing = jnp.full(label.shape, -jnp.inf)
    starts = jnp.arange(0, num_samples, chunk_size)
    (log_sum, log_square_sum), _ = jax.lax.scan(add_chunk, (nothing, nothing), starts)
    return Likelihood(
        log_likelihood=log_sum - jnp.log(num_samples),
        effective_samples=jnp.exp(2 * log_sum - log_square_sum),
    )
