"""The contract between a model and everything else.

A model is two pure functions of (parameters, inputs, noise), in coordinates in which the prior
p(z | y) is N(0, I). Training, test loss, importance sampling, samples and reconstructions are
written once, on top of these two functions.

Shapes in comments throughout the package:
    N  examples of a data set      B  examples of a batch       S  steps
    H, W, C  height, width and channels of an image             D  pixels, H * W * C
    Y  classes                     Z  latent dimensions         K  latents of one example
    G  groups of latent dimensions, each with its own KL
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from cvae_jax.config import ModelConfig

Params: TypeAlias = Any
"""A pytree of float32 arrays."""


class Autoencoding(NamedTuple):
    """One draw z ~ q(z | x, y) for each image, and the image's distribution given it."""

    latent: jax.Array  # (B, Z) the draw, in coordinates in which p(z | y) is N(0, I)
    logits: jax.Array  # (B, H, W, C) of p(x | z, y)
    log_ratio: jax.Array  # (B,) log q(z | x, y) - log p(z | y) of this draw, nats
    # (B, G) the mean of log_ratio over q in closed form where there is one, else the draw's own.
    kl: jax.Array


class Model(NamedTuple):
    """A conditional VAE. `build_model` makes one from its settings.

    Images are float32 in [0, 1], (B, ...) with D values each; labels are int32 in [0, Y). The
    caller draws the noise; a model holds no key. Everything returned is float32.
    """

    config: ModelConfig
    latent_dim: int  # Z
    init: Callable[[jax.Array], Params]
    """init(key) returns the parameters that training starts from."""
    autoencode: Callable[[Params, jax.Array, jax.Array, jax.Array], Autoencoding]
    """autoencode(params, image, label, noise) returns a draw for each image. Standard normal noise
    (B, Z) draws from q(z | x, y); zeros give the centre of q."""
    decode: Callable[[Params, jax.Array, jax.Array], jax.Array]
    """decode(params, latent, label) returns logits (B, H, W, C); with a standard normal latent
    (B, Z) they are those of a sample of p(x | y)."""
