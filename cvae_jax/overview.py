"""evaluation.png: what an evaluation found, on one page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvae_jax import figures
from cvae_jax.measures import Measurements, write
from cvae_jax.types import EpochMetrics

MOST_CLASSES = 20
"""Classes that have a row of samples, and numbers in the confusion matrix."""

COLUMNS = 10
"""Images in a row."""

_IN_PICTURE = {
    "-log p(x|y), binarised": "-log p(x|y), binarised, nats",
    "negative ELBO, binarised": "negative ELBO, binarised, nats",
    "negative ELBO, grey levels": "negative ELBO, grey levels, nats",
    "conditional accuracy": "conditional accuracy",
    "accuracy of the judge": "accuracy of the judge",
    "classification accuracy score": "classification accuracy score",
    "Fréchet distance of samples": "Fréchet distance of samples",
    "Fréchet distance of training images, the floor": "its floor, training images",
    "precision of samples": "precision of samples",
    "recall of samples": "recall of samples",
    "active units": "active units",
}

_GAP = 2  # pixels between two images


class Findings(NamedTuple):
    """What is drawn."""

    original: np.ndarray  # (N, H, W, C) float in [0, 1]
    reconstruction: np.ndarray  # (N, H, W, C), of the same images
    samples: np.ndarray  # (COLUMNS * Y', H, W, C), those of a class in a row
    confusion: np.ndarray  # (Y, Y) int, a row is the class that was asked for
    kl: np.ndarray  # (Z,) nats per image
    is_active: np.ndarray  # (Z,) bool
    history: Sequence[EpochMetrics]
    measurements: Measurements


def choose_images(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose what there is room for, of the labels (N,) of a data set.

    Returns:
        The classes that are shown, and indices of images: some of each of these in turn.
    """
    shown = np.unique(label)[:MOST_CLASSES]
    num_each = max(1, 5 * COLUMNS // len(shown))
    of_class = [np.flatnonzero(label == one)[:num_each] for one in shown]
    chosen = [of[i] for i in range(num_each) for of in of_class if i < len(of)]
    return shown, np.array(chosen)


def draw_findings(findings: Findings, title: str) -> Figure:
    """Draw reconstructions, samples, the confusion matrix, the latent's use and the loss."""
    figure = Figure(figsize=(14, 18), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=16)
    axes = figure.subplots(3, 2, height_ratios=[1.1, 1, 0.8])
    _draw_pairs(axes[0, 0], findings.original, findings.reconstruction)
    _draw_images(axes[0, 1], findings.samples)
    axes[0, 1].set_title("samples, a row for each class")
    _draw_confusion(axes[1, 0], findings.confusion)
    _draw_table(axes[1, 1], findings.measurements)
    _draw_latent(axes[2, 0], findings.kl, findings.is_active)
    figures.draw_loss(axes[2, 1], findings.history)
    axes[2, 1].set_title("loss")
    return figure


def _draw_pairs(axes: Axes, original: np.ndarray, reconstruction: np.ndarray) -> None:
    rows = []
    for start in range(0, len(original), COLUMNS):
        for images in (original, reconstruction):
            row = images[start : start + COLUMNS]
            white = np.ones((COLUMNS - len(row), *row.shape[1:]), row.dtype)
            rows += [row, white]
    _draw_images(axes, np.concatenate(rows))
    axes.set_title("test images, and under each its reconstruction")


def _draw_images(axes: Axes, images: np.ndarray) -> None:
    """Set images in rows; their number is a multiple of the columns."""
    number, _, width, channels = images.shape
    gaps = ((0, 0), (0, _GAP), (0, _GAP), (0, 0))
    tiles = np.pad(images, gaps, constant_values=1.0)
    tiles = tiles.reshape(number // COLUMNS, COLUMNS, *tiles.shape[1:])
    canvas = tiles.swapaxes(1, 2).reshape(-1, COLUMNS * (width + _GAP), channels)
    axes.imshow(canvas.squeeze(-1) if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1)
    axes.axis("off")


def _draw_confusion(axes: Axes, confusion: np.ndarray) -> None:
    share = confusion / confusion.sum(axis=1, keepdims=True)
    # The root makes rare mistakes visible.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    axes.set_title("class asked for, and class seen by the judge (%)")
    axes.set_xlabel("seen")
    axes.set_ylabel("asked for")
    if len(confusion) > MOST_CLASSES:
        return
    axes.set_xticks(range(len(confusion)))
    axes.set_yticks(range(len(confusion)))
    for (row, column), value in np.ndenumerate(share):
        if value > 0:
            colour = "white" if value > 0.5 else "black"
            text = f"{100 * value:.1f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)


def _draw_latent(axes: Axes, kl: np.ndarray, is_active: np.ndarray) -> None:
    order = np.argsort(-kl)
    place = np.arange(1, len(kl) + 1)
    for name, chosen, colour in (
        ("active", is_active[order], "tab:blue"),
        ("collapsed", ~is_active[order], "tab:red"),
    ):
        label = f"{chosen.sum()} {name}"
        axes.bar(place[chosen], kl[order][chosen], color=colour, label=label, width=0.8)
    axes.set_title("KL of each latent dimension, largest first")
    axes.set_xlabel("rank")
    axes.set_ylabel("nats per image")
    axes.legend()


def _draw_table(axes: Axes, measurements: Measurements) -> None:
    axes.axis("off")
    for i, (name, words) in enumerate(_IN_PICTURE.items(), start=1):
        height, value = 1 - i / (len(_IN_PICTURE) + 1), write(measurements[name])
        axes.text(0.36, height, value, ha="right", va="center", fontsize=12, weight="bold")
        axes.text(0.40, height, words, ha="left", va="center", fontsize=12)
