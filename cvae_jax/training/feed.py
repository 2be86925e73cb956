"""The examples of a run in pieces: resident on the devices, or streamed from the host."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from cvae_jax.data.batches import Gathered, epoch_order, gather, in_rows, put_on_device
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.runtime import devices

Piece: TypeAlias = tuple[Dataset | Gathered, jax.Array]
"""The arguments of one dispatch: examples on the devices, and rows (S, B) of their indices."""

_CHUNKS = 4  # on the devices at a time: the last two of an epoch, and the first two of its test


class Feed(NamedTuple):
    """A source of pieces. Resident or streamed, they have the same order and contents."""

    train: Callable[[int, int], Iterator[Piece]]  # epoch and first row, from 0
    test: Callable[[], Iterator[Piece]]
    is_resident: bool


def make_feed(
    splits: Splits,
    order_key: jax.Array,
    mesh: Mesh,
    *,
    batch_size: int,
    test_batch_size: int,
    fewest_pieces: int,
    data_memory: float | None,
) -> Feed:
    """Return a feed that keeps the data set on every device, or streams it where it does not fit.

    The host gathers a streamed piece while the devices work on the one before, provided that the
    caller asks for it as soon as that one is dispatched.

    Args:
        splits: the data set on the host.
        order_key: fixes the order of every epoch.
        mesh: the devices.
        batch_size: B in training.
        test_batch_size: B in tests.
        fewest_pieces: the least number of pieces of an epoch.
        data_memory: bytes on a device for images; None for no limit.
    """
    num_examples = len(splits.train.label)
    num_rows = math.ceil(num_examples / batch_size)
    test_rows = np.asarray(in_rows(np.arange(len(splits.test.label)), test_batch_size))
    on_all, divided = devices.on_all(mesh), devices.divided(mesh)
    order = functools.partial(epoch_order, num_examples=num_examples, batch_size=batch_size)
    size = splits.train.image.nbytes + splits.test.image.nbytes

    if data_memory is None or size <= data_memory:
        train_set, test_set = (
            put_on_device(dataset, on_all) for dataset in (splits.train, splits.test)
        )
        length = piece_length(num_rows, fewest_pieces)

        @functools.partial(jax.jit, static_argnums=2, out_shardings=divided)
        def cut_order(epoch: int, key: jax.Array, first_row: int) -> tuple[jax.Array, ...]:
            rows = order(epoch, key)
            return tuple(rows[i : i + length] for i in range(first_row, num_rows, length))

        def train(epoch: int, first_row: int) -> Iterator[Piece]:
            for rows in cut_order(epoch, order_key, first_row):
                yield train_set, rows

        whole_test = test_set, devices.put(test_rows, divided)
        return Feed(train, lambda: iter([whole_test]), is_resident=True)

    num_pixels = math.prod(splits.image_shape)

    def stream(
        dataset: Dataset, rows: np.ndarray, num_rows: int, fewest_pieces: int = 1
    ) -> Iterator[Piece]:
        bytes_per_row = rows.shape[1] // mesh.size * num_pixels  # on each device
        most_rows = max(1, int(data_memory / _CHUNKS / bytes_per_row))
        length = piece_length(num_rows, max(fewest_pieces, math.ceil(num_rows / most_rows)))
        for start in range(0, len(rows), length):
            piece = rows[start : start + length]
            yield gather(dataset, piece, divided), devices.put(piece, divided)

    program = jax.jit(order, out_shardings=on_all)
    whole_order = functools.lru_cache(2)(lambda epoch: program(epoch, order_key))

    def train_stream(epoch: int, first_row: int) -> Iterator[Piece]:
        rows = np.asarray(whole_order(epoch))
        whole_order(epoch + 1)  # dispatched ahead, so that the next epoch need not wait for it
        return stream(splits.train, rows[first_row:], num_rows, fewest_pieces)

    def test_stream() -> Iterator[Piece]:
        return stream(splits.test, test_rows, len(test_rows))

    return Feed(train_stream, test_stream, is_resident=False)


def piece_length(num_rows: int, fewest: int) -> int:
    """Return the rows of a piece. Pieces of equal length, where possible, need one program only.

    Args:
        num_rows: rows to cut into pieces.
        fewest: the least number of pieces; at most twice as many are made.
    """
    fewest = min(fewest, num_rows)
    choices = range(fewest, min(2 * fewest, num_rows + 1))
    even = [number for number in choices if num_rows % number == 0]
    return math.ceil(num_rows / (even[0] if even else fewest))
