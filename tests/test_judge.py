from typing import Any

import jax
import numpy as np
import pytest

from cvae_jax import judge, judges
from cvae_jax.batches import put_on_device
from cvae_jax.types import Dataset, Splits

SHAPE = (9, 8, 1)


@pytest.fixture
def stripes() -> Dataset:
    """Give images of horizontal (0) and of vertical (1) stripes, with noise."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 300, np.int32)
    image = random.integers(0, 100, (300, *SHAPE), np.uint8)
    image[label == 0, ::2] += 150
    image[label == 1, :, ::2] += 150
    return Dataset(image, label)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train judges for a minute less."""
    monkeypatch.setattr(judge, "_FEWEST_STEPS", 30)
    monkeypatch.setattr(judge, "_EPOCHS", 1)


@pytest.mark.usefixtures("quick")
def test_it_learns_from_its_training_set_and_from_the_key_alone(stripes: Dataset) -> None:
    on_device, steps = put_on_device(stripes), []

    def track(numbers: range) -> range:
        steps.append(len(numbers))
        return numbers

    trained = [
        judge.train_judge(
            jax.random.key(key), on_device, image_shape=SHAPE, num_classes=2, track=track
        )
        for key in (0, 0, 1)
    ]
    assert steps == [30, 30, 30]
    verdict = judge.judge_all(trained[0], on_device, SHAPE, 2)
    assert np.mean(np.argmax(verdict.logits, axis=-1) == stripes.label) > 0.95
    leaves = [jax.tree.leaves(params) for params in trained]
    assert all((one == other).all() for one, other in zip(*leaves[:2], strict=True))
    assert any((one != other).any() for one, other in zip(*leaves[1:], strict=True))


@pytest.mark.usefixtures("quick")
def test_it_judges_in_the_precision_that_is_asked_for_and_trains_in_the_default_one(
    stripes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = []
    apply = judge.judge

    def spy(*arguments: Any) -> judge.Verdict:
        precisions.append(jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
        return apply(*arguments)

    monkeypatch.setattr(judge, "judge", spy)
    on_device, key = put_on_device(stripes), jax.random.key(0)
    with jax.default_matmul_precision("highest"):
        params = judge.train_judge(key, on_device, image_shape=SHAPE, num_classes=2)
        judge.judge_all(params, on_device, SHAPE, 2)
    assert precisions == ["default", "highest"]


@pytest.mark.parametrize("at_a_time", [1, 7, 300, 1000])
def test_batches_change_nothing_but_rounding(
    at_a_time: int, stripes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = judge.init_judge(jax.random.key(0), SHAPE, 2)
    image = stripes.image[:20].astype(np.float32) / 255
    expected = judge.judge(params, jax.numpy.asarray(image), 2)
    monkeypatch.setattr(judge, "images_at_a_time", lambda _: at_a_time)
    few = Dataset(stripes.image[:20], stripes.label[:20])
    found = judge.judge_all(params, put_on_device(few), SHAPE, 2)
    assert found.features.shape == (20, judge.NUM_FEATURES)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_only_training_drops_features(stripes: Dataset) -> None:
    params = judge.init_judge(jax.random.key(0), SHAPE, 2)
    image = jax.numpy.asarray(stripes.image[:5], np.float32) / 255
    whole = judge.judge(params, image, 2)
    dropped = judge.judge(params, image, 2, jax.random.key(1))
    np.testing.assert_array_equal(whole.features, dropped.features)
    assert (np.asarray(whole.logits) != dropped.logits).any()


def test_images_are_shifted_each_by_its_own_and_by_two_pixels_at_most() -> None:
    image = np.zeros((200, 28, 28, 1), np.float32)
    image[:, 14, 14] = 1
    shifted = np.asarray(judge.shift(jax.random.key(0), jax.numpy.asarray(image)))
    number, row, column, _ = np.nonzero(shifted)
    np.testing.assert_array_equal(number, np.arange(200))
    for place in (row, column):
        assert set(place) == {12, 13, 14, 15, 16}
    assert len({*zip(row, column, strict=True)}) == 25
    small = jax.numpy.ones((3, 5, 4, 2))
    np.testing.assert_array_equal(judge.shift(jax.random.key(0), small), small)


# The one that ships.


def test_the_judge_of_mnist_reaches_its_accuracy_and_fits_the_package(mnist: Splits) -> None:
    assert judges.BUNDLED.stat().st_size <= 2_000_000

    def track(numbers: range) -> range:
        raise AssertionError("it has to be trained")

    params = judges.find_judge(mnist, mnist.fingerprint(), track)
    # Other images of the same shape and as many classes have a judge of their own.
    assert judges.read(judges.BUNDLED, mnist, "0" * 64) is None
    verdict = judge.judge_all(params, put_on_device(mnist.test), mnist.image_shape, 10)
    assert np.mean(np.argmax(verdict.logits, axis=-1) == mnist.test.label) >= 0.995
