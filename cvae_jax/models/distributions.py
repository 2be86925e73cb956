"""The distributions of a VAE: log-likelihoods and KL divergences, in nats."""

import jax
import jax.numpy as jnp


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


def kl_to_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension (Kingma & Welling 2014, app. B).

    Args:
        mean: (B, Z).
        logvar: (B, Z), the logarithm of the variance.
    """
    return 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar)
