"""Measures of samples by the judge: their classes, and their distance from real images.

A sample is an image of pixel means, rounded to whole grey levels as in a file.
"""

import numpy as np

from cvae_jax.data.batches import put_on_device
from cvae_jax.data.dataset import ArrayLike, Dataset
from cvae_jax.evaluation.distances import NUM_NEIGHBORS, frechet_distance, precision_recall
from cvae_jax.evaluation.judge import Verdict, train_judge
from cvae_jax.evaluation.measurement import Finding, Measurement, share
from cvae_jax.evaluation.subject import Subject
from cvae_jax.keys import Purpose, make_key

_NUM_BOOTSTRAPS = 20
_MOST_COMPARED = 10_000  # images of a set; each is compared with each of the other set


def measure_accuracy(subject: Subject) -> Finding:
    """Measure the share of samples judged to be what was asked for, and the judge's accuracy."""
    (_, asked), num_classes = subject.samples, subject.splits.num_classes
    real = _confusion(subject.splits.test.label, subject.verdict, num_classes)
    drawn = _confusion(asked, subject.judge_images(subject.samples), num_classes)
    by_class, real_by_class = _by_class(drawn), _by_class(real)
    protocol = f"{subject.num_samples:,} samples of each class; {subject.judge_error}"
    measurements = {
        "accuracy of the judge": _accuracy(real, f"{real.sum():,} real test images"),
        "conditional accuracy": _accuracy(drawn, protocol),
    }
    details = {
        "accuracy_by_class": [one and one._asdict() for one in by_class],
        "judge_accuracy_by_class": [one and one._asdict() for one in real_by_class],
        "confusion": drawn.tolist(),
    }
    lines = [f"{'class':>5}  {'conditional accuracy':>26}  {'the judge on real images':>26}"]
    for i, pair in enumerate(zip(by_class, real_by_class, strict=True)):
        of_samples, of_judge = ("no images" if one is None else str(one) for one in pair)
        lines.append(f"{i:>5}  {of_samples:>26}  {of_judge:>26}")
    return Finding(measurements, details, "\n".join(lines))


def _confusion(asked: ArrayLike, verdict: Verdict, num_classes: int) -> np.ndarray:
    """Return counts (Y, Y): a row is the class asked for, a column the class judged."""
    seen = np.argmax(verdict.logits, axis=-1)
    counts = np.bincount(np.asarray(asked) * num_classes + seen, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _accuracy(confusion: np.ndarray, protocol: str) -> Measurement:
    number = int(confusion.sum())
    return share(float(np.trace(confusion) / number), number, protocol)


def _by_class(confusion: np.ndarray) -> list[Measurement | None]:
    """Return the accuracy of each class, a row of the confusion matrix; None without images."""
    numbers = [int(row.sum()) for row in confusion]
    return [
        share(float(confusion[i, i] / number), number, f"{number:,} images") if number else None
        for i, number in enumerate(numbers)
    ]


def measure_classification(subject: Subject) -> Finding:
    """Train a judge on samples alone, and measure it on real images (Ravuri & Vinyals 2019)."""
    samples, num_classes = subject.training_samples, subject.splits.num_classes
    judge = train_judge(
        samples,
        make_key(subject.seed, Purpose.SAMPLES_JUDGE),
        image_shape=subject.splits.image_shape,
        num_classes=num_classes,
        description="training a judge on samples",
    )
    verdict = subject.judge_images(subject.test, judge)
    protocol = (
        f"a judge trained on {len(samples.label):,} samples alone, on {len(subject.test.label):,} "
        f"real test images; {subject.judge_error}"
    )
    found = _accuracy(_confusion(subject.splits.test.label, verdict, num_classes), protocol)
    return Finding({"classification accuracy score": found}, {})


def measure_distances(subject: Subject) -> Finding:
    """Measure how far samples, and as a floor real training images, are from the test set."""
    train, test = subject.splits.train, subject.splits.test
    rng = np.random.default_rng([subject.seed, Purpose.CHOICE])
    number = min(len(train.label), len(test.label), _MOST_COMPARED)
    # Samples and training images have the same labels, so the floor differs only by the model.
    chosen = rng.choice(len(train.label), number, replace=False)
    of_test = rng.choice(len(test.label), min(len(test.label), _MOST_COMPARED), replace=False)
    real = np.asarray(subject.verdict.features)[of_test]
    found = {}
    for name, images in (("samples", subject.training_samples), ("training images", train)):
        some = Dataset(np.asarray(images.image)[chosen], np.asarray(images.label)[chosen])
        features = np.asarray(subject.judge_images(put_on_device(some)).features)
        bootstrap = [
            frechet_distance(_resample(features, rng), _resample(real, rng))
            for _ in range(_NUM_BOOTSTRAPS)
        ]
        where = name if name == "samples" else f"{name}, the floor"
        protocol = f"{number:,} {name} against {len(real):,} test images, in the judge's features"
        found[f"Fréchet distance of {where}"] = Measurement(
            frechet_distance(features, real),
            float(np.std(bootstrap, ddof=1)),
            "squared units of a feature",
            f"{protocol}; error by bootstrap; {subject.judge_error}",
        )
        precision, recall = precision_recall(features, real)
        protocol += f", k = {NUM_NEIGHBORS}; {subject.judge_error}"
        found[f"precision of {where}"] = share(precision, number, protocol)
        found[f"recall of {where}"] = share(recall, len(real), protocol)
    return Finding(found, {})


def _resample(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return features[rng.integers(len(features), size=len(features))]
