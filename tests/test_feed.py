"""The pieces of an epoch, resident or streamed, and their dispatch to the devices."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvae_jax.config import RunConfig
from cvae_jax.data.batches import (
    NO_EXAMPLE,
    Feed,
    Gathered,
    binarize_dataset,
    in_rows,
    make_feed,
    piece_length,
    put_on_device,
)
from cvae_jax.data.dataset import Splits
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import build_model
from cvae_jax.runtime import devices
from cvae_jax.training.loop import (
    Dispatch,
    Programs,
    behind,
    build_programs,
    dispatch_epochs,
)
from cvae_jax.training.step import TrainState
from cvae_jax.training.test_loss import compute_test_loss
from tests.helpers import SMALL_CONFIG, assert_trees_equal, run_config

IMAGE_BYTES = 784
BATCH_BYTES = 128 * IMAGE_BYTES
STREAM_BYTES = 8 * BATCH_BYTES  # less than the data set; two batches in each of four pieces


@pytest.fixture(scope="module")
def run(small_splits: Splits) -> RunConfig:
    return run_config(small_splits)


def small_feed(splits: Splits, data_memory: float | None = None) -> Feed:
    return make_feed(
        splits,
        jax.random.key(0),
        devices.make_mesh(1),
        batch_size=128,
        test_batch_size=300,
        fewest_pieces=3,
        data_memory=data_memory,
    )


def train_epoch(programs: Programs) -> tuple[TrainState, list[np.ndarray], np.ndarray]:
    """Return the state after an epoch, the losses of its steps, and its test losses."""
    state, losses = programs.init(), []
    for piece in programs.pieces(0, 0):
        state, sums = programs.train(state, piece)
        losses.append(np.asarray(sums.loss))
    test = [np.asarray(sums.loss) for sums in programs.test(state.params)]
    return state, [np.concatenate(losses)], np.concatenate(test)


@pytest.mark.parametrize(("num_devices", "data_memory"), [(1, STREAM_BYTES), (2, 7e4)])
def test_a_streamed_data_set_gives_the_results_of_a_resident_one_to_the_bit(
    num_devices: int, data_memory: float, run: RunConfig, small_splits: Splits
) -> None:
    mesh = devices.make_mesh(num_devices)
    resident = build_programs(run, small_splits, mesh)
    streamed = build_programs(run, small_splits, mesh, data_memory)
    assert resident.is_resident
    assert not streamed.is_resident
    assert_trees_equal(train_epoch(streamed), train_epoch(resident))


def test_the_rest_of_an_epoch_has_each_of_its_images_once(small_splits: Splits) -> None:
    resident, streamed = small_feed(small_splits), small_feed(small_splits, STREAM_BYTES)
    whole = np.concatenate([rows for _, rows in resident.train(2, 0)])
    np.testing.assert_array_equal(np.sort(whole[whole != NO_EXAMPLE]), np.arange(1000))
    for first_row in (0, 1, 3, 7):
        for feed in (resident, streamed):
            pieces = [rows for _, rows in feed.train(2, first_row)]
            np.testing.assert_array_equal(np.concatenate(pieces), whole[first_row:])
            assert len({len(rows) for rows in pieces[:-1]}) <= 1
            assert len(pieces) == math.ceil((8 - first_row) / 2)


def test_a_stream_holds_the_images_of_its_rows_and_keeps_to_its_memory(
    small_splits: Splits,
) -> None:
    for examples, rows in small_feed(small_splits, STREAM_BYTES).train(0, 0):
        assert isinstance(examples, Gathered)
        assert examples.image.dtype == np.uint8
        assert 4 * examples.image.nbytes <= STREAM_BYTES  # four are on the device at a time
        chosen = np.asarray(rows)
        expected = small_splits.train.image[chosen].reshape(examples.image.shape)
        np.testing.assert_array_equal(examples.image, expected)
        np.testing.assert_array_equal(examples.label, small_splits.train.label[chosen])


def test_a_resident_data_set_is_on_each_device_once_and_in_bytes(
    run: RunConfig, small_splits: Splits
) -> None:
    def live_bytes() -> int:
        arrays = jax.live_arrays()
        # `nbytes` is that of the whole array, which each device has.
        return sum(one.nbytes for one in arrays if one.dtype == np.uint8 and one.ndim == 2)

    before = live_bytes()
    programs = build_programs(run, small_splits, devices.make_mesh(2))
    state = programs.init()
    for piece in programs.pieces(0, 0):
        state, _ = programs.train(state, piece)
    assert live_bytes() - before == (1000 + 300) * IMAGE_BYTES


class CountedArray:
    """Images that count how often they are read."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.nbytes = np.asarray(array), array.shape, array.nbytes
        self.reads = 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.reads += 1
        return self.array


def test_nothing_is_gathered_before_it_is_asked_for(small_splits: Splits) -> None:
    images = CountedArray(small_splits.train.image)
    train = small_splits.train._replace(image=cast(np.ndarray, images))
    pieces = small_feed(small_splits._replace(train=train), data_memory=1).train(0, 0)
    assert images.reads == 0
    for number in (1, 2):
        next(pieces)
        assert images.reads == number


@given(num_rows=st.integers(1, 6000), fewest=st.integers(1, 10_000))
def test_pieces_are_short_enough_and_of_one_length_where_they_can_be(
    num_rows: int, fewest: int
) -> None:
    length = piece_length(num_rows, fewest)
    assert 1 <= length <= math.ceil(num_rows / min(fewest, num_rows))
    divisors = [number for number in range(fewest, 2 * fewest) if num_rows % number == 0]
    assert num_rows % length == 0 or not divisors


def test_an_epoch_of_mnist_is_cut_into_pieces_of_one_length() -> None:
    assert piece_length(469, 7) == 67


def test_work_is_dispatched_up_to_the_last_epoch_or_until_a_stop(
    run: RunConfig, small_splits: Splits
) -> None:
    programs = build_programs(run, small_splits, data_memory=STREAM_BYTES)

    def dispatch(state: TrainState, is_stopped: Callable[[], bool]) -> list[Dispatch]:
        return list(
            dispatch_epochs(
                programs,
                state,
                2,
                is_copied=lambda epoch: epoch == 1,
                is_drawn=lambda epoch: epoch == 2,
                is_stopped=is_stopped,
                label=np.arange(4, dtype=np.int32),
            )
        )

    whole = dispatch(programs.init(), lambda: False)
    ends = 2 * [False, False, False, True]
    assert [one.step for one in whole] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [one.test is not None for one in whole] == ends
    assert [one.samples is not None for one in whole] == [*(7 * [False]), True]
    # The copy of the first epoch stays, and the last state, whose memory nothing takes over.
    assert [not one.state.step.is_deleted() for one in whole] == ends
    assert int(whole[-1].state.step) == 16

    calls = iter([False] * 5 + [True])
    part = dispatch(programs.init(), lambda: next(calls))
    assert len(part) == 5
    rest = dispatch(part[-1].state, lambda: False)
    assert_trees_equal(rest[-1].state, whole[-1].state)
    in_parts, in_one_go = (
        np.concatenate([one.train.loss for one in pieces]) for pieces in (part + rest, whole)
    )
    np.testing.assert_array_equal(in_parts, in_one_go)
    assert dispatch(rest[-1].state, lambda: False) == []


def test_more_is_dispatched_ahead_on_an_accelerator_with_resident_data(
    run: RunConfig, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_programs(run, small_splits).num_ahead == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert build_programs(run, small_splits).num_ahead > 1
    assert build_programs(run, small_splits, data_memory=STREAM_BYTES).num_ahead == 1


def test_each_item_is_read_once_some_more_are_made() -> None:
    def read(number: int, ahead: int) -> list[tuple[int, int]]:
        made: list[int] = []

        def make() -> Iterator[int]:
            for item in range(number):
                made.append(item)
                yield item

        return [(item, len(made)) for item in behind(make(), ahead)]

    assert read(4, 1) == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert read(4, 2) == [(0, 3), (1, 4), (2, 4), (3, 4)]
    assert read(2, 3) == [(0, 2), (1, 2)]
    assert read(0, 3) == []


def test_a_black_and_white_run_is_tested_on_one_black_and_white_copy(small_splits: Splits) -> None:
    run = run_config(small_splits, dataclasses.replace(SMALL_CONFIG, binarize="dynamic"))
    programs, key = build_programs(run, small_splits), partial(make_key, run.train.seed)
    params = programs.init().params
    copy = binarize_dataset(put_on_device(small_splits.test), key(Purpose.TEST_BINARIZE))
    order = in_rows(np.arange(300), 300)
    model = build_model(run.model)
    expected = compute_test_loss(params, copy, order, key(Purpose.TEST), model=model)
    for (found,) in (programs.test(params), programs.test(params)):
        np.testing.assert_allclose(found.loss.sum(), expected.loss.sum(), rtol=1e-5)
