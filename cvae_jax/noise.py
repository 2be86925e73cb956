"""The standard normal noise of latents. The caller of a model draws it and passes it in."""

import jax


def batch_noise(key: jax.Array, batch_size: int, latent_dim: int) -> jax.Array:
    """Draw the noise of a training batch from one typed key, (B, Z) float32."""
    return jax.random.normal(key, (batch_size, latent_dim))


def example_noise(keys: jax.Array, latent_dim: int) -> jax.Array:
    """Draw the noise of each example from its own typed key, (B,) -> (B, Z) float32.

    The noise of an example then does not depend on the batch it is in.
    """
    return jax.vmap(lambda key: jax.random.normal(key, (latent_dim,)))(keys)
