"""Pictures of samples and of the loss; they take NumPy arrays and return Matplotlib figures.

Figures are made without pyplot, so that nothing here needs a display or keeps global state.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cvae_jax.types import EpochMetrics

_GAP = 0.12  # white between two images, as a share of an image's width
_LABEL_HEIGHT = 0.28  # room for the label over an image, likewise


def image_grid(
    image: np.ndarray, label: np.ndarray, title: str, *, num_columns: int, inches: float = 1.5
) -> Figure:
    """Set images in rows under a title, each with its label over it.

    Args:
        image: (N, H, W, C) float in [0, 1], C 1 (grey) or 3 (red, green, blue).
        label: (N,) int.
        title: the line over the figure.
        num_columns: images in a row.
        inches: width of an image in the figure.
    """
    num_images, height, width, channels = image.shape
    num_columns = min(num_columns, num_images)
    num_rows = math.ceil(num_images / num_columns)
    gap, label_height = math.ceil(_GAP * width), math.ceil(_LABEL_HEIGHT * width)
    row_height, column_width = label_height + height + gap, width + gap
    canvas = np.ones((num_rows * row_height, num_columns * column_width - gap, channels))
    for i in range(num_images):
        row, column = divmod(i, num_columns)
        top, left = row * row_height + label_height, column * column_width
        canvas[top : top + height, left : left + width] = image[i]

    scale = inches / width
    margin, title_height = 0.2, 0.55
    figure_width = max(canvas.shape[1] * scale + 2 * margin, 0.11 * len(title) + 2 * margin)
    figure_height = canvas.shape[0] * scale + margin + title_height
    figure = Figure(figsize=(figure_width, figure_height), dpi=150)
    share = canvas.shape[1] * scale / figure_width
    axes = figure.add_axes(
        (
            (1 - share) / 2,
            margin / figure_height,
            share,
            canvas.shape[0] * scale / figure_height,
        )
    )
    axes.imshow(canvas.squeeze(-1) if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1)
    axes.axis("off")
    for i in range(num_images):
        row, column = divmod(i, num_columns)
        axes.text(
            column * column_width + width / 2 - 0.5,
            row * row_height + label_height * 0.62 - 0.5,
            str(label[i]),
            ha="center",
            va="center",
            fontsize=9 * inches,
        )
    title_y = 1 - title_height / 2 / figure_height
    figure.suptitle(title, y=title_y, va="center", fontsize=14)
    return figure


def loss_curve(history: Sequence[EpochMetrics], title: str) -> Figure:
    """Draw the training and the test loss over the epochs, in nats per image."""
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    draw_loss(axes, history)
    axes.set_title(title)
    return figure


def draw_loss(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    """Draw the training and the test loss over the epochs, in nats per image."""
    if not history:
        axes.text(0.5, 0.5, "no epoch is over yet", ha="center", transform=axes.transAxes)
    epoch = [row.epoch for row in history]
    for name, loss in (
        ("train", [row.train_loss for row in history]),
        ("test", [row.test_loss for row in history]),
    ):
        marker = "o" if len(history) == 1 else ""
        ending = f", {loss[-1]:.2f} at the end" if loss else ""
        axes.plot(epoch, loss, marker=marker, label=f"{name}{ending}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss, nats per image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(linestyle="--", alpha=0.6)
    axes.legend()
