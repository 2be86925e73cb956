"""Figures from NumPy arrays: a grid of images, and the curve of the loss.

They are made without pyplot, so they need no display and leave no global state.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cvae_jax.storage.history import EpochMetrics

_GAP = 0.12  # white between two images, as a share of an image's width
_CAPTION_HEIGHT = 0.28  # room for the caption over an image, likewise
_MARGIN, _TITLE_HEIGHT = 0.2, 0.55  # inches


def image_grid(
    image: np.ndarray,
    caption: Sequence[object] | np.ndarray,
    title: str,
    *,
    num_columns: int,
    inches: float = 1.5,
) -> Figure:
    """Draw images in rows under a title, each with its caption over it.

    Args:
        image: (N, H, W, C) float in [0, 1], C 1 (grey) or 3 (red, green, blue).
        caption: N captions, for example the labels.
        title: the line over the figure.
        num_columns: images in a row.
        inches: width of an image in the figure; its height, where that is the longer side.
    """
    num_images, height, width, channels = image.shape
    num_columns = min(num_columns, num_images)
    num_rows = math.ceil(num_images / num_columns)
    size = max(height, width)
    gap, caption_height = math.ceil(_GAP * size), math.ceil(_CAPTION_HEIGHT * size)
    row_height, column_width = caption_height + height + gap, width + gap
    canvas = np.ones((num_rows * row_height, num_columns * column_width - gap, channels))
    for i in range(num_images):
        row, column = divmod(i, num_columns)
        top, left = row * row_height + caption_height, column * column_width
        canvas[top : top + height, left : left + width] = image[i]

    scale = inches / size
    canvas_height, canvas_width = canvas.shape[0] * scale, canvas.shape[1] * scale
    figure_width = max(canvas_width, 0.11 * len(title)) + 2 * _MARGIN
    figure_height = canvas_height + _MARGIN + _TITLE_HEIGHT
    figure = Figure(figsize=(figure_width, figure_height), dpi=150)
    share = canvas_width / figure_width
    axes = figure.add_axes(
        ((1 - share) / 2, _MARGIN / figure_height, share, canvas_height / figure_height)
    )
    axes.imshow(canvas.squeeze(-1) if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1)
    axes.axis("off")
    for i in range(num_images):
        row, column = divmod(i, num_columns)
        axes.text(
            column * column_width + width / 2 - 0.5,
            row * row_height + caption_height * 0.62 - 0.5,
            str(caption[i]),
            ha="center",
            va="center",
            fontsize=9 * inches,
        )
    title_y = 1 - _TITLE_HEIGHT / 2 / figure_height
    figure.suptitle(title, y=title_y, va="center", fontsize=14)
    return figure


def loss_curve(history: Sequence[EpochMetrics], title: str) -> Figure:
    """Draw the training and the test loss over the epochs, in nats per image.

    A loss above twice the median of the test losses is left out, and counted in the legend.
    """
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    draw_loss(axes, history)
    axes.set_title(title)
    return figure


def draw_loss(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    """Draw the curves of `loss_curve` into axes."""
    if not history:
        axes.text(0.5, 0.5, "no epoch is over yet", ha="center", transform=axes.transAxes)
    epoch = [row.epoch for row in history]
    # One batch with an outlier can lift an epoch's mean so far that nothing else would be seen.
    most = 2 * float(np.median([row.test_loss for row in history])) if history else 0.0
    for name, loss in (
        ("train", [row.train_loss for row in history]),
        ("test", [row.test_loss for row in history]),
    ):
        marker = "o" if len(history) == 1 else ""
        ending = f", {loss[-1]:.2f} at the end" if loss else ""
        shown = [np.nan if one > most else one for one in loss]
        if hidden := sum(one > most for one in loss):
            ending += f" (without {hidden} above {most:.0f})"
        axes.plot(epoch, shown, marker=marker, label=f"{name}{ending}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss, nats per image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(linestyle="--", alpha=0.6)
    axes.legend()
