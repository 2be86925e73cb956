import numpy as np
import pytest

from cvae_jax import judge, judges, sample_quality
from cvae_jax.batches import put_on_device
from cvae_jax.keys import Purpose
from cvae_jax.models import CVAE
from cvae_jax.types import Dataset, Params, Splits


@pytest.fixture(scope="module")
def of_mnist(mnist: Splits) -> Params:
    return judges.find_judge(mnist, mnist.fingerprint(), iter)


def part(dataset: Dataset, number: int) -> Dataset:
    return Dataset(dataset.image[:number], dataset.label[:number])


def test_the_judge_is_judged_on_real_images(
    of_mnist: Params, model: CVAE, small_splits: Splits
) -> None:
    test = small_splits.test
    found = sample_quality.measure_judge(of_mnist, put_on_device(test), model)
    np.testing.assert_array_equal(found.confusion.sum(axis=1), np.bincount(test.label))
    measured = found.measurements["accuracy of the judge"]
    assert measured.value > 0.98
    assert measured.value == np.trace(found.confusion) / 300
    assert measured.standard_error == pytest.approx(
        np.sqrt(measured.value * (1 - measured.value) / 300)
    )
    assert found.words == f"the judge errs on {1 - measured.value:.2%} of real images"
    wrong = Dataset(test.image, (np.asarray(test.label) + 1) % 10)
    found = sample_quality.measure_judge(of_mnist, put_on_device(wrong), model)
    assert found.measurements["accuracy of the judge"].value < 0.02


def test_samples_are_judged_by_the_class_that_was_asked_for(
    of_mnist: Params,
    of_judge: sample_quality.OfJudge,
    model: CVAE,
    mnist: Splits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In the place of the model, real images: nines wherever a four is asked for.
    label = np.asarray(mnist.train.label)

    def draw(_params: object, _seed: int, _purpose: int, asked: np.ndarray, _: CVAE) -> Dataset:
        given = np.where(asked == 4, 9, asked)
        chosen = [np.flatnonzero(label == one)[i // 10] for i, one in enumerate(given)]
        return put_on_device(Dataset(mnist.train.image[chosen], asked))

    monkeypatch.setattr(sample_quality, "draw", draw)
    found = sample_quality.measure_conditional({}, 0, of_mnist, of_judge, model, 30)
    assert found.confusion.shape == (10, 10)
    np.testing.assert_array_equal(found.confusion.sum(axis=1), 30)
    np.testing.assert_array_equal(found.samples.label, np.tile(np.arange(10), 30))
    assert found.confusion[4, 9] >= 29
    assert found.confusion[4, 4] == 0
    measured = found.measurements["conditional accuracy"]
    assert measured.value == pytest.approx(0.9, abs=0.02)
    assert measured.protocol == f"30 samples of each class; {of_judge.words}"


@pytest.fixture
def of_judge() -> sample_quality.OfJudge:
    return sample_quality.OfJudge({}, np.eye(10, dtype=int), "the judge errs on 0.42% of images")


def test_samples_of_an_untrained_model_are_told_from_digits(
    of_mnist: Params,
    of_judge: sample_quality.OfJudge,
    model: CVAE,
    params: Params,
    mnist: Splits,
) -> None:
    splits = mnist._replace(train=part(mnist.train, 1500), test=part(mnist.test, 1000))
    label = np.asarray(splits.train.label)
    samples = sample_quality.draw(params, 0, Purpose.SAMPLES, label, model)
    found, again = (
        sample_quality.measure_distribution(0, of_mnist, of_judge, samples, splits, model)
        for _ in range(2)
    )
    assert found == again
    drawn = found["Fréchet distance of samples"]
    floor = found["Fréchet distance of training images, the floor"]
    assert floor.value < drawn.value / 20
    for one in (drawn, floor):
        assert one.standard_error is not None
        assert 0 < one.standard_error < one.value
        assert "against 1,000 test images" in one.protocol
    assert found["precision of training images, the floor"].value > 0.6
    assert found["recall of training images, the floor"].value > 0.6
    assert found["recall of samples"].value < 0.05
    assert all(one.protocol.endswith(of_judge.words) for one in found.values())


def test_a_perfect_model_reaches_the_floor_whatever_the_classes_shares(
    of_mnist: Params, of_judge: sample_quality.OfJudge, model: CVAE, mnist: Splits
) -> None:
    # Nearly all of it ones; what is "drawn" is the training set itself.
    label = np.asarray(mnist.train.label)
    skewed = np.concatenate([np.flatnonzero(label == 1)[:400], np.flatnonzero(label != 1)[:100]])
    train = Dataset(mnist.train.image[skewed], label[skewed])
    splits = mnist._replace(train=train, test=part(mnist.test, 300))
    drawn = put_on_device(train)
    found = sample_quality.measure_distribution(0, of_mnist, of_judge, drawn, splits, model)
    for what in ("Fréchet distance", "precision", "recall"):
        value = found[f"{what} of samples"].value
        assert value == pytest.approx(found[f"{what} of training images, the floor"].value)


def test_a_judge_learns_from_samples_alone(
    of_judge: sample_quality.OfJudge,
    model: CVAE,
    small_splits: Splits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judge, "_FEWEST_STEPS", 60)
    monkeypatch.setattr(judge, "_EPOCHS", 1)
    test = put_on_device(small_splits.test)
    noise = np.random.default_rng(0).integers(0, 256, small_splits.train.image.shape, np.uint8)
    values = []
    for images in (small_splits.train.image, noise):
        samples = put_on_device(Dataset(images, small_splits.train.label))
        found = sample_quality.measure_classification(0, of_judge, samples, test, model, iter)
        values.append(found["classification accuracy score"].value)
    assert values[0] > 0.6
    assert values[1] < 0.3
