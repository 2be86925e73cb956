"""The conditional encoder and decoder of the original, as a Flax Linen module.

Linen, because its `init` and `apply` are plain functions of explicit parameters.
"""

import math
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from cvae_jax.config import ModelConfig, Precision
from cvae_jax.types import Params


class Linear(nn.Module):
    """An affine layer whose weights and biases start from U(±1/√fan_in), as in PyTorch.

    The original's figures were reached from this start.
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

    The label enters both, one-hot. Noise is not drawn here: see `objective.sample_latent`.
    """

    config: ModelConfig
    precision: Precision = "float32"
    """Type of the matrix products and activations; what comes out is float32 with either."""

    def setup(self) -> None:
        """Declare the four layers."""
        linear = partial(Linear, dtype=self.precision)
        self.encoder_hidden = linear(self.config.hidden_dim)
        self.encoder_moments = linear(2 * self.config.latent_dim)  # mean and logvar, one product
        self.decoder_hidden = linear(self.config.hidden_dim)
        self.decoder_logits = linear(math.prod(self.config.image_shape))

    def encode(self, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Give the mean and log-variance of q(z | x, y), each (B, Z).

        Args:
            image: (B, ...) float32 in [0, 1]; all but the first axis are flattened.
            label: (B,) int32 in [0, Y).
        """
        hidden = nn.relu(self.encoder_hidden(self._with_label(image, label)))
        moments = self.encoder_moments(hidden).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, logvar

    def decode(self, latent: jax.Array, label: jax.Array) -> jax.Array:
        """Give the logits of p(x = 1 | z, y), (B, H, W, C).

        Args:
            latent: (B, Z) float32.
            label: (B,) int32 in [0, Y).
        """
        hidden = nn.relu(self.decoder_hidden(self._with_label(latent, label)))
        logits = self.decoder_logits(hidden).astype(jnp.float32)
        return logits.reshape(-1, *self.config.image_shape)

    def __call__(self, image: jax.Array, label: jax.Array) -> jax.Array:
        """Decode the mean of q(z | x, y): a reconstruction, and what `init` traces."""
        mean, _ = self.encode(image, label)
        return self.decode(mean, label)

    def _with_label(self, features: jax.Array, label: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(label, self.config.num_classes)
        return jnp.concatenate([features.reshape(features.shape[0], -1), one_hot], axis=-1)


def init_params(key: jax.Array, model: CVAE) -> Params:
    """Make the parameters that training starts from, a pytree of float32 arrays."""
    image = jnp.zeros((1, *model.config.image_shape))
    label = jnp.zeros((1,), jnp.int32)
    return model.init(key, image, label)["params"]


def encode(
    model: CVAE, params: Params, image: jax.Array, label: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Apply `CVAE.encode` as a function of its parameters."""
    moments = model.apply({"params": params}, image, label, method="encode")
    return cast(tuple[jax.Array, jax.Array], moments)


def decode(model: CVAE, params: Params, latent: jax.Array, label: jax.Array) -> jax.Array:
    """Apply `CVAE.decode` as a function of its parameters."""
    return cast(jax.Array, model.apply({"params": params}, latent, label, method="decode"))


def count_params(config: ModelConfig) -> int:
    """Count the numbers in a model's parameters, without making any."""
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), CVAE(config)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
