"""evaluation.png: the findings of an evaluation on one page."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvae_jax.drawing import figures
from cvae_jax.evaluation.measurement import Finding, Measurement
from cvae_jax.evaluation.subject import Subject
from cvae_jax.storage.history import EpochMetrics

MOST_CLASSES = 20
"""Classes that have a row of samples, and numbers in the confusion matrix."""

COLUMNS = 10
"""Images in a row."""

_IN_TABLE = (
    "-log p(x|y), binarised",
    "negative ELBO, binarised",
    "negative ELBO, grey levels",
    "conditional accuracy",
    "accuracy of the judge",
    "classification accuracy score",
    "Fréchet distance of samples",
    "Fréchet distance of training images, the floor",
    "precision of samples",
    "recall of samples",
    "active units",
)


class Page(NamedTuple):
    """The contents of the page. An empty array was not measured, and its panel is left out."""

    original: np.ndarray  # (N, H, W, C) float in [0, 1]
    reconstruction: np.ndarray  # (N, H, W, C), of the same images
    samples: np.ndarray  # (COLUMNS * Y', H, W, C), those of a class in a row
    confusion: np.ndarray  # (Y, Y) int, a row is the class that was asked for
    kl: np.ndarray  # (G,) nats per image
    is_active: np.ndarray  # (Z,) bool
    history: Sequence[EpochMetrics]
    measurements: dict[str, Measurement]
    classes: Sequence[str]  # Y names


def collect(subject: Subject, finding: Finding, history: Sequence[EpochMetrics]) -> Page:
    """Choose what the page shows: some test images, and the first samples of each class."""
    images, shape = subject.images[subject.trained_on], subject.splits.image_shape
    chosen = choose_images(np.asarray(images.label))
    original, label = (jnp.asarray(array)[chosen] for array in images)
    original = original.astype(jnp.float32).reshape(-1, *shape) / 255
    centre = jnp.zeros((len(chosen), subject.model.latent_dim))
    found = subject.model.autoencode(subject.params, original, label, centre)
    sample, asked = (np.asarray(array) for array in subject.samples)
    shown = np.unique(asked)[:MOST_CLASSES]
    first = np.concatenate([np.flatnonzero(asked == one)[:COLUMNS] for one in shown])
    return Page(
        original=np.asarray(original),
        reconstruction=np.asarray(jax.nn.sigmoid(found.logits)),
        samples=sample[first].reshape(-1, *shape).astype(np.float32) / 255,
        confusion=np.array(finding.details.get("confusion", ())),
        kl=np.array(finding.details.get("kl_by_dimension", ())),
        is_active=np.array(finding.details.get("is_active", ())),
        history=history,
        measurements=finding.measurements,
        classes=figures.class_captions(range(subject.splits.num_classes), subject.splits.names),
    )


def choose_images(label: np.ndarray) -> np.ndarray:
    """Return indices of the images to show, a few of each class in turn, from labels (N,)."""
    shown = np.unique(label)[:MOST_CLASSES]
    num_each = max(1, 5 * COLUMNS // len(shown))
    of_class = [np.flatnonzero(label == one)[:num_each] for one in shown]
    return np.array([of[i] for i in range(num_each) for of in of_class if i < len(of)])


def draw_page(page: Page, title: str) -> Figure:
    """Draw reconstructions, samples, the confusion matrix, the figures, the latent and the loss."""
    panels: list[Callable[[Axes, Page], None]] = [_draw_pairs, _draw_samples]
    panels += [_draw_confusion] * (page.confusion.size > 0) + [_draw_table]
    panels += [_draw_latent] * (page.kl.size > 1) + [_draw_loss] * bool(page.history)
    num_rows = (len(panels) + 1) // 2
    heights = [1.1, 1.0, 0.8][:num_rows]
    figure = Figure(figsize=(14, 6.2 * sum(heights)), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=16)
    axes = figure.subplots(num_rows, 2, height_ratios=heights).flat
    for draw, where in zip(panels, axes, strict=False):
        draw(where, page)
    if len(panels) % 2:
        axes[-1].axis("off")
    return figure


def _draw_pairs(axes: Axes, page: Page) -> None:
    pairs = figures.in_pairs(page.original, page.reconstruction, COLUMNS)
    draw_rows(axes, pairs)
    axes.set_title("test images, and under each its reconstruction")


def _draw_samples(axes: Axes, page: Page) -> None:
    draw_rows(axes, page.samples)
    axes.set_title("samples, a row for each class")


def draw_rows(axes: Axes, images: np.ndarray) -> None:
    """Draw images in rows of `COLUMNS`."""
    canvas, _, _ = figures.lay_out(images, num_columns=COLUMNS)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1)
    axes.axis("off")


def _draw_confusion(axes: Axes, page: Page) -> None:
    share = page.confusion / np.maximum(1, page.confusion.sum(axis=1, keepdims=True))
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)  # the root shows rare mistakes
    axes.set_title("class asked for, and class seen by the judge (%)")
    axes.set_xlabel("seen")
    axes.set_ylabel("asked for")
    if len(share) > MOST_CLASSES:
        return
    are_long = max(map(len, page.classes)) > 3
    axes.set_xticks(range(len(share)), page.classes, rotation=90 if are_long else 0)
    axes.set_yticks(range(len(share)), page.classes)
    for (row, column), value in np.ndenumerate(share):
        if value > 0:
            colour = "white" if value > 0.5 else "black"
            text = f"{100 * value:.1f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)


def _draw_table(axes: Axes, page: Page) -> None:
    axes.axis("off")
    found = [(name, page.measurements[name]) for name in _IN_TABLE if name in page.measurements]
    for i, (name, one) in enumerate(found, start=1):
        height, words = 1 - i / (len(_IN_TABLE) + 1), name.replace(" of training images,", ",")
        words += ", nats" if one.unit.startswith("nats") else ""
        axes.text(0.36, height, str(one), ha="right", va="center", fontsize=12, weight="bold")
        axes.text(0.40, height, words, ha="left", va="center", fontsize=12)


def _draw_latent(axes: Axes, page: Page) -> None:
    order = np.argsort(-page.kl)
    place = np.arange(1, len(order) + 1)
    # Groups that are not single dimensions, such as levels of a hierarchy, have one colour.
    is_active = page.is_active if len(page.is_active) == len(order) else np.ones(len(order), bool)
    for name, chosen, colour in (
        ("active", is_active[order], "tab:blue"),
        ("collapsed", ~is_active[order], "tab:red"),
    ):
        label = f"{chosen.sum()} {name}"
        axes.bar(place[chosen], page.kl[order][chosen], color=colour, label=label, width=0.8)
    axes.set_title("KL of each latent dimension, largest first")
    axes.set_xlabel("rank")
    axes.set_ylabel("nats per image")
    axes.legend()


def _draw_loss(axes: Axes, page: Page) -> None:
    figures.draw_loss(axes, page.history)
    axes.set_title("loss")
