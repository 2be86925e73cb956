"""Same weights, same images, same noise: the original in PyTorch and ours take the same steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cvae_jax import objective, training
from cvae_jax.config import ModelConfig
from cvae_jax.models import CVAE
from cvae_jax.types import Batch, Params, Splits, TrainState
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


def assert_takes_the_same_steps(steps: parity.Steps, config: ModelConfig) -> None:
    model, optimizer = CVAE(config), optax.adam(1e-3)
    params = jax.tree.map(jnp.asarray, steps.params)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    step = jax.jit(partial(training.train_step, model=model, optimizer=optimizer))
    batches = [
        Batch(jnp.asarray(image), jnp.asarray(label), jnp.ones(len(label)))
        for image, label in zip(steps.image, steps.label, strict=True)
    ]

    def loss(params: Params) -> jax.Array:
        key = jax.random.fold_in(parity.noise_key(), 0)
        sums = objective.batch_loss(model, params, key, batches[0])
        return sums.reconstruction + sums.kl

    gradient = jax.grad(loss)(params)
    assert_relative_distance(gradient, steps.gradient, most=2e-6)

    for batch, expected in zip(batches, steps.loss, strict=True):
        state, sums = step(state, parity.noise_key(), batch)
        np.testing.assert_allclose([sums.reconstruction, sums.kl], expected, rtol=2e-4)
    moved = jax.tree.map(jnp.subtract, state.params, params)
    assert_relative_distance(
        moved, jax.tree.map(np.subtract, steps.new_params, steps.params), most=5e-3
    )


def test_five_steps_equal_those_stored_from_pytorch() -> None:
    steps = parity.load()
    assert_takes_the_same_steps(steps, parity.SMALL)


def test_the_stored_noise_is_what_the_step_draws() -> None:
    noise = parity.make_noise(parity.BATCH_SIZE, parity.SMALL.latent_dim)
    np.testing.assert_allclose(noise, parity.load().noise, rtol=1e-5)


def test_five_steps_of_the_whole_model_on_mnist_equal_pytorch(mnist: Splits) -> None:
    pytest.importorskip("torch", reason="the extra 'parity' is not installed")
    shape = (parity.NUM_STEPS, 128)
    image = np.asarray(mnist.train.image[: 5 * 128], np.float32).reshape(*shape, 28, 28, 1) / 255
    label = np.asarray(mnist.train.label[: 5 * 128]).reshape(shape)
    config = ModelConfig(image_shape=(28, 28, 1), num_classes=10)
    steps = parity.run_original(image, label, config)
    assert_takes_the_same_steps(steps, config)
