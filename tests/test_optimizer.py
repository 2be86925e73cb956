from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cvae_jax.config import TrainConfig
from cvae_jax.data.batches import put_on_device, take_batch
from cvae_jax.data.dataset import Splits
from cvae_jax.models.family import Model
from cvae_jax.training.optimizer import build_optimizer
from cvae_jax.training.step import init_state, train_step
from tests.helpers import assert_trees_equal


def moves(config: TrainConfig, gradient: float, num_steps: int) -> np.ndarray:
    """Return how far a weight moves at each step of ten-step epochs under one gradient."""
    optimizer = build_optimizer(config, steps_per_epoch=10)
    weight = jnp.zeros(())
    state, found = optimizer.init(weight), []
    for _ in range(num_steps):
        update, state = optimizer.update(jnp.asarray(gradient), state, weight)
        found.append(-float(update))
    return np.array(found)


def test_without_options_it_is_adam() -> None:
    expected, state = optax.adam(1e-3), optax.adam(1e-3).init(jnp.ones(3))
    ours = build_optimizer(TrainConfig(), 10)
    assert_trees_equal(ours.init(jnp.ones(3)), state)
    gradient = jnp.array([1.0, -2.0, 3.0])
    assert_trees_equal(ours.update(gradient, state), expected.update(gradient, state))


def test_nesterov_steps_are_those_of_nadam() -> None:
    """After Dozat 2016, algorithm 8, written out for a constant momentum."""
    gradients, momentum = [1.0, -2.0, 0.5], 0.95
    optimizer = build_optimizer(TrainConfig(nesterov=momentum, learning_rate=0.1), 10)
    state = optimizer.init(jnp.zeros(()))
    first = second = 0.0
    for step, gradient in enumerate(gradients, 1):
        first = momentum * first + (1 - momentum) * gradient
        second = 0.999 * second + 0.001 * gradient**2
        ahead = momentum * first / (1 - momentum ** (step + 1))
        ahead += (1 - momentum) * gradient / (1 - momentum**step)
        update, state = optimizer.update(jnp.asarray(gradient), state)
        expected = -0.1 * ahead / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
        assert float(update) == pytest.approx(expected, rel=1e-4)


def test_a_rate_rises_from_zero_then_falls_along_a_cosine_to_zero() -> None:
    config = TrainConfig(schedule="cosine", decay_epochs=3, warmup_steps=10, learning_rate=0.1)
    rate = moves(config, 1.0, 31)  # Adam moves by the rate under a constant gradient
    assert rate[0] == 0
    np.testing.assert_allclose(rate[5], 0.05, rtol=1e-3)
    np.testing.assert_allclose(rate[10], 0.1, rtol=1e-3)
    np.testing.assert_allclose(rate[20], 0.05, rtol=1e-3)
    assert rate[30] == pytest.approx(0, abs=1e-6)


def test_a_warm_up_that_is_longer_than_the_run_is_shortened() -> None:
    config = TrainConfig(schedule="cosine", decay_epochs=1, warmup_steps=1000)
    assert np.isfinite(moves(config, 1.0, 10)).all()


def test_a_large_gradient_is_scaled_down_to_the_norm() -> None:
    config = TrainConfig(clip_norm=1.0)
    optimizer = build_optimizer(config, 10)
    gradient = {"one": jnp.array([30.0]), "other": jnp.array([40.0])}
    _, state = optimizer.update(gradient, optimizer.init(gradient))
    first_moments: Any = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose([first_moments["one"][0], first_moments["other"][0]], [0.06, 0.08])


def test_the_average_is_tested_and_follows_the_weights(model: Model, small_splits: Splits) -> None:
    optimizer = optax.adam(1e-2)
    batch = take_batch(put_on_device(small_splits.train), jnp.arange(64))
    step = jax.jit(partial(train_step, model=model, optimizer=optimizer, ema=0.5))
    state = init_state(jax.random.key(0), model, optimizer, has_average=True)
    average = state.params
    for number in range(3):
        state, _ = step(state, batch, jax.random.key(1))
        decay = min(0.5, (1 + number) / (10 + number))
        average = jax.tree.map(
            lambda old, new, decay=decay: old + (1 - decay) * (new - old), average, state.params
        )
    for one, other in zip(jax.tree.leaves(state.tested), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_outlier_of_a_gradient_is_taken_as_zero() -> None:
    options = {"clip_norm": 5.0, "skip_norm": 10.0}
    optimizer = build_optimizer(TrainConfig(**options), 100)  # type: ignore[arg-type]
    start = {"a": jnp.array([1.0, 2.0])}
    for gradient, is_kept in (([6.0, 8.0], True), ([6.0, 8.1], False), ([np.nan, 0.0], False)):
        updates, _ = optimizer.update({"a": jnp.array(gradient)}, optimizer.init(start), start)
        assert bool(jnp.any(updates["a"] != 0)) == is_kept
        assert jnp.isfinite(updates["a"]).all()
