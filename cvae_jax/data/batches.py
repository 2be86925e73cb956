"""Batches of a data set: every example exactly once, in an order that a key fixes."""

import functools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm.auto import tqdm

from cvae_jax.data.dataset import ArrayLike, Dataset, Splits
from cvae_jax.runtime.devices import divided, on_all, put

_MOST_IMAGES_AT_A_TIME = 1000
_MOST_PIXELS_AT_A_TIME = 8_000_000

NO_EXAMPLE = -1
"""The index that fills up a short batch. Its mask is 0."""


class Batch(NamedTuple):
    """The examples of a batch as a model takes them."""

    image: jax.Array  # (B, ...) float32 grey levels in [0, 1]
    label: jax.Array  # (B,) int32
    mask: jax.Array  # (B,) float32: 1, or 0 for an example that only fills up the batch


class Gathered(NamedTuple):
    """The examples of several batches, gathered by the host."""

    image: jax.Array  # (S, B, D) uint8
    label: jax.Array  # (S, B) int32


def epoch_order(
    epoch: jax.Array | int, key: jax.Array, *, num_examples: int, batch_size: int
) -> jax.Array:
    """Return the indices of an epoch, shuffled: (ceil(N / B), B) int32, filled with NO_EXAMPLE.

    The order is a function of the key, one for the whole run, and the epoch's number.
    """
    shuffled = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return in_rows(shuffled, batch_size)


def in_rows(indices: ArrayLike, batch_size: int) -> jax.Array:
    """Cut indices (N,) into rows (ceil(N / B), B), the last one filled up with NO_EXAMPLE."""
    fill = -indices.shape[0] % batch_size
    padded = jnp.pad(indices, (0, fill), constant_values=NO_EXAMPLE)
    return padded.reshape(-1, batch_size)


def put_on_device(dataset: Dataset, sharding: NamedSharding | None = None) -> Dataset:
    """Copy a data set to the default device, or as `sharding` says; images are (N, D) uint8."""
    copy = jax.device_put if sharding is None else partial(put, sharding=sharding)
    flat = dataset.image.reshape(len(dataset.label), -1)
    return Dataset(image=copy(flat), label=copy(dataset.label))


def gather(dataset: Dataset, order: np.ndarray, sharding: NamedSharding) -> Gathered:
    """Gather batches on the host. Each process gathers what its own devices need.

    Args:
        dataset: NumPy arrays on the host.
        order: (S, B) indices. NO_EXAMPLE gathers the last example, as `take_batch` does.
        sharding: how arrays (S, B, ...) lie on the devices.
    """
    num_pixels = math.prod(dataset.image.shape[1:])

    def gather_images(index: Any) -> np.ndarray:
        rows = order[index[:2]]
        return np.asarray(dataset.image)[rows].reshape(*rows.shape, num_pixels)

    shape = (*order.shape, num_pixels)
    return Gathered(
        image=jax.make_array_from_callback(shape, sharding, gather_images),
        label=put(np.asarray(dataset.label)[order], sharding),
    )


def take_batch(dataset: Dataset, row: jax.Array) -> Batch:
    """Take the examples of one row (B,) of indices and scale them to [0, 1].

    NO_EXAMPLE is -1, so it takes the last example; the mask leaves that out of all sums.
    """
    return _scale(jnp.asarray(dataset.image)[row], jnp.asarray(dataset.label)[row], row)


def in_turn(examples: Dataset | Gathered, order: jax.Array) -> tuple[Any, Callable[[Any], Batch]]:
    """Return what `lax.scan` runs over, one entry for each row, and what makes a batch of an entry.

    Args:
        examples: a data set on the device, or the batches of `order`, gathered by the host.
        order: (S, B) indices into the data set.
    """
    if isinstance(examples, Gathered):
        return (*examples, order), lambda entry: _scale(*entry)
    return order, partial(take_batch, examples)


def _scale(image: jax.Array, label: jax.Array, row: jax.Array) -> Batch:
    mask = (row != NO_EXAMPLE).astype(jnp.float32)
    return Batch(image.astype(jnp.float32) / 255, label, mask)


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
    everywhere, shared = on_all(mesh), divided(mesh)
    order = partial(epoch_order, num_examples=num_examples, batch_size=batch_size)
    size = splits.train.image.nbytes + splits.test.image.nbytes

    if data_memory is None or size <= data_memory:
        train_set, test_set = (
            put_on_device(dataset, everywhere) for dataset in (splits.train, splits.test)
        )
        length = piece_length(num_rows, fewest_pieces)

        @partial(jax.jit, static_argnums=2, out_shardings=shared)
        def cut_order(epoch: int, key: jax.Array, first_row: int) -> tuple[jax.Array, ...]:
            rows = order(epoch, key)
            return tuple(rows[i : i + length] for i in range(first_row, num_rows, length))

        def train(epoch: int, first_row: int) -> Iterator[Piece]:
            for rows in cut_order(epoch, order_key, first_row):
                yield train_set, rows

        whole_test = test_set, put(test_rows, shared)
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
            yield gather(dataset, piece, shared), put(piece, shared)

    program = jax.jit(order, out_shardings=everywhere)
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


def images_at_a_time(num_pixels: int) -> int:
    """Return how many images of D pixels to put in a batch where nothing is trained."""
    return max(1, min(_MOST_IMAGES_AT_A_TIME, _MOST_PIXELS_AT_A_TIME // num_pixels))


def map_rows(
    function: Callable[[jax.Array], Any],
    num_examples: int,
    batch_size: int,
    *,
    description: str = "",
    done: Any = None,
    keep: Callable[[Any], None] | None = None,
) -> Any:
    """Call a function on the indices 0 to N - 1, a batch at a time, and join its results.

    Several devices of this process share each batch, where it can be divided equally.

    Args:
        function: compiled, from a row (B,) int32 of indices to a pytree of arrays (B, ...). The
            last row is filled up with NO_EXAMPLE, whose results are left out.
        num_examples: N.
        batch_size: B. Memory grows with it.
        description: the name of a progress bar that appears after a second; empty for no bar.
        done: what `keep` was given last in an earlier call with the same arguments.
        keep: called with the results of the rows so far, so that they can be kept.

    Returns:
        The function's pytree, with NumPy arrays (N, ...).
    """
    # NumPy makes the rows, because JAX would compile programs for them at each cold start.
    rows = np.full((math.ceil(num_examples / batch_size), batch_size), NO_EXAMPLE, np.int32)
    rows.flat[:num_examples] = np.arange(num_examples)
    results = [] if done is None else [done]
    first = 0 if done is None else len(jax.tree.leaves(done)[0]) // batch_size
    bar = tqdm(
        rows[first:],
        initial=first,
        total=len(rows),
        desc=description,
        unit="batch",
        delay=1,
        disable=not description,
    )
    mesh = Mesh(np.array(jax.local_devices()), ("row",))
    is_shared = mesh.size > 1 and batch_size % mesh.size == 0
    sharding = NamedSharding(mesh, PartitionSpec("row")) if is_shared else None
    for row in bar:
        results.append(jax.device_get(function(jax.device_put(row, sharding))))
        if keep is not None:
            results = [_join(results)]
            keep(results[0])
    return jax.tree.map(lambda array: array[:num_examples], _join(results))


def _join(results: list[Any]) -> Any:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def binarize(image: jax.Array, key: jax.Array) -> jax.Array:
    """Draw each pixel 1 with its grey level as the probability, else 0, (B, ...) float32."""
    return jax.random.bernoulli(key, image).astype(jnp.float32)


def binarize_dataset(dataset: Dataset, key: jax.Array) -> Dataset:
    """Draw a black-and-white copy of a data set on the device; return (N, D) uint8, 0 or 255.

    Image i is a function of the key, i and its grey levels alone.
    """

    def draw(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, image = one
        white = binarize(image.astype(jnp.float32) / 255, jax.random.fold_in(key, index))
        return (255 * white).astype(jnp.uint8)

    image = jnp.asarray(dataset.image)
    at_a_time = images_at_a_time(image.shape[1])
    binary = jax.lax.map(draw, (jnp.arange(len(image)), image), batch_size=at_a_time)
    return Dataset(binary, dataset.label)
