import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cvae_jax.data.batches import (
    NO_EXAMPLE,
    binarize,
    epoch_order,
    in_rows,
    put_on_device,
    take_batch,
)
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.models.family import Model, Params
from cvae_jax.storage.history import LossSums
from cvae_jax.training.step import TrainState, init_state, is_finite, train_step, train_steps
from cvae_jax.training.test_loss import compute_test_loss
from tests.helpers import assert_trees_equal

MakeState = Callable[[], TrainState]
OPTIMIZER = optax.adam(1e-3)


@pytest.fixture(scope="module")
def train_set(small_splits: Splits) -> Dataset:
    return put_on_device(small_splits.train)


@pytest.fixture(scope="module")
def step(model: Model) -> Callable[..., tuple[TrainState, LossSums]]:
    return jax.jit(partial(train_step, model=model, optimizer=OPTIMIZER))


@pytest.fixture(scope="module")
def steps(model: Model) -> Callable[..., tuple[TrainState, LossSums]]:
    return jax.jit(partial(train_steps, model=model, optimizer=OPTIMIZER), donate_argnums=0)


@pytest.fixture
def make_state(model: Model) -> MakeState:
    """Return a function that makes a fresh state, since a donated one is gone."""
    return partial(init_state, jax.random.key(0), model, OPTIMIZER)


@pytest.fixture(scope="module")
def order(train_set: Dataset) -> jax.Array:
    return epoch_order(0, jax.random.key(7), num_examples=1000, batch_size=128)


def test_loss_falls_on_real_digits(
    steps: Callable[..., tuple[TrainState, LossSums]],
    make_state: MakeState,
    train_set: Dataset,
    order: jax.Array,
) -> None:
    state, losses = make_state(), []
    for _ in range(10):
        state, sums = steps(state, train_set, order, jax.random.key(1))
        losses.append(float(sums.loss.sum() / sums.num_examples.sum()))
    # Pixels at p = 1/2 cost 784 log 2 = 543 nats. The digits' common shape, which 80 steps of
    # this small model learn, halves that.
    assert losses[0] > 400
    assert losses[-1] < 300


def test_a_short_batch_trains_as_if_it_had_no_filling(
    step: Callable[..., Any], make_state: MakeState, train_set: Dataset
) -> None:
    row = jnp.array([3, 1, 4, 1, 5, NO_EXAMPLE, NO_EXAMPLE, NO_EXAMPLE])
    padded = take_batch(train_set, row)
    other_filling = padded._replace(image=padded.image.at[5:].set(0.5))
    state, sums = step(make_state(), padded, jax.random.key(0))
    assert float(sums.num_examples) == 5
    assert_trees_equal((state, sums), step(make_state(), other_filling, jax.random.key(0)))


def test_a_state_is_finite_only_if_every_number_is(make_state: MakeState) -> None:
    state = make_state()
    assert is_finite(state)
    leaves, structure = jax.tree.flatten(state)
    for index, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            spoilt = [*leaves[:index], leaf.ravel().at[-1].set(jnp.nan), *leaves[index + 1 :]]
            assert not is_finite(jax.tree.unflatten(structure, spoilt))


@pytest.mark.parametrize("pieces", [[1, 7], [3, 3, 2]])
def test_the_cut_into_dispatches_changes_no_bit(
    pieces: list[int],
    steps: Callable[..., tuple[TrainState, LossSums]],
    make_state: MakeState,
    train_set: Dataset,
    order: jax.Array,
) -> None:
    whole, _ = steps(make_state(), train_set, order, jax.random.key(1))
    state = make_state()
    for start, stop in itertools.pairwise(itertools.accumulate(pieces, initial=0)):
        state, _ = steps(state, train_set, order[start:stop], jax.random.key(1))
    assert int(state.step) == 8
    assert_trees_equal(state, whole)


def test_noise_depends_on_the_step_and_the_key(
    step: Callable[..., Any], make_state: MakeState, train_set: Dataset
) -> None:
    batch = take_batch(train_set, jnp.arange(8))
    state = make_state()
    _, first = step(state, batch, jax.random.key(0))
    _, later = step(state._replace(step=state.step + 1), batch, jax.random.key(0))
    _, other_run = step(state, batch, jax.random.key(1))
    assert len({float(sums.reconstruction) for sums in (first, later, other_run)}) == 3
    assert float(first.kl) == float(later.kl)


def test_each_step_binarises_anew_from_the_key_and_the_step(
    step: Callable[..., Any], make_state: MakeState, train_set: Dataset
) -> None:
    batch = take_batch(train_set, jnp.arange(128))
    noise_key, key = jax.random.split(jax.random.key(1))
    for number in (0, 5):
        state = make_state()._replace(step=jnp.array(number))
        image = binarize(batch.image, jax.random.fold_in(key, number))
        expected = step(state, batch._replace(image=image), noise_key)
        assert_trees_equal(step(state, batch, noise_key, binarize_key=key), expected)


def test_nothing_leaks_is_nan_reuses_a_key_or_visits_the_host(
    model: Model, make_state: MakeState, train_set: Dataset, order: jax.Array
) -> None:
    state, key = make_state(), jax.random.key(1)
    bound = partial(train_steps, model=model, optimizer=OPTIMIZER)
    with jax.checking_leaks(), jax.debug_nans(True), jax.debug_key_reuse(True):
        program = jax.jit(bound, donate_argnums=0)
        with jax.transfer_guard("disallow"):
            jax.block_until_ready(program(state, train_set, order, key))


def test_the_state_is_donated(
    steps: Callable[..., Any], make_state: MakeState, train_set: Dataset, order: jax.Array
) -> None:
    state = make_state()
    steps(state, train_set, order, jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_three_epochs_trace_once(model: Model, make_state: MakeState, train_set: Dataset) -> None:
    traces = 0

    def counted(*arguments: Any) -> tuple[TrainState, LossSums]:
        nonlocal traces
        traces += 1
        return train_steps(*arguments, model=model, optimizer=OPTIMIZER)

    program, state = jax.jit(counted, donate_argnums=0), make_state()
    for epoch in range(3):
        rows = epoch_order(epoch, jax.random.key(0), num_examples=1000, batch_size=128)
        state, _ = program(state, train_set, rows, jax.random.key(0))
    assert traces == 1


@pytest.mark.parametrize("binarize_key", [None, jax.random.key(3)])
def test_the_test_loss_has_every_image_once_whatever_the_batch_size(
    binarize_key: jax.Array | None, model: Model, params: Params, small_splits: Splits
) -> None:
    program = jax.jit(partial(compute_test_loss, model=model))
    dataset = put_on_device(small_splits.test)
    totals = []
    for batch_size in (300, 128, 7):
        rows = in_rows(np.arange(300), batch_size)
        sums = program(params, dataset, rows, jax.random.key(2), binarize_key=binarize_key)
        totals.append([float(part.sum()) for part in sums])
    assert totals[0][2] == 300
    np.testing.assert_allclose(totals, [totals[0]] * 3, rtol=1e-5)
