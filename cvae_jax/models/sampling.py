"""Samples of p(x | y). Every latent of the prior is drawn here."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from tqdm.auto import tqdm

from cvae_jax.keys import Purpose, fold_in_each, make_key
from cvae_jax.models.family import Model, Params
from cvae_jax.noise import example_noise

_AT_A_TIME = 1000
"""Images drawn at a time, so that memory and compilation don't grow with their number."""


def sample(
    params: Params,
    index: jax.Array,
    label: jax.Array,
    key: jax.Array,
    *,
    model: Model,
    temperature: jax.Array | float = 1.0,
) -> jax.Array:
    """Draw an image for each label; return pixel means, (B, H, W, C) float32 in [0, 1].

    Args:
        params: the model's parameters.
        index: (B,) int32, the numbers of the samples within their set. Key, index and label fix an
            image, so a set can be drawn in pieces of any size.
        label: (B,) int32, the classes to draw.
        key: one typed key for the whole set.
        model: the model that `params` belong to.
        temperature: what the latents are multiplied by.
    """
    latent = temperature * example_noise(fold_in_each(key, index), model.latent_dim)
    return jax.nn.sigmoid(model.decode(params, latent, label))


def draw_images(
    params: Params,
    label: np.ndarray,
    seed: int,
    *,
    model: Model,
    purpose: Purpose = Purpose.SAMPLES,
    temperature: float = 1.0,
    description: str = "",
) -> np.ndarray:
    """Draw an image for each label; return pixel means, (N, H, W, C) float32 in [0, 1].

    Args:
        params: the model's parameters.
        label: (N,) int32, the classes to draw.
        seed: from 0 to 2**32 - 1; equal seeds give equal images, whatever their number.
        model: the model that `params` belong to.
        purpose: the purpose of the key that draws the latents.
        temperature: what the latents are multiplied by: 1 for samples of the model, less for more
            usual images, 0 for the most usual one.
        description: the name of a progress bar that appears after a second; empty for no bar.
    """
    program = _compile_sampler(model, purpose)
    batch_size = min(len(label), _AT_A_TIME)
    image = np.empty((len(label), *model.config.image_shape), np.float32)
    starts, scale = range(0, len(label), batch_size), np.float32(temperature)
    for start in tqdm(starts, desc=description, unit="batch", delay=1, disable=not description):
        index = np.arange(start, start + batch_size, dtype=np.int32)
        piece = slice(start, min(start + batch_size, len(label)))
        padded = np.resize(label[piece], batch_size)
        drawn = np.asarray(program(params, index, padded, np.uint32(seed), scale))
        image[piece] = drawn[: piece.stop - start]
    return image


@functools.lru_cache(maxsize=8)
def _compile_sampler(model: Model, purpose: Purpose) -> Callable[..., jax.Array]:
    # The key is made inside. As a program of its own it would take longer to compile than the rest.
    @jax.jit
    def program(
        params: Params, index: jax.Array, label: jax.Array, seed: jax.Array, scale: jax.Array
    ) -> jax.Array:
        key = make_key(seed, purpose)
        return sample(params, index, label, key, model=model, temperature=scale)

    return program


def draw_latents(num: int, seed: int, *, model: Model) -> np.ndarray:
    """Return the latents of the first samples that `draw_images` draws, (N, Z) float32."""

    @jax.jit
    def program(index: jax.Array, seed: jax.Array) -> jax.Array:
        return example_noise(fold_in_each(make_key(seed, Purpose.SAMPLES), index), model.latent_dim)

    return np.asarray(program(np.arange(num, dtype=np.int32), np.uint32(seed)))
