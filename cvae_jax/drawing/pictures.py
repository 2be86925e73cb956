"""Pictures: images with the words around them, at rest or moving."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from cvae_jax.drawing import figures

_LEVELS = 16  # grey levels of a GIF: it is smaller than with more, and looks the same
_COLOURS = 128  # of a GIF of coloured images


@dataclasses.dataclass(frozen=True)
class Picture:
    """Images with the words around them, in the order in which they are laid out."""

    image: np.ndarray  # (N, H, W, C) float32 in [0, 1]; of a moving picture (T, N, H, W, C)
    title: str

    def figure(self) -> Figure:
        """Return the picture as a Matplotlib figure."""
        raise NotImplementedError

    def write(self, file: BinaryIO) -> None:
        """Write the picture as a PNG."""
        self.figure().savefig(file, format="png")


@dataclasses.dataclass(frozen=True)
class Grid(Picture):
    """Images in rows, each with its caption over it."""

    caption: Sequence[object] | np.ndarray  # N
    num_columns: int

    def figure(self) -> Figure:
        """Return the picture as a Matplotlib figure."""
        return figures.image_grid(
            self.image, self.caption, self.title, num_columns=self.num_columns
        )


@dataclasses.dataclass(frozen=True)
class Table(Picture):
    """Images in rows and columns that may have names, at rest or moving."""

    num_columns: int
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()
    note: str | Sequence[str] = ""  # under the title; of a moving picture one for each frame
    rows_in_band: int = 1
    is_joined: bool = False
    seconds: float = 0.08  # that a frame is shown

    def figure(self, dpi: int = 200) -> Figure:
        """Return the picture, or the first frame of a moving one, as a Matplotlib figure."""
        return figures.image_table(
            self.image if self.image.ndim == 4 else self.image[0],
            self.title,
            num_columns=self.num_columns,
            columns=self.columns,
            rows=self.rows,
            note=self.note if isinstance(self.note, str) else self.note[0],
            rows_in_band=self.rows_in_band,
            is_joined=self.is_joined,
            dpi=dpi,
        )

    def frames(self) -> Iterator[np.ndarray]:
        """Draw the frames of a moving picture, (h, w, 3) uint8, up to 800 pixels wide."""
        figure = self.figure(dpi=100)
        shown = figure.axes[0].images[0]
        for i, image in enumerate(self.image):
            canvas, _, _ = figures.lay_out(
                image,
                num_columns=self.num_columns,
                rows_in_band=self.rows_in_band,
                is_joined=self.is_joined,
            )
            shown.set_data(canvas)
            if not isinstance(self.note, str):
                figure.texts[1].set_text(self.note[i])
            yield figures.pixels(figure)

    def write(self, file: BinaryIO) -> None:
        """Write the picture as a PNG; a moving one as a GIF without end, with a progress bar."""
        if self.image.ndim == 4:
            super().write(file)
            return
        bar = tqdm(self.frames(), total=len(self.image), desc="drawing", unit="frame", delay=1)
        is_grey = self.image.shape[-1] == 1
        first, *others = (_few_levels(frame) if is_grey else _few_colours(frame) for frame in bar)
        first.save(
            file,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=round(1000 * self.seconds),
            loop=0,
        )


def _few_levels(frame: np.ndarray) -> Image.Image:
    level = np.rint(frame[..., 0] * ((_LEVELS - 1) / 255)) * (255 / (_LEVELS - 1))
    return Image.fromarray(np.rint(level).astype(np.uint8))


def _few_colours(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame).quantize(_COLOURS)


@dataclasses.dataclass(frozen=True)
class Map(Picture):
    """Images at their places in a plane, over the places of the images of a data set."""

    label: np.ndarray  # (N,) classes of the images
    place: np.ndarray  # (N, 2)
    dots: np.ndarray  # (M, 2)
    dot_label: np.ndarray  # (M,)
    num_classes: int
    note: str = ""

    def figure(self) -> Figure:
        """Return the picture as a Matplotlib figure."""
        return figures.image_map(
            self.image,
            self.label,
            self.place,
            self.dots,
            self.dot_label,
            self.title,
            num_classes=self.num_classes,
            note=self.note,
        )
