"""Figures with their errors, the table and JSON; and the measures of samples, on real digits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import UserError
from cvae_jax.evaluation import report
from cvae_jax.evaluation.measurement import Finding, Measurement, mean, share
from cvae_jax.evaluation.samples import measure_accuracy, measure_distances
from cvae_jax.evaluation.subject import Subject
from cvae_jax.models.family import Autoencoding, Model, Params
from tests.helpers import drawing_from


def test_a_mean_has_the_standard_error_of_independent_values() -> None:
    values = np.random.default_rng(4).normal(3, 2, size=40_000).astype(np.float32)
    found = mean(values, "nats per image", "")
    assert found.value == pytest.approx(3, abs=0.05)
    assert found.standard_error == pytest.approx(scipy.stats.sem(values.astype(float)), rel=1e-6)


def test_a_share_has_the_standard_error_of_a_binomial() -> None:
    found = share(0.9, 400, "400 images")
    assert found.standard_error == pytest.approx(0.015)
    assert found._replace(standard_error=None) == Measurement(0.9, None, "share", "400 images")


@pytest.mark.parametrize(("hits", "number"), [(100, 100), (0, 100), (3, 3)])
def test_a_share_of_all_or_nothing_has_wilsons_interval(hits: int, number: int) -> None:
    found = share(hits / number, number, "some images")
    expected = scipy.stats.binomtest(hits, number).proportion_ci(method="wilson")
    assert found.standard_error is None
    assert found.interval == pytest.approx([*expected], abs=1e-4)
    assert found.protocol == "some images; 95 % interval (Wilson)"


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (share(1.0, 100, ""), "100.00 (96.30 to 100.00) %"),
        (share(0.954, 1000, ""), "95.40 ± 0.66 %"),
        (share(0.99999, 10**6, ""), "99.99900 ± 0.00032 %"),
        (Measurement(95.2206, 0.2506, "nats per image", ""), "95.22 ± 0.25"),
        (Measurement(0.0338688, 0.0168215, "", ""), "0.034 ± 0.017"),
        (Measurement(24.0, None, "dimensions", ""), "24"),
        (Measurement(2.0, 0.0, "", ""), "2.00 ± 0.00"),
    ],
)
def test_a_figure_keeps_two_digits_of_its_error(measurement: Measurement, text: str) -> None:
    assert str(measurement) == text


def test_the_table_is_no_wider_than_100_columns_and_says_a_protocol_once() -> None:
    words = "10,000 samples against 10,000 test images, " * 4
    figures = {
        "Fréchet distance of training images, the floor": Measurement(0.03, 0.017, "units", words),
        "precision of training images, the floor": share(1.0, 100, words),
        "recall of training images, the floor": share(1.0, 100, words),
    }
    lines = report.table(Finding(figures, {}, "class\n" + "word " * 50)).splitlines()
    assert max(map(len, lines)) <= 100
    order = [line.split("  ")[0] for line in lines if line[:1].strip()]
    assert order[1:4] == list(figures)
    assert "".join(lines).count("Wilson") == 1
    assert "    units; 10,000 samples" in lines[2]


def part(dataset: Dataset, number: int) -> Dataset:
    return Dataset(dataset.image[:number], dataset.label[:number])


def test_samples_are_judged_by_the_class_that_was_asked_for(mnist: Splits) -> None:
    model, params = drawing_from(mnist.train, swapped={4: 9})
    found = measure_accuracy(Subject(model, params, mnist, mnist.fingerprint(), num_samples=30))
    confusion = np.array(found.details["confusion"])
    np.testing.assert_array_equal(confusion.sum(axis=1), 30)
    assert confusion[4, 9] >= 28
    accuracy = found.measurements["conditional accuracy"]
    assert accuracy.value == np.trace(confusion) / 300 == pytest.approx(0.9, abs=0.02)
    assert accuracy.protocol == ("30 samples of each class; the judge errs on 0.42% of real images")
    assert found.measurements["accuracy of the judge"].value == 0.9958
    assert len(found.details["judge_accuracy_by_class"]) == 10
    lines = found.text.splitlines()
    assert len(lines) == 11
    assert "99.90 ± 0.10 %" in lines[1]


def test_only_classes_that_were_trained_on_are_asked_for(mnist: Splits) -> None:
    model, params = drawing_from(mnist.train)
    sevens = Dataset(*(array[np.asarray(mnist.train.label) == 7] for array in mnist.train))
    splits = mnist._replace(train=sevens)
    found = measure_accuracy(Subject(model, params, splits, mnist.fingerprint(), num_samples=20))
    numbers = np.array(found.details["confusion"]).sum(axis=1)
    np.testing.assert_array_equal(numbers, [0, 0, 0, 0, 0, 0, 0, 20, 0, 0])
    assert found.details["accuracy_by_class"][0] is None
    assert "no images" in found.text.splitlines()[1]


def test_distances_tell_noise_from_digits_and_digits_from_their_floor_hardly(
    mnist: Splits, model: Model, params: Params
) -> None:
    splits = mnist._replace(train=part(mnist.train, 1000), test=part(mnist.test, 600))
    real, images = drawing_from(mnist.train)
    good = measure_distances(Subject(real, images, splits, mnist.fingerprint()))
    bad = measure_distances(Subject(model, params, splits, mnist.fingerprint())).measurements
    drawn = good.measurements["Fréchet distance of samples"]
    floor = good.measurements["Fréchet distance of training images, the floor"]
    assert drawn.value < 3 * floor.value < bad["Fréchet distance of samples"].value / 10
    assert drawn.standard_error is not None
    assert 0 < drawn.standard_error < drawn.value
    assert good.measurements["precision of training images, the floor"].value > 0.6
    assert good.measurements["recall of samples"].value > 0.6
    assert bad["recall of samples"].value < 0.05
    # The floor depends on nothing but the data and the seed.
    assert bad["Fréchet distance of training images, the floor"].value == floor.value
    for one in good.measurements.values():
        assert "600 test images" in one.protocol
        assert "the judge errs on 0." in one.protocol


def test_reconstructions_of_a_perfect_autoencoder_are_as_far_from_test_images_as_its_images(
    mnist: Splits, model: Model, params: Params
) -> None:
    splits = mnist._replace(train=part(mnist.train, 1000), test=part(mnist.test, 600))

    def copy(params: Params, image: jax.Array, label: jax.Array, noise: jax.Array) -> Autoencoding:
        found = model.autoencode(params, image, label, noise)
        grey = image.reshape(found.logits.shape)
        return found._replace(logits=jnp.log(grey / (1 - grey)))

    perfect = Subject(model._replace(autoencode=copy), params, splits, mnist.fingerprint())
    found = report.measure(perfect, ["reconstructions", "distances"]).measurements
    assert found["accuracy of reconstructions"].value > 0.995
    for what in ("Fréchet distance", "precision", "recall"):
        floor = found[f"{what} of training images, the floor"]
        assert found[f"{what} of reconstructions"].value == pytest.approx(floor.value, rel=1e-6)


def test_a_figure_that_is_not_finite_is_an_error(mnist: Splits, model: Model) -> None:
    splits = mnist._replace(train=part(mnist.train, 50), test=part(mnist.test, 50))
    params = jax.tree.map(lambda leaf: leaf * 1e30, model.init(jax.random.key(0)))
    subject = Subject(model, params, splits, "")
    with pytest.raises(UserError, match=r"ELBO, grey levels of the model is (nan|inf); choose an"):
        report.measure(subject, ["elbo"])
    not_a_number = dataclasses.replace(subject, params=jax.tree.map(lambda x: x * jnp.nan, params))
    with pytest.raises(UserError, match="draws images that are not finite"):
        report.measure(not_a_number, ["accuracy"])


def test_measures_are_taken_in_the_order_of_the_table_whatever_the_order_asked_for(
    model: Model, params: Params, small_splits: Splits
) -> None:
    subject = Subject(model, params, small_splits, "", num_importance_samples=3)
    found = report.measure(subject, ["latent", "likelihood"])
    assert list(found.measurements) == ["-log p(x|y), binarised", "active units"]
    content = json.loads(report.to_json({"seed": 0}, found))
    assert list(content) == ["seed", "measurements", *found.details]
    assert content["measurements"]["active units"]["value"] == sum(content["is_active"])
