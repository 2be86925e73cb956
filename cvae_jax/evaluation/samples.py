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
    names = subject.splits.names
    wide = max(len(name) for name in ("class", *names))
    lines = [f"{'class':>{wide}}  {'conditional accuracy':>26}  {'the judge on real images':>26}"]
    for name, *pair in zip(names, by_class, real_by_class, strict=True):
        of_samples, of_judge = ("no images" if one is None else str(one) for one in pair)
        lines.append(f"{name:>{wide}}  {of_samples:>26}  {of_judge:>26}")
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
    rng, chosen, of_test = _choose(subject)
    found: dict[str, Measurement] = {}
    for where, images in (
        ("samples", subject.training_samples),
        ("training images, the floor", subject.splits.train),
    ):
        some = Dataset(np.asarray(images.image)[chosen], np.asarray(images.label)[chosen])
        verdict = subject.judge_images(put_on_device(some))
        found |= _distances(subject, where, verdict, of_test, rng)
    return Finding(found, {})


def measure_reconstructions(subject: Subject) -> Finding:
    """Measure reconstructions of training images: what a prior that fits q perfectly would draw.

    Each is decoded from a draw of q(z | x, y). Where they are no better than samples, it is the
    decoder that limits the samples, not the prior.
    """
    rng, chosen, of_test = _choose(subject)
    images = subject.reconstruct(chosen)
    verdict = subject.judge_images(images)
    seen = _confusion(images.label, verdict, subject.splits.num_classes)
    protocol = f"{len(chosen):,} training images, one draw of q(z|x,y) each; {subject.judge_error}"
    found = {"accuracy of reconstructions": _accuracy(seen, protocol)}
    return Finding(found | _distances(subject, "reconstructions", verdict, of_test, rng), {})


def _choose(subject: Subject) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Return a generator, and the indices of the training and the test images to compare.

    Samples, reconstructions and training images have the same labels, so that only the model makes
    a difference between them.
    """
    rng = np.random.default_rng([subject.seed, Purpose.CHOICE])
    num_train, num_test = (len(one.label) for one in (subject.splits.train, subject.splits.test))
    chosen = rng.choice(num_train, min(num_train, num_test, _MOST_COMPARED), replace=False)
    return rng, chosen, rng.choice(num_test, min(num_test, _MOST_COMPARED), replace=False)


def _distances(
    subject: Subject, what: str, verdict: Verdict, of_test: np.ndarray, rng: np.random.Generator
) -> dict[str, Measurement]:
    """Return the distance, precision and recall of images that were judged, to test images."""
    features, real = np.asarray(verdict.features), np.asarray(subject.verdict.features)[of_test]
    bootstrap = [
        frechet_distance(_resample(features, rng), _resample(real, rng))
        for _ in range(_NUM_BOOTSTRAPS)
    ]
    name = what.split(",")[0]
    protocol = (
        f"{len(features):,} {name} against {len(real):,} test images, in the judge's features"
    )
    precision, recall = precision_recall(features, real)
    of_neighbors = f"{protocol}, k = {NUM_NEIGHBORS}; {subject.judge_error}"
    return {
        f"Fréchet distance of {what}": Measurement(
            frechet_distance(features, real),
            float(np.std(bootstrap, ddof=1)),
            "squared units of a feature",
            f"{protocol}; error by bootstrap; {subject.judge_error}",
        ),
        f"precision of {what}": share(precision, len(features), of_neighbors),
        f"recall of {what}": share(recall, len(real), of_neighbors),
    }


def _resample(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return features[rng.integers(len(features), size=len(features))]
