"""Where the examples come from changes nothing but memory."""

import math
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from cvae_jax import batches, feeding, sharding
from cvae_jax.config import RunConfig
from cvae_jax.programs import build_programs
from cvae_jax.types import Gathered, Splits
from tests.conftest import NUM_DEVICES, assert_trees_equal
from tests.test_sharding import train_epoch


@pytest.mark.parametrize(("num_devices", "data_memory"), [(1, 1), (1, 1e6), (NUM_DEVICES, 7e4)])
def test_a_data_set_that_streams_gives_the_same_to_the_bit(
    num_devices: int, data_memory: float, small_run: RunConfig, small_splits: Splits
) -> None:
    mesh = sharding.make_mesh(num_devices)
    resident = build_programs(small_run, small_splits, mesh)
    streamed = build_programs(small_run, small_splits, mesh, data_memory)
    assert resident.is_resident
    assert not streamed.is_resident
    in_one, in_pieces = train_epoch(resident), train_epoch(streamed)
    assert_trees_equal(in_pieces[:2], in_one[:2])
    # The test loss is one sum for each piece of the test set.
    parts = [np.concatenate(sums) for sums in zip(*in_pieces[2], strict=True)]
    assert_trees_equal(parts, [np.concatenate(sums) for sums in zip(*in_one[2], strict=True)])


def test_a_stream_stays_within_its_memory(small_run: RunConfig, small_splits: Splits) -> None:
    data_memory = 7e5
    programs = build_programs(small_run, small_splits, data_memory=data_memory)
    pieces = list(programs.pieces(0, 0))
    assert len(pieces) > 2
    for examples, rows in pieces:
        assert isinstance(examples, Gathered)
        assert examples.image.dtype == np.uint8
        assert examples.image.nbytes <= data_memory / feeding._CHUNKS
        chosen = np.asarray(rows)
        expected = small_splits.train.image[chosen].reshape(examples.image.shape)
        np.testing.assert_array_equal(examples.image, expected)
        np.testing.assert_array_equal(examples.label, small_splits.train.label[chosen])
    indices = np.concatenate([np.asarray(rows) for _, rows in pieces])
    np.testing.assert_array_equal(np.sort(indices[indices != batches.NO_EXAMPLE]), np.arange(1000))


def test_a_resident_data_set_is_uint8_and_on_each_device_once(
    small_run: RunConfig, small_splits: Splits
) -> None:
    def sizes() -> Iterator[int]:
        for array in jax.live_arrays():
            if array.dtype == np.uint8 and array.ndim == 2:
                yield array.nbytes

    before = sum(sizes())
    programs = build_programs(small_run, small_splits, sharding.make_mesh(2))
    state = programs.init()
    for piece in programs.pieces(0, 0):
        state, _ = programs.train(state, piece)
    # `nbytes` is of the whole array, which each device has.
    assert sum(sizes()) - before == (1000 + 300) * 784


def test_nothing_is_gathered_before_it_is_asked_for(
    small_run: RunConfig, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = []
    gather = batches.gather

    def counted(*arguments: object) -> object:
        gathered.append(arguments)
        return gather(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(feeding, "gather", counted)
    pieces = build_programs(small_run, small_splits, data_memory=1).pieces(0, 0)
    assert not gathered
    for number in (1, 2):
        next(pieces)
        assert len(gathered) == number


@pytest.mark.parametrize("num_rows", [1, 2, 7, 467, 469, 5469])
@pytest.mark.parametrize("fewest", [1, 2, 7, 300, 10_000])
def test_pieces_are_short_enough_and_even_where_they_can_be(num_rows: int, fewest: int) -> None:
    length = feeding.piece_length(num_rows, fewest)
    assert 1 <= length <= num_rows
    assert length <= math.ceil(num_rows / min(fewest, num_rows))
    divisors = [number for number in range(fewest, 2 * fewest) if num_rows % number == 0]
    assert num_rows % length == 0 or not divisors


def test_an_epoch_of_mnist_is_cut_without_any_waste() -> None:
    assert feeding.piece_length(469, 7) == 67
