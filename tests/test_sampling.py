from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax import models, sampling
from cvae_jax.models import CVAE
from cvae_jax.types import Params


def test_a_sample_is_the_decoded_mean_of_one_standard_normal_latent(
    model: CVAE, params: Params
) -> None:
    key, label = jax.random.key(2), jnp.array([4, 9])
    image = sampling.sample(params, key, jnp.arange(2), label, model=model)
    latent = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), (5,)) for i in range(2)])
    probability = jax.nn.sigmoid(models.decode(model, params, latent, label))
    np.testing.assert_allclose(image, probability, rtol=1e-6)
    assert image.shape == (2, 28, 28, 1)


def test_a_set_can_be_drawn_in_pieces(model: CVAE, params: Params) -> None:
    draw = partial(sampling.sample, params, jax.random.key(2), model=model)
    label = jnp.arange(6) % 10
    whole = draw(jnp.arange(6), label)
    pieces = [draw(jnp.arange(start, start + 2), label[start : start + 2]) for start in (0, 2, 4)]
    np.testing.assert_allclose(whole, jnp.concatenate(pieces), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 32])
def test_a_data_set_of_samples_is_what_a_file_of_them_would_hold(
    batch_size: int, model: CVAE, params: Params
) -> None:
    key, label = jax.random.key(2), jnp.arange(10)
    program = jax.jit(partial(sampling.sample_dataset, model=model, batch_size=batch_size))
    found = program(params, key, label)
    expected = sampling.sample(params, key, jnp.arange(10), label, model=model)
    assert (found.image.dtype, found.image.shape) == (jnp.uint8, (10, 784))
    difference = np.asarray(found.image, np.float32) / 255 - expected.reshape(10, -1)
    assert np.abs(difference).max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(found.label, label)


def test_samples_differ_from_one_another_and_between_seeds(model: CVAE, params: Params) -> None:
    label = jnp.full((4,), 6)
    images = [
        np.asarray(sampling.sample(params, jax.random.key(seed), jnp.arange(4), label, model=model))
        for seed in (0, 1)
    ]
    flat = np.concatenate(images).reshape(8, -1)
    assert len(np.unique(flat, axis=0)) == 8
