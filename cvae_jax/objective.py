"""The evidence lower bound of p(x | y), per example and in nats.

log p(x|y) >= E_q[log p(x|z,y)] - KL(q(z|x,y) || N(0, I))    (Kingma & Welling 2014, eq. 3)
"""

import jax
import jax.numpy as jnp

from cvae_jax.models import CVAE, decode, encode
from cvae_jax.types import Batch, ElboTerms, LossSums, Params


def sample_latent(key: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Draw z = mean + std * noise (Kingma & Welling 2014, section 2.4), (B, Z).

    Args:
        key: one typed key for the batch, or one for each example, (B,), which makes an
            example's noise independent of the batch it is in.
        mean: (B, Z).
        logvar: (B, Z), the logarithm of the variance.
    """
    if key.ndim == 0:
        noise = jax.random.normal(key, mean.shape)
    else:
        noise = jax.vmap(lambda one: jax.random.normal(one, mean.shape[1:]))(key)
    return mean + jnp.exp(0.5 * logvar) * noise


def bernoulli_log_likelihood(logits: jax.Array, image: jax.Array) -> jax.Array:
    """Sum x log p + (1 - x) log(1 - p) over the pixels: minus the binary cross-entropy, (B,).

    Finite at any finite logit. Grey levels in [0, 1] are taken as they are, as in the
    original; only for binary images is this the logarithm of a probability.

    Args:
        logits: (B, ...) logits of the pixel probabilities.
        image: (B, ...) with as many pixels, values in [0, 1].
    """
    # Flat, because XLA's loops over a short last axis, such as the channels, are slow on a CPU:
    # an epoch took 1.4 times as long.
    flat_logits, flat_image = (array.reshape(array.shape[0], -1) for array in (logits, image))
    return _pixel_log_likelihood(flat_logits, flat_image).sum(axis=-1)


def log_weights(
    model: CVAE, params: Params, noise: jax.Array, image: jax.Array, label: jax.Array
) -> jax.Array:
    """Give log w = log p(x|z,y) + log p(z) - log q(z|x,y) for many latents of each example, (K, B).

    The mean of w over q is p(x|y), and that of log w the evidence lower bound (Burda et al. 2016,
    eq. 8).

    Args:
        model: the module that `params` belong to.
        params: its parameters.
        noise: (K, B, Z) standard normal; z = mean + std * noise.
        image: (B, ...) float32 in [0, 1].
        label: (B,) int32.
    """
    num_latents, batch_size, latent_dim = noise.shape
    mean, logvar = encode(model, params, image, label)
    latent = mean[jnp.newaxis] + jnp.exp(0.5 * logvar)[jnp.newaxis] * noise
    # log p(z) - log q(z|x,y); the normal distributions' constants cancel.
    log_ratio = 0.5 * (noise**2 + logvar[jnp.newaxis] - latent**2).sum(axis=-1)
    labels = jnp.tile(label, num_latents)
    logits = decode(model, params, latent.reshape(-1, latent_dim), labels)
    flat_logits = logits.reshape(num_latents, batch_size, -1)
    flat_image = image.reshape(1, batch_size, -1)
    return log_ratio + _pixel_log_likelihood(flat_logits, flat_image).sum(axis=-1)


# One exponential in the value where optax's cross-entropy has two, and a derivative that needs
# nothing of the value: on a CPU an epoch takes 0.9 times as long, an estimate of log p(x|y) two
# thirds.
@jax.custom_jvp
def _pixel_log_likelihood(logits: jax.Array, image: jax.Array) -> jax.Array:
    """Give x log p + (1 - x) log(1 - p) of every pixel; shapes as they broadcast."""
    softplus = jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return image * logits - softplus


_pixel_log_likelihood.defjvps(
    # x - p, exact for black and white pixels too, where x and p may be nearly equal
    lambda tangent, _, logits, image: (
        tangent * (image * jax.nn.sigmoid(-logits) - (1 - image) * jax.nn.sigmoid(logits))
    ),
    lambda tangent, _, logits, image: tangent * logits,
)


def kl_to_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Give KL(N(mean, exp(logvar)) || N(0, I)) (Kingma & Welling 2014, appendix B), (B,).

    Args:
        mean: (B, Z).
        logvar: (B, Z).
    """
    return kl_per_dimension(mean, logvar).sum(axis=-1)


def kl_per_dimension(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Give the terms of `kl_to_standard_normal`, one for each latent dimension, (B, Z)."""
    return 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar)


def elbo_terms(
    model: CVAE, params: Params, key: jax.Array, image: jax.Array, label: jax.Array
) -> ElboTerms:
    """Give both terms of the bound for each example, from one draw of the latent.

    Args:
        model: the module that `params` belong to.
        params: its parameters.
        key: as in `sample_latent`.
        image: (B, ...) float32 in [0, 1].
        label: (B,) int32.
    """
    mean, logvar = encode(model, params, image, label)
    latent = sample_latent(key, mean, logvar)
    logits = decode(model, params, latent, label)
    return ElboTerms(
        log_likelihood=bernoulli_log_likelihood(logits, image),
        kl=kl_to_standard_normal(mean, logvar),
    )


def loss_sums(terms: ElboTerms, mask: jax.Array) -> LossSums:
    """Sum the loss of the examples whose `mask` (B,) is 1."""
    return LossSums(
        reconstruction=-(terms.log_likelihood * mask).sum(),
        kl=(terms.kl * mask).sum(),
        num_examples=mask.sum(),
    )


def batch_loss(model: CVAE, params: Params, key: jax.Array, batch: Batch) -> LossSums:
    """Give the summed loss of a batch: BCE plus KL over its real examples, in nats."""
    terms = elbo_terms(model, params, key, batch.image, batch.label)
    return loss_sums(terms, batch.mask)
