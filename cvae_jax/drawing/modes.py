"""Ways to draw with a trained model; each returns a `Picture`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cvae_jax.drawing import figures
from cvae_jax.models.family import Model, Params
from cvae_jax.models.sampling import draw_images


class Picture(NamedTuple):
    """Images with their captions, in the order in which they are laid out."""

    image: np.ndarray  # (N, H, W, C) float32 in [0, 1]
    caption: Sequence[object] | np.ndarray  # N, one over each image
    title: str
    num_columns: int

    def figure(self) -> Figure:
        """Return the picture as a Matplotlib figure."""
        return figures.image_grid(
            self.image, self.caption, self.title, num_columns=self.num_columns
        )


def samples(
    params: Params,
    label: np.ndarray,
    seed: int,
    *,
    model: Model,
    title: str = "samples",
    description: str = "",
) -> Picture:
    """Draw one sample of p(x | y) for each label, with the label as its caption.

    Args:
        params: the model's parameters.
        label: (N,) int32, the classes to draw.
        seed: from 0 to 2**32 - 1; equal seeds give equal images.
        model: the model that `params` belong to.
        title: the line over the picture.
        description: the name of a progress bar; empty for no bar.
    """
    image = draw_images(params, label, seed, model=model, description=description)
    return Picture(image, label, title, num_columns=5 if len(label) <= 10 else 10)
