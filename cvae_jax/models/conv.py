"""A convolutional model: residual blocks at a half and at a quarter of an image's size."""

import math
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from cvae_jax.config import ModelConfig, Precision
from cvae_jax.models.family import Autoencoding, Model, Params
from cvae_jax.models.layers import Conv, ResidualBlock, depth_to_space, space_to_depth
from cvae_jax.models.objective import autoencode_normal

# Residual blocks in their order: the encoder's at a half and at a quarter of the image's height and
# width, the decoder's at a quarter and at a half.
ENCODER_BLOCKS, DECODER_BLOCKS = (1, 2), (2, 3)
# Bounds of q(z | x, y). Without them one image in a million gets a latent so far out that a learnt
# prior's inverse throws it to infinity. They keep the loss finite; --skip-norm drops the gradient.
MOST_MEAN, MOST_LOGVAR = 20.0, 2.0


def build(config: ModelConfig, precision: Precision) -> Model:
    """Return the convolutional model's functions; `kl` has a column for each dimension (G = Z)."""
    encoder, decoder = Encoder(config, precision), Decoder(config, precision)

    def init(key: jax.Array) -> Params:
        image, label = jnp.zeros((1, *config.image_shape)), jnp.zeros((1,), jnp.int32)
        keys = jax.random.split(key)
        return {
            "encoder": encoder.init(keys[0], image, label)["params"],
            "decoder": decoder.init(keys[1], jnp.zeros((1, config.latent_dim)), label)["params"],
        }

    def decode(params: Params, latent: jax.Array, label: jax.Array) -> jax.Array:
        return cast(jax.Array, decoder.apply({"params": params["decoder"]}, latent, label))

    def autoencode(
        params: Params, image: jax.Array, label: jax.Array, noise: jax.Array
    ) -> Autoencoding:
        shaped = image.reshape(-1, *config.image_shape)
        moments = encoder.apply({"params": params["encoder"]}, shaped, label)
        mean, logvar = cast(tuple[jax.Array, jax.Array], moments)
        return autoencode_normal(mean, logvar, noise, lambda latent: decode(params, latent, label))

    return Model(config, config.latent_dim, init, autoencode, decode)


class Encoder(nn.Module):
    """q(z | x, y) = N(mean, exp(logvar))."""

    config: ModelConfig
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and log-variance, (B, Z) each, for images (B, H, W, C)."""
        height, width, _ = self.config.image_shape
        fine, coarse = self.config.channels, 2 * self.config.channels
        pad = ((0, 0), (0, -height % 4), (0, -width % 4), (0, 0))
        hidden = Conv(fine, 3, self.dtype)(space_to_depth(jnp.pad(image, pad)))
        for _ in range(ENCODER_BLOCKS[0]):
            hidden = ResidualBlock(self.dtype)(hidden)
        hidden = Conv(coarse, 1, self.dtype)(space_to_depth(hidden))
        hidden = _add_label(hidden, label, self.config.num_classes, self.dtype)
        for _ in range(ENCODER_BLOCKS[1]):
            hidden = ResidualBlock(self.dtype)(hidden)
        flat = nn.silu(hidden).reshape(image.shape[0], -1)
        moments = nn.Dense(2 * self.config.latent_dim, dtype=self.dtype)(flat)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return (
            MOST_MEAN * jnp.tanh(mean / MOST_MEAN),
            MOST_LOGVAR - nn.softplus(MOST_LOGVAR - logvar),
        )


class Decoder(nn.Module):
    """p(x | z, y): the logits of the pixels."""

    config: ModelConfig
    dtype: str

    @nn.compact
    def __call__(self, latent: jax.Array, label: jax.Array) -> jax.Array:
        """Return logits (B, H, W, C) for latents (B, Z)."""
        height, width, channels = self.config.image_shape
        fine, coarse = self.config.channels, 2 * self.config.channels
        rows, columns = math.ceil(height / 4), math.ceil(width / 4)
        hidden = nn.Dense(rows * columns * coarse, dtype=self.dtype)(latent)
        hidden = hidden.reshape(-1, rows, columns, coarse)
        hidden = _add_label(hidden, label, self.config.num_classes, self.dtype)
        for _ in range(DECODER_BLOCKS[0]):
            hidden = ResidualBlock(self.dtype)(hidden)
        hidden = depth_to_space(Conv(4 * fine, 1, self.dtype)(nn.silu(hidden)))
        for _ in range(DECODER_BLOCKS[1]):
            hidden = ResidualBlock(self.dtype)(hidden)
        hidden = depth_to_space(Conv(4 * channels, 3, self.dtype)(nn.silu(hidden)))
        return hidden[:, :height, :width].astype(jnp.float32)


def _add_label(hidden: jax.Array, label: jax.Array, num_classes: int, dtype: str) -> jax.Array:
    """Add a learnt vector of each example's class to every place of (B, h, w, C)."""
    vector = nn.Embed(num_classes, hidden.shape[-1], dtype=dtype)(label)
    return hidden + vector[:, jnp.newaxis, jnp.newaxis]
