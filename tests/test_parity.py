"""Same weights, same images, same noise: the original in PyTorch and ours take the same steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cvae_jax.config import ModelConfig
from cvae_jax.data.batches import Batch
from cvae_jax.data.dataset import Splits
from cvae_jax.models import build_model
from cvae_jax.models.family import Params
from cvae_jax.training.step import TrainState, batch_loss, train_step
from tests import parity


def assert_relative_distance(actual: Params, expected: Params, most: float) -> None:
    """Compare each array by |actual - expected| / |expected|.

    By the norm, since Adam's first step is the sign of the gradient: where a gradient is zero
    but for rounding, single weights may move in opposite directions.
    """

    def check(actual: jax.Array, expected: jax.Array) -> None:
        distance = np.linalg.norm(np.subtract(actual, expected)) / np.linalg.norm(expected)
        assert distance < most

    assert jax.tree.structure(actual) == jax.tree.structure(expected)  # type: ignore[operator]
    jax.tree.map(check, actual, expected)


def assert_same_steps(steps: parity.Steps, config: ModelConfig) -> None:
    model, optimizer = build_model(config), optax.adam(1e-3)
    params = jax.tree.map(jnp.asarray, steps.params)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    step = jax.jit(partial(train_step, model=model, optimizer=optimizer))
    batches = [
        Batch(jnp.asarray(image), jnp.asarray(label), jnp.ones(len(label)))
        for image, label in zip(steps.image, steps.label, strict=True)
    ]

    def loss(params: Params) -> jax.Array:
        return batch_loss(params, batches[0], jnp.asarray(steps.noise[0]), model=model).loss

    assert_relative_distance(jax.grad(loss)(params), steps.gradient, most=2e-6)
    for batch, expected in zip(batches, steps.loss, strict=True):
        state, sums = step(state, batch, parity.noise_key())
        np.testing.assert_allclose([sums.reconstruction, sums.kl], expected, rtol=1e-4)
    moved = jax.tree.map(jnp.subtract, state.params, params)
    expected_move = jax.tree.map(np.subtract, steps.new_params, steps.params)
    assert_relative_distance(moved, expected_move, most=1e-4)


def test_five_steps_equal_those_stored_from_pytorch() -> None:
    steps = parity.load()
    noise = parity.make_noise(parity.BATCH_SIZE, parity.SMALL.latent_dim)
    np.testing.assert_allclose(noise, steps.noise, rtol=1e-5)
    assert_same_steps(steps, parity.SMALL)


def test_five_steps_of_the_whole_model_on_mnist_equal_pytorch(mnist: Splits) -> None:
    pytest.importorskip("torch", reason="the extra 'parity' is not installed")
    shape = (parity.NUM_STEPS, 128)
    # With the first 128 training images one weight has a gradient that is zero but for rounding:
    # the direction of its first step depends on the processor. With those from 1,280 on, every
    # gradient is at least 60 times its rounding error.
    chosen = slice(1280, 1280 + 5 * 128)
    image = np.asarray(mnist.train.image[chosen], np.float32).reshape(*shape, 28, 28, 1) / 255
    label = np.asarray(mnist.train.label[chosen]).reshape(shape)
    config = ModelConfig(image_shape=(28, 28, 1), num_classes=10)
    assert_same_steps(parity.run_original(image, label, config), config)
