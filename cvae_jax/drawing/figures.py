"""Figures from NumPy arrays: grids, tables and maps of images, and the curve of the loss.

They are made without pyplot, so they need no display and leave no global state.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from cvae_jax.storage.history import EpochMetrics

_GAP = 0.12  # white between two images, as a share of an image's width
_CAPTION_HEIGHT = 0.28  # room for the caption over an image, likewise
_MARGIN, _TITLE_HEIGHT = 0.2, 0.55  # inches
_GRID_DPI = 150
GRID_COLUMNS, GRID_INCHES = 8, 0.8
"""Of the grid of samples that a run draws from time to time."""

# Tables and maps. A page shows their eight inches on 800 pixels.
_WIDTH, _LARGEST_TILE = 8.0, 0.85  # inches
_TITLE_SIZE, _NOTE_SIZE, _LABEL_SIZE = 14.0, 9.5, 10.0  # points
_TITLE_LINE, _NOTE_LINE, _LABEL_LINE = 0.34, 0.22, 0.22  # inches
_LABEL: dict[str, Any] = {
    "xycoords": "axes fraction",
    "textcoords": "offset points",
    "fontsize": _LABEL_SIZE,
}
_TABLE_GAP, _BAND_GAP = 0.07, 0.18  # white between images and between bands, as _GAP


def class_captions(label: Iterable[int], names: Sequence[str]) -> list[str]:
    """Return the names of classes; the number of one whose name the font can't write."""
    font = get_font(findfont(FontProperties()))
    can_write = [all(font.get_char_index(ord(letter)) for letter in name) for name in names]
    return [names[one] if can_write[one] else str(one) for one in label]


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
    gap, caption_height, row_height, column_width = _grid_sizes(height, width)
    canvas = np.ones((num_rows * row_height, num_columns * column_width - gap, channels))
    for i in range(num_images):
        row, column = divmod(i, num_columns)
        top, left = row * row_height + caption_height, column * column_width
        canvas[top : top + height, left : left + width] = image[i]

    scale = inches / size
    canvas_height, canvas_width = canvas.shape[0] * scale, canvas.shape[1] * scale
    figure_width = max(canvas_width, 0.11 * len(title)) + 2 * _MARGIN
    figure_height = canvas_height + _MARGIN + _TITLE_HEIGHT
    figure = Figure(figsize=(figure_width, figure_height), dpi=_GRID_DPI)
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
            fontsize=_fitting(str(caption[i]), 9 * inches, inches * column_width / size),
        )
    title_y = 1 - _TITLE_HEIGHT / 2 / figure_height
    figure.suptitle(title, y=title_y, va="center", fontsize=14)
    return figure


def read_grid(picture: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return the images of a run's grid, (N, H, W, C) float in [0, 1], from its picture.

    Args:
        picture: the pixels of a figure of `image_grid`, (h, w, 3) uint8, with `GRID_COLUMNS` and
            `GRID_INCHES`.
        image_shape: (H, W, C).

    Raises:
        ValueError: the picture has another size than such a grid.
    """
    height, width, channels = image_shape
    gap, caption_height, row_height, column_width = _grid_sizes(height, width)
    scale = GRID_INCHES / max(height, width) * _GRID_DPI
    margin, title_height = _MARGIN * _GRID_DPI, _TITLE_HEIGHT * _GRID_DPI
    num_rows = round((len(picture) - margin - title_height) / (scale * row_height))
    left = (picture.shape[1] - scale * (GRID_COLUMNS * column_width - gap)) / 2
    top = len(picture) - margin - scale * num_rows * row_height
    if num_rows < 1 or left < 0 or abs(top - title_height) > 2:
        raise ValueError(f"one has {picture.shape[1]} x {picture.shape[0]} pixels")
    # The middle of each pixel of an image: (rows, H) and (columns, W).
    y = np.arange(num_rows)[:, np.newaxis] * row_height + caption_height + np.arange(height) + 0.5
    x = np.arange(GRID_COLUMNS)[:, np.newaxis] * column_width + np.arange(width) + 0.5
    rows, columns = (top + scale * y).astype(int), (left + scale * x).astype(int)
    image = picture[rows[:, np.newaxis, :, np.newaxis], columns[np.newaxis, :, np.newaxis, :]]
    image = image.reshape(-1, height, width, 3)[..., :channels]
    return image.astype(np.float32) / 255


def _grid_sizes(height: int, width: int) -> tuple[int, int, int, int]:
    """Return gap, height of a caption, height of a row and width of a column, in pixels."""
    size = max(height, width)
    gap, caption_height = math.ceil(_GAP * size), math.ceil(_CAPTION_HEIGHT * size)
    return gap, caption_height, caption_height + height + gap, width + gap


def image_table(
    image: np.ndarray,
    title: str,
    *,
    num_columns: int,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    note: str = "",
    rows_in_band: int = 1,
    is_joined: bool = False,
    dpi: int = 200,
) -> Figure:
    """Draw a table of images, with words over its columns and beside its rows.

    Args:
        image: (N, H, W, C) float in [0, 1], row by row; C is 1 (grey) or 3 (red, green, blue).
        title: the line over the figure.
        num_columns: images in a row.
        columns: a label over each column; empty for none.
        rows: a label beside each row; empty for none.
        note: a smaller line under the title.
        rows_in_band: rows that belong together, with more white before the next ones.
        is_joined: whether the images of a row touch, like the letters of a word.
        dpi: pixels of the figure in an inch.
    """
    canvas, tops, lefts = lay_out(
        image, num_columns=num_columns, rows_in_band=rows_in_band, is_joined=is_joined
    )
    beside = max((_width(row, _LABEL_SIZE) + 0.1 for row in rows), default=0.0)
    over = _LABEL_LINE if columns else 0.0
    most = min(_WIDTH - 2 * _MARGIN - beside, _LARGEST_TILE * num_columns)
    scale = most * dpi / canvas.shape[1]
    if scale > 1:
        # A pixel of an image is a square of whole pixels; the table may get a little wider for it.
        scale = math.floor(scale + 0.35)
    height, width = (scale * side / dpi for side in canvas.shape[:2])
    figure, left, top = _titled(beside + width, over + height, title, note, dpi)
    axes = _axes(figure, left + beside, top + over, width, height)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, aspect="auto")
    axes.axis("off")
    for i, text in enumerate(columns):
        x = (lefts[i] + image.shape[2] / 2) / canvas.shape[1]
        style = _LABEL | {"fontsize": _fitting(text, _LABEL_SIZE, width / num_columns)}
        axes.annotate(text, (x, 1), (0, 4), ha="center", va="bottom", **style)
    for i, text in enumerate(rows):
        y = 1 - (tops[i] + image.shape[1] / 2) / canvas.shape[0]
        axes.annotate(text, (0, y), (-7, 0), ha="right", va="center", **_LABEL)
    return figure


def lay_out(
    image: np.ndarray, *, num_columns: int, rows_in_band: int = 1, is_joined: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put the images of a table side by side on white, with the arguments of `image_table`.

    Returns:
        The canvas, (h, w) or (h, w, 3), and where its rows and its columns begin, in pixels.
    """
    num_images, height, width, channels = image.shape
    gap, band_gap = (math.ceil(share * max(height, width)) for share in (_TABLE_GAP, _BAND_GAP))
    row, column = np.arange(math.ceil(num_images / num_columns)), np.arange(num_columns)
    tops = row * (height + gap) + (row // rows_in_band) * band_gap * (rows_in_band > 1)
    lefts = column * (width + gap * (not is_joined))
    canvas = np.ones((tops[-1] + height, lefts[-1] + width, channels), np.float32)
    for i, one in enumerate(image):
        y, x = tops[i // num_columns], lefts[i % num_columns]
        canvas[y : y + height, x : x + width] = one
    return canvas.squeeze(-1) if channels == 1 else canvas, tops, lefts


def in_pairs(upper: np.ndarray, lower: np.ndarray, num_columns: int) -> np.ndarray:
    """Return images in rows with their counterparts under them, (2 * M, H, W, C), M >= N.

    Args:
        upper: (N, H, W, C) float in [0, 1].
        lower: (N, H, W, C), of which each belongs under the same of `upper`.
        num_columns: images in a row; the last row is filled up with white.
    """
    blank = np.ones((-len(upper) % num_columns, *upper.shape[1:]), np.float32)
    rows = [
        np.concatenate([images, blank]).reshape(-1, num_columns, *upper.shape[1:])
        for images in (upper, lower)
    ]
    return np.stack(rows, axis=1).reshape(-1, *upper.shape[1:])


def image_map(
    image: np.ndarray,
    label: np.ndarray,
    place: np.ndarray,
    dots: np.ndarray,
    dot_label: np.ndarray,
    title: str,
    *,
    num_classes: int,
    note: str = "",
    dpi: int = 150,
) -> Figure:
    """Draw images at their places in a plane, over dots, all in the colours of their classes.

    Args:
        image: (N, H, W, C) float in [0, 1]; those with C = 1 are drawn as ink without paper.
        label: (N,) their classes.
        place: (N, 2) their places, a square lattice.
        dots: (M, 2) the places of the dots.
        dot_label: (M,) the classes of the dots.
        title: the line over the figure.
        num_classes: Y.
        note: a smaller line under the title.
        dpi: pixels of the figure in an inch.
    """
    if num_classes <= 10:
        colours = np.array(colormaps["tab10"].colors)  # type: ignore[attr-defined]
    else:
        colours = colormaps["turbo"](np.linspace(0.05, 0.95, num_classes))[:, :3]
    side = _WIDTH - 2 * _MARGIN
    figure, left, top = _titled(side, side, title, note, dpi)
    axes = _axes(figure, left, top, side, side)
    axes.axis("off")
    radius = 0.45 * float(np.diff(np.unique(place[:, 0]))[0])
    axes.scatter(dots[:, 0], dots[:, 1], s=9, c=colours[dot_label], alpha=0.35, linewidths=0)
    for one, (x, y), colour in zip(image, place, colours[label], strict=True):
        if one.shape[-1] == 1:
            ink = np.broadcast_to(0.8 * colour, (*one.shape[:2], 3))
            one = np.concatenate([ink, one], axis=-1)
        height, width = (radius * size / max(one.shape) for size in one.shape[:2])
        extent = (x - width, x + width, y - height, y + height)
        axes.imshow(one.clip(0, 1), extent=extent, interpolation="bicubic", zorder=3)
    reach = float(np.abs(place).max()) + 1.3 * radius
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """Return a figure as it is written to a file, (h, w, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _titled(
    width: float, height: float, title: str, note: str, dpi: int
) -> tuple[Figure, float, float]:
    """Return a figure with a title, and the left and top of a box in it, all in inches."""
    top = _MARGIN / 2 + _TITLE_LINE + (_NOTE_LINE if note else 0.0) + _MARGIN / 2
    widest = max(width, _width(title, _TITLE_SIZE), _width(note, _NOTE_SIZE))
    wide, high = widest + 2 * _MARGIN, top + height + _MARGIN
    wide, high = (math.ceil(side * dpi) / dpi for side in (wide, high))
    figure = Figure(figsize=(wide, high), dpi=dpi)
    lines = (
        (title, _TITLE_SIZE, "black", 0.5 * _TITLE_LINE),
        (note, _NOTE_SIZE, "0.35", _TITLE_LINE + 0.5 * _NOTE_LINE),
    )
    for text, points, colour, down in lines:
        y = 1 - (_MARGIN / 2 + down) / high
        figure.text(0.5, y, text, ha="center", va="center", fontsize=points, color=colour)
    return figure, (wide - width) / 2, top


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return axes that fill a box, in inches from the left and from the top, on whole pixels."""
    whole, high = figure.get_size_inches()
    left, top = (math.floor(side * figure.dpi) / figure.dpi for side in (left, top))
    return figure.add_axes((left / whole, 1 - (top + height) / high, width / whole, height / high))


def _fitting(text: str, points: float, inches: float) -> float:
    """Return the size of letters, in points, with which a line is no wider than it may be."""
    return points * min(1.0, 0.95 * inches / max(_width(text, points), 1e-6))


def _width(text: str, points: float) -> float:
    """Return the width of a line in inches."""
    return TextPath((0, 0), text, size=points).get_extents().width / 72 if text.strip() else 0.0


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
