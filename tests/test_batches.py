"""Batches: every example exactly once, the same numbers wherever and however they are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cvae_jax.data import batches
from cvae_jax.data.batches import NO_EXAMPLE, epoch_order, put_on_device, take_batch
from cvae_jax.data.dataset import Dataset

KEY = jax.random.key(0, impl="threefry2x32")


@pytest.fixture(scope="module")
def on_host() -> Dataset:
    """Return 50 images of 6 x 5 pixels, a third of them black."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 6, 5, 1), np.uint8) * (rng.random((50, 6, 5, 1)) > 1 / 3)
    return Dataset(image.astype(np.uint8), (np.arange(50) % 10).astype(np.int32))


def test_an_epoch_has_every_image_once_in_469_batches_the_last_of_96() -> None:
    rows = np.asarray(epoch_order(3, KEY, num_examples=60_000, batch_size=128))
    assert rows.shape == (469, 128)
    np.testing.assert_array_equal(np.sort(rows[rows != NO_EXAMPLE]), np.arange(60_000))
    assert (rows[-1] != NO_EXAMPLE).sum() == 96
    assert (rows[:-1] != NO_EXAMPLE).all()


def test_the_order_is_a_function_of_key_and_epoch() -> None:
    def order(epoch: int, key: jax.Array) -> np.ndarray:
        return np.asarray(epoch_order(epoch, key, num_examples=1000, batch_size=8))

    np.testing.assert_array_equal(order(1, KEY), order(1, KEY))
    assert (order(0, KEY) != order(1, KEY)).mean() > 0.9
    assert (order(1, KEY) != order(1, jax.random.key(1))).mean() > 0.9


def test_the_numbers_are_those_of_version_0_2(on_host: Dataset) -> None:
    order = epoch_order(2, KEY, num_examples=9, batch_size=4)
    assert np.asarray(order).tolist() == [[7, 4, 3, 1], [6, 0, 2, 5], [8, -1, -1, -1]]
    binary = batches.binarize_dataset(put_on_device(on_host), KEY)
    white = np.flatnonzero(np.asarray(binary.image[7]))
    assert white.tolist() == [0, 1, 7, 9, 13, 15, 18, 20, 21, 22, 26, 29]


def test_a_batch_holds_grey_levels_and_masks_what_fills_it_up(on_host: Dataset) -> None:
    batch = take_batch(put_on_device(on_host), jnp.array([5, 0, NO_EXAMPLE]))
    image = np.asarray(on_host.image).reshape(50, 30)
    np.testing.assert_allclose(batch.image, image[[5, 0, -1]] / 255, rtol=1e-6)
    np.testing.assert_array_equal(batch.label, [5, 0, 9])
    np.testing.assert_array_equal(batch.mask, [1, 1, 0])


def test_batches_from_the_host_are_those_from_the_device(on_host: Dataset) -> None:
    order = epoch_order(0, KEY, num_examples=50, batch_size=8)
    sharding = NamedSharding(Mesh(jax.devices()[:1], ("batch",)), PartitionSpec(None, "batch"))
    resident = put_on_device(on_host)
    assert resident.image.shape == (50, 30)
    assert resident.image.dtype == np.uint8
    gathered = batches.gather(on_host, np.asarray(order), sharding)
    made = []
    for examples in (resident, gathered):
        entries, make = batches.in_turn(examples, order)
        made.append(jax.lax.map(make, entries))
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(one, other)


def test_binarised_images_are_what_their_grey_levels_say(on_host: Dataset) -> None:
    grey = take_batch(put_on_device(on_host), jnp.arange(50)).image
    draws = jax.vmap(lambda key: batches.binarize(grey, key))(jax.random.split(KEY, 400))
    assert draws.dtype == jnp.float32
    assert set(np.unique(draws)) == {0.0, 1.0}
    # Six standard deviations of a mean of 400 draws; where a grey level is 0 or 1, none at all.
    deviation = jnp.sqrt(grey * (1 - grey) / 400)
    assert (jnp.abs(draws.mean(axis=0) - grey) <= 6 * deviation + 1e-6).all()


def test_a_binarised_image_depends_on_the_key_and_its_index_alone(on_host: Dataset) -> None:
    dataset = put_on_device(on_host)
    program = jax.jit(batches.binarize_dataset)
    whole = program(dataset, KEY)
    part = program(Dataset(dataset.image[:30], dataset.label[:30]), KEY)
    assert part.image.dtype == jnp.uint8
    assert set(np.unique(part.image)) == {0, 255}
    np.testing.assert_array_equal(part.image, whole.image[:30])
    np.testing.assert_array_equal(part.label, dataset.label[:30])
    assert (np.asarray(program(dataset, jax.random.key(1)).image) != whole.image).any()


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (8, 4), (3, 5)])
def test_map_rows_calls_on_every_index_once_in_order(num_examples: int, batch_size: int) -> None:
    seen = []

    def function(row: jax.Array) -> dict[str, jax.Array]:
        assert row.shape == (batch_size,)
        assert row.dtype == jnp.int32
        seen.append(np.asarray(row))
        return {"square": row**2, "image": jnp.ones((batch_size, 2)) * row[:, None]}

    result = batches.map_rows(function, num_examples, batch_size)
    index = np.arange(num_examples)
    assert isinstance(result["square"], np.ndarray)
    np.testing.assert_array_equal(result["square"], index**2)
    np.testing.assert_array_equal(result["image"], np.stack([index, index], axis=1))
    rows = np.concatenate(seen)
    np.testing.assert_array_equal(rows[:num_examples], index)
    assert (rows[num_examples:] == NO_EXAMPLE).all()
    assert len(rows) - num_examples < batch_size


def test_a_batch_of_large_images_is_smaller() -> None:
    assert batches.images_at_a_time(28 * 28) == 1000
    assert batches.images_at_a_time(512 * 512 * 3) == 10
    assert batches.images_at_a_time(10**9) == 1
