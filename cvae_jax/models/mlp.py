"""The model of the original: one hidden layer in the encoder and one in the decoder."""

import math
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from cvae_jax.config import ModelConfig, Precision
from cvae_jax.models.family import Autoencoding, Model, Params
from cvae_jax.models.objective import autoencode_normal


def build(config: ModelConfig, precision: Precision) -> Model:
    """Return the original's functions; `kl` has a column for each latent dimension (G = Z)."""
    module = CVAE(config, precision)

    def init(key: jax.Array) -> Params:
        image = jnp.zeros((1, *config.image_shape))
        return module.init(key, image, jnp.zeros((1,), jnp.int32))["params"]

    def decode(params: Params, latent: jax.Array, label: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply({"params": params}, latent, label, method="decode"))

    def autoencode(
        params: Params, image: jax.Array, label: jax.Array, noise: jax.Array
    ) -> Autoencoding:
        moments = module.apply({"params": params}, image, label, method="encode")
        mean, logvar = cast(tuple[jax.Array, jax.Array], moments)
        return autoencode_normal(mean, logvar, noise, lambda latent: decode(params, latent, label))

    return Model(config, config.latent_dim, init, autoencode, decode)


class Linear(nn.Module):
    """An affine layer whose weights and biases start from U(±1/√fan_in), as in PyTorch.

    The original's figures were reached from these weights.
    """

    features: int
    dtype: str

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (B, fan_in) to (B, features), of the layer's type; its parameters are float32."""
        fan_in = inputs.shape[-1]

        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            bound = 1 / math.sqrt(fan_in)
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = self.param("kernel", init, (fan_in, self.features))
        bias = self.param("bias", init, (self.features,))
        inputs, kernel, bias = (
            array.astype(self.dtype) for array in (inputs, kernel, bias[jnp.newaxis])
        )
        return inputs @ kernel + bias


class CVAE(nn.Module):
    """q(z | x, y) and p(x | z, y) with one hidden layer each (Sohn et al. 2015, section 4).

    The label enters both, one-hot.
    """

    config: ModelConfig
    precision: Precision = "float32"

    def setup(self) -> None:
        """Declare the four layers."""
        linear = partial(Linear, dtype=self.precision)
        self.encoder_hidden = linear(self.config.hidden_dim)
        self.encoder_moments = linear(2 * self.config.latent_dim)  # mean and logvar, one product
        self.decoder_hidden = linear(self.config.hidden_dim)
        self.decoder_logits = linear(math.prod(self.config.image_shape))

    def encode(self, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the mean and log-variance of q(z | x, y), each (B, Z), for images (B, ...)."""
        hidden = nn.relu(self.encoder_hidden(self._with_label(image, label)))
        moments = self.encoder_moments(hidden).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, logvar

    def decode(self, latent: jax.Array, label: jax.Array) -> jax.Array:
        """Return the logits of p(x = 1 | z, y), (B, H, W, C), for latents (B, Z)."""
        hidden = nn.relu(self.decoder_hidden(self._with_label(latent, label)))
        logits = self.decoder_logits(hidden).astype(jnp.float32)
        return logits.reshape(-1, *self.config.image_shape)

    def __call__(self, image: jax.Array, label: jax.Array) -> jax.Array:
        """Decode the mean of q(z | x, y); `init` traces this."""
        mean, _ = self.encode(image, label)
        return self.decode(mean, label)

    def _with_label(self, features: jax.Array, label: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(label, self.config.num_classes)
        return jnp.concatenate([features.reshape(features.shape[0], -1), one_hot], axis=-1)
