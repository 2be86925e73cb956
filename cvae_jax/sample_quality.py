"""Measures of what a model draws, by the eyes of a judge.

A sample is an image of pixel means, rounded to whole grey levels as in a file.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from cvae_jax import metrics
from cvae_jax.batches import images_at_a_time, put_on_device
from cvae_jax.judge import judge_all, train_judge
from cvae_jax.keys import Purpose, make_key
from cvae_jax.measures import Measurement, Measurements, share, share_of
from cvae_jax.models import CVAE
from cvae_jax.sampling import sample_dataset
from cvae_jax.types import Dataset, Params, Splits, Track

_NUM_BOOTSTRAPS = 20
_MOST_COMPARED = 10_000  # images of a set, all of which are compared with all of another


class OfJudge(NamedTuple):
    """How good the judge itself is, on real images."""

    measurements: Measurements
    confusion: np.ndarray  # (Y, Y) int, a row is the class that an image is of
    words: str  # its error, to be told beside what it judges


class Conditional(NamedTuple):
    """What the judge says of samples of each class."""

    measurements: Measurements
    confusion: np.ndarray  # (Y, Y) int, a row is the class that was asked for
    samples: Dataset  # (N, D) uint8 and (N,), the classes in turn


def measure_judge(judge: Params, test: Dataset, model: CVAE) -> OfJudge:
    """Measure the judge itself on real images.

    Args:
        judge: the judge's parameters.
        test: the test set on the device.
        model: a model of the same images.
    """
    _, judged = _judge(judge, test, model)
    label = np.asarray(test.label)
    measured = share(judged == label, f"{len(label):,} real test images")
    confusion = metrics.confusion_matrix(label, judged, model.config.num_classes)
    words = f"the judge errs on {1 - measured.value:.2%} of real images"
    return OfJudge({"accuracy of the judge": measured}, confusion, words)


def measure_conditional(
    params: Params, seed: int, judge: Params, of_judge: OfJudge, model: CVAE, num_samples: int
) -> Conditional:
    """Measure how often the judge sees the class that was asked for, all classes equally often.

    Args:
        params: the model's.
        seed: of the latents.
        judge: the judge's parameters.
        of_judge: how good it is.
        model: the module that `params` belong to.
        num_samples: images of each class.
    """
    num_classes = model.config.num_classes
    label = np.arange(num_samples * num_classes, dtype=np.int32) % num_classes
    samples = draw(params, seed, Purpose.SAMPLES, label, model)
    _, judged = _judge(judge, samples, model)
    protocol = f"{num_samples:,} samples of each class; {of_judge.words}"
    return Conditional(
        {"conditional accuracy": share(judged == label, protocol)},
        metrics.confusion_matrix(label, judged, num_classes),
        samples,
    )


def measure_distribution(
    seed: int, judge: Params, of_judge: OfJudge, samples: Dataset, splits: Splits, model: CVAE
) -> Measurements:
    """Measure how far samples, and as a floor real training images, are from the test set.

    Args:
        seed: of what is chosen, and of the bootstrap.
        judge: the judge's parameters.
        of_judge: how good it is.
        samples: an image for each label of the training set, on the device.
        splits: the data set.
        model: a model of the same images.
    """
    rng = np.random.default_rng([seed, Purpose.CHOICE])
    num_train, num_test = len(splits.train.label), len(splits.test.label)
    number = min(num_train, num_test, _MOST_COMPARED)
    # The samples have the labels of those training images: the floor differs in nothing else.
    chosen = rng.choice(num_train, number, replace=False)
    of_test = rng.choice(num_test, min(num_test, _MOST_COMPARED), replace=False)
    of_samples, of_train, real = (
        _judge(judge, put_on_device(Dataset(np.asarray(image)[rows], label[rows])), model)[0]
        for (image, label), rows in (
            ((samples.image, splits.train.label), chosen),
            (splits.train, chosen),
            (splits.test, of_test),
        )
    )
    found: Measurements = {}
    for name, features in (("samples", of_samples), ("training images", of_train)):
        words = f"{number:,} {name} against {len(real):,} test images, in the judge's features"
        bootstrap = [
            metrics.frechet_distance(_resample(rng, features), _resample(rng, real))
            for _ in range(_NUM_BOOTSTRAPS)
        ]
        of_name = f"of {name}" if features is of_samples else f"of {name}, the floor"
        found[f"Fréchet distance {of_name}"] = Measurement(
            metrics.frechet_distance(features, real),
            float(np.std(bootstrap, ddof=1)),
            "squared units of a feature",
            f"{words}; error by bootstrap; {of_judge.words}",
        )
        precision, recall = metrics.precision_recall(features, real)
        words += f", k = {metrics.NUM_NEIGHBORS}; {of_judge.words}"
        found[f"precision {of_name}"] = share_of(precision, number, words)
        found[f"recall {of_name}"] = share_of(recall, len(real), words)
    return found


def measure_classification(
    seed: int, of_judge: OfJudge, samples: Dataset, test: Dataset, model: CVAE, track: Track
) -> Measurements:
    """Train a judge on samples alone, and test it on real images.

    The classification accuracy score (Ravuri & Vinyals 2019).

    Args:
        seed: of the training.
        of_judge: how good the judge is that was trained on real images.
        samples: an image for each label of the training set, on the device.
        test: the test set on the device.
        model: a model of the same images.
        track: goes through the steps of the training.
    """
    judge = train_judge(
        make_key(seed, Purpose.SAMPLES_JUDGE),
        samples,
        image_shape=model.config.image_shape,
        num_classes=model.config.num_classes,
        track=track,
    )
    _, judged = _judge(judge, test, model)
    protocol = (
        f"a judge trained on {len(samples.label):,} samples alone, on {len(test.label):,} real "
        f"test images; {of_judge.words}"
    )
    return {"classification accuracy score": share(judged == np.asarray(test.label), protocol)}


def draw(params: Params, seed: int, purpose: Purpose, label: np.ndarray, model: CVAE) -> Dataset:
    """Draw a sample for each label, (N,), onto the device."""
    batch_size = images_at_a_time(math.prod(model.config.image_shape))
    program = jax.jit(partial(sample_dataset, model=model, batch_size=batch_size))
    return program(params, make_key(seed, purpose), label)


def _judge(judge: Params, dataset: Dataset, model: CVAE) -> tuple[np.ndarray, np.ndarray]:
    """Give the judge's features of each image, (N, F), and the class it sees, (N,)."""
    shape, num_classes = model.config.image_shape, model.config.num_classes
    features, logits = judge_all(judge, dataset, shape, num_classes)
    return np.asarray(features), np.argmax(logits, axis=-1)


def _resample(rng: np.random.Generator, features: np.ndarray) -> np.ndarray:
    return features[rng.integers(len(features), size=len(features))]
