import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from cvae_jax import training
from cvae_jax.batches import (
    NO_EXAMPLE,
    binarize,
    binarize_dataset,
    epoch_order,
    in_rows,
    take_batch,
)
from cvae_jax.config import ModelConfig
from cvae_jax.models import CVAE
from cvae_jax.types import Dataset, LossSums, TrainState
from tests.conftest import assert_trees_equal

MakeState = Callable[[], TrainState]


@pytest.fixture
def train_steps(
    model: CVAE, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, LossSums]]:
    bound = partial(training.train_steps, model=model, optimizer=optimizer)
    return jax.jit(bound, donate_argnums=0)


@pytest.fixture
def order(train_set: Dataset) -> jax.Array:
    return epoch_order(jax.random.key(7), 0, num_examples=len(train_set.label), batch_size=128)


def test_an_epoch_has_every_image_once_in_469_batches_the_last_of_96() -> None:
    order = epoch_order(jax.random.key(0), 3, num_examples=60_000, batch_size=128)
    rows = np.asarray(order)
    assert rows.shape == (469, 128)
    np.testing.assert_array_equal(np.sort(rows[rows != NO_EXAMPLE]), np.arange(60_000))
    assert (rows[-1] != NO_EXAMPLE).sum() == 96
    assert (rows[:-1] != NO_EXAMPLE).all()


def test_each_epoch_has_an_order_of_its_own_and_the_same_one_each_time() -> None:
    orders = [
        np.asarray(epoch_order(jax.random.key(0), epoch, num_examples=1000, batch_size=8))
        for epoch in (0, 1, 1)
    ]
    assert (orders[0] != orders[1]).mean() > 0.9
    np.testing.assert_array_equal(orders[1], orders[2])


def test_a_batch_holds_the_rows_images_as_grey_levels(train_set: Dataset) -> None:
    batch = take_batch(train_set, jnp.array([5, 0, NO_EXAMPLE]))
    np.testing.assert_allclose(batch.image[0], np.asarray(train_set.image[5]) / 255, rtol=1e-6)
    np.testing.assert_array_equal(batch.label[:2], [train_set.label[5], train_set.label[0]])
    np.testing.assert_array_equal(batch.mask, [1, 1, 0])
    assert float(batch.image.max()) <= 1


def test_loss_falls_on_real_digits(
    train_steps: Callable[..., tuple[TrainState, LossSums]],
    make_state: MakeState,
    train_set: Dataset,
    order: jax.Array,
) -> None:
    state, losses = make_state(), []
    for _ in range(10):
        state, sums = train_steps(state, jax.random.key(1), train_set, order)
        losses.append(float((sums.reconstruction + sums.kl).sum() / sums.num_examples.sum()))
    # Pixels at p = 1/2 cost 784 log 2 = 543 nats. The digits' common shape, which 80 steps of
    # this small model learn, halves that.
    assert losses[0] > 400
    assert losses[-1] < 300


def test_a_short_batch_trains_as_if_it_had_no_filling(
    model: CVAE, optimizer: optax.GradientTransformation, make_state: MakeState, train_set: Dataset
) -> None:
    step = jax.jit(partial(training.train_step, model=model, optimizer=optimizer))
    row = jnp.array([3, 1, 4, 1, 5, NO_EXAMPLE, NO_EXAMPLE, NO_EXAMPLE])
    padded = take_batch(train_set, row)
    key = jax.random.key(0)
    other_filling = padded._replace(image=padded.image.at[5:].set(0.5))
    state, sums = step(make_state(), key, padded)
    same_state, same_sums = step(make_state(), key, other_filling)
    assert float(sums.num_examples) == 5
    assert_trees_equal((state, sums), (same_state, same_sums))


def test_a_state_is_finite_only_if_every_number_is(make_state: MakeState) -> None:
    state = make_state()
    assert training.is_finite(state)
    leaves, structure = jax.tree.flatten(state)
    for index, leaf in enumerate(leaves):
        for value in (jnp.inf, -jnp.inf, jnp.nan):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                spoilt = [*leaves[:index], leaf.ravel().at[-1].set(value), *leaves[index + 1 :]]
                assert not training.is_finite(jax.tree.unflatten(structure, spoilt))


@pytest.mark.parametrize("pieces", [[8], [1, 7], [3, 3, 2], [1] * 8])
def test_the_cut_into_dispatches_changes_no_bit(
    pieces: list[int],
    train_steps: Callable[..., tuple[TrainState, LossSums]],
    make_state: MakeState,
    train_set: Dataset,
    order: jax.Array,
) -> None:
    whole, _ = train_steps(make_state(), jax.random.key(1), train_set, order)
    state = make_state()
    for start, stop in itertools.pairwise(itertools.accumulate(pieces, initial=0)):
        state, _ = train_steps(state, jax.random.key(1), train_set, order[start:stop])
    assert int(state.step) == 8
    assert_trees_equal(state, whole)


def test_noise_depends_on_the_step(
    model: CVAE, optimizer: optax.GradientTransformation, make_state: MakeState, train_set: Dataset
) -> None:
    step = jax.jit(partial(training.train_step, model=model, optimizer=optimizer))
    batch = take_batch(train_set, jnp.arange(8))
    state = make_state()
    _, first = step(state, jax.random.key(0), batch)
    _, later = step(state._replace(step=state.step + 1), jax.random.key(0), batch)
    _, other_run = step(state, jax.random.key(1), batch)
    assert len({float(sums.reconstruction) for sums in (first, later, other_run)}) == 3
    assert float(first.kl) == float(later.kl)


def test_three_dispatches_trace_once(
    model: CVAE, optimizer: optax.GradientTransformation, make_state: MakeState, train_set: Dataset
) -> None:
    traces = 0

    def counted(*arguments: Any) -> tuple[TrainState, LossSums]:
        nonlocal traces
        traces += 1
        return training.train_steps(*arguments, model=model, optimizer=optimizer)

    program = jax.jit(counted, donate_argnums=0)
    state = make_state()
    for epoch in range(3):
        rows = epoch_order(jax.random.key(0), epoch, num_examples=1000, batch_size=128)
        state, _ = program(state, jax.random.key(0), train_set, rows)
    assert traces == 1


def test_nothing_leaks_is_nan_reuses_a_key_or_visits_the_host(
    model: CVAE,
    optimizer: optax.GradientTransformation,
    make_state: MakeState,
    train_set: Dataset,
    order: jax.Array,
) -> None:
    state, key = make_state(), jax.random.key(1)
    bound = partial(training.train_steps, model=model, optimizer=optimizer)
    with jax.checking_leaks(), jax.debug_nans(True), jax.debug_key_reuse(True):
        program = jax.jit(bound, donate_argnums=0)
        with jax.transfer_guard("disallow"):
            state, sums = program(state, key, train_set, order)
            jax.block_until_ready(sums)


def test_the_state_is_donated(
    train_steps: Callable[..., tuple[TrainState, LossSums]],
    make_state: MakeState,
    train_set: Dataset,
    order: jax.Array,
) -> None:
    state = make_state()
    train_steps(state, jax.random.key(0), train_set, order)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_an_epoch_of_the_original_lowers_for_accelerators(platform: str) -> None:
    model, optimizer = CVAE(ModelConfig((28, 28, 1), 10)), optax.adam(1e-3)
    program = jax.jit(partial(training.train_steps, model=model, optimizer=optimizer))
    key = jax.random.key(0)
    state = jax.eval_shape(partial(training.init_state, key, model, optimizer))
    dataset = jax.eval_shape(
        lambda: Dataset(jnp.zeros((60_000, 784), jnp.uint8), jnp.zeros((60_000,), jnp.int32))
    )
    order = jax.eval_shape(partial(epoch_order, num_examples=60_000, batch_size=128), key, 0)
    lowered = export.export(program, platforms=[platform])(
        state, jax.eval_shape(lambda: key), dataset, order
    )
    assert lowered.platforms == (platform,)
    assert "stablehlo.while" in lowered.mlir_module()


def test_rows_are_filled_only_at_the_end() -> None:
    np.testing.assert_array_equal(in_rows(jnp.arange(5), 3), [[0, 1, 2], [3, 4, NO_EXAMPLE]])
    np.testing.assert_array_equal(in_rows(jnp.arange(4), 2), [[0, 1], [2, 3]])


# Black and white.


def test_binarised_images_are_what_their_grey_levels_say(train_set: Dataset) -> None:
    grey = take_batch(train_set, jnp.arange(64)).image
    keys = jax.random.split(jax.random.key(0), 400)
    draws = jax.jit(jax.vmap(lambda key: binarize(key, grey)))(keys)
    assert draws.dtype == jnp.float32
    assert set(np.unique(draws)) == {0.0, 1.0}
    # Five standard deviations of a mean of 400 draws; where a grey level is 0 or 1, none at all.
    deviation = jnp.sqrt(grey * (1 - grey) / 400)
    assert (jnp.abs(draws.mean(axis=0) - grey) <= 6 * deviation + 1e-6).all()


def test_each_step_draws_the_images_anew_from_the_key_and_the_step(
    make_state: MakeState,
    model: CVAE,
    optimizer: optax.GradientTransformation,
    train_set: Dataset,
) -> None:
    step = jax.jit(partial(training.train_step, model=model, optimizer=optimizer))
    batch, noise_key, key = (
        take_batch(train_set, jnp.arange(128)),
        *jax.random.split(jax.random.key(1)),
    )
    for number in (0, 5):
        state = make_state()._replace(step=jnp.array(number))
        image = binarize(jax.random.fold_in(key, number), batch.image)
        expected = step(state, noise_key, batch._replace(image=image))
        assert_trees_equal(step(state, noise_key, batch, binarize_key=key), expected)
    grey = step(make_state(), noise_key, batch)
    assert grey[1].loss != step(make_state(), noise_key, batch, binarize_key=key)[1].loss


@pytest.mark.parametrize("number", [1, 300])
def test_a_binarised_data_set_depends_on_the_key_and_the_index_alone(
    number: int, train_set: Dataset
) -> None:
    program = jax.jit(binarize_dataset)
    whole = program(jax.random.key(0), train_set)
    part = program(jax.random.key(0), Dataset(train_set.image[:number], train_set.label[:number]))
    assert part.image.dtype == jnp.uint8
    assert set(np.unique(part.image)) == {0, 255}
    np.testing.assert_array_equal(part.image, whole.image[:number])
    np.testing.assert_array_equal(part.label, train_set.label[:number])
    other = program(jax.random.key(1), train_set)
    assert (np.asarray(other.image) != whole.image).any()
    # A black pixel stays black.
    assert not np.asarray(whole.image)[np.asarray(train_set.image) == 0].any()
