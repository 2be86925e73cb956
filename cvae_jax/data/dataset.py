"""A data set in memory, and the one check that every source has to pass.

`models/family.py` explains the letters of shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.errors import DataError

if TYPE_CHECKING:  # a data set is loaded without JAX
    import jax

ArrayLike: TypeAlias = "jax.Array | np.ndarray"


class Dataset(NamedTuple):
    """Labelled images, on the host (NumPy) or on a device (JAX).

    On a device the images are flat, (N, D), so that a row is one contiguous run of memory in
    whatever layout the device prefers. The model restores the shape.
    """

    image: ArrayLike  # (N, H, W, C) or (N, D) uint8
    label: ArrayLike  # (N,) int32


class Splits(NamedTuple):
    """The training and the test set on the host, and their classes."""

    train: Dataset
    test: Dataset
    num_classes: int
    class_names: tuple[str, ...] = ()  # of the classes in turn; empty: their numbers

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of an image, (H, W, C)."""
        height, width, channels = self.train.image.shape[1:]
        return height, width, channels

    @property
    def names(self) -> Sequence[str]:
        """The names of the classes; their numbers where they have none."""
        return self.class_names or [str(label) for label in range(self.num_classes)]

    def run(self, config: TrainConfig) -> RunConfig:
        """Return the settings of a run on this data set."""
        digest = self.fingerprint()
        return RunConfig(config, self.image_shape, self.num_classes, digest, self.class_names)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all arrays, whatever the names of the classes are."""
        digest = hashlib.sha256(str(self.num_classes).encode())
        for dataset in (self.train, self.test):
            for array in dataset:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def check_splits(splits: Splits, where: str) -> Splits:
    """Return splits unchanged, once their types, shapes, labels and names are checked.

    Args:
        splits: what a source has loaded.
        where: the subject of the error's message.

    Raises:
        DataError: an array has another type or shape, a label is outside the classes, or their
            names are too few, too many or alike.
    """
    names = splits.class_names
    if names and not len(names) == len(set(names)) == splits.num_classes:
        raise DataError(f"{where} has {len(set(names))} names for {splits.num_classes} classes")
    for name, (image, label) in (("training", splits.train), ("test", splits.test)):
        low, high = (label.min(), label.max()) if label.size else (0, 0)
        expected = splits.train.image.shape[1:]
        for is_right, problem in (
            (image.dtype == np.uint8, f"{name} images of {image.dtype}, not uint8"),
            (label.dtype == np.int32, f"{name} labels of {label.dtype}, not int32"),
            (image.ndim == 4 and image.size, f"no {name} images: their shape is {image.shape}"),
            (image.shape[1:] == expected, f"images of two sizes: {expected}, {image.shape[1:]}"),
            (
                label.shape == image.shape[:1],
                f"{len(image)} {name} images and {len(label)} labels; there must be one for each",
            ),
            (
                low >= 0 and high < splits.num_classes,
                f"{name} labels from {low} to {high}, outside the classes, 0 to "
                f"{splits.num_classes - 1}",
            ),
        ):
            if not is_right:
                raise DataError(f"{where} has {problem}")
    return splits
