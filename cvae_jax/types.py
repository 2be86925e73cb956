"""The values that pass between modules, and the one legend of their shapes.

Shapes in comments throughout the package:
    N  examples of a data set      B  examples of a batch       S  steps
    H, W, C  height, width and channels of an image             D  pixels, H * W * C
    Y  classes                     Z  latent dimensions
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:  # so that --help and a bad argument's error don't wait for JAX
    import jax

Params: TypeAlias = Any
"""A pytree of float32 arrays: what `models.CVAE.init` returns under "params"."""

ArrayLike: TypeAlias = "jax.Array | np.ndarray"


class Dataset(NamedTuple):
    """Labelled images, on the host (NumPy) or on a device (JAX).

    A data set on a device lies flat, image (N, D), so that a row is one contiguous run of
    memory whatever layout the device prefers; the model restores the shape.
    """

    image: ArrayLike  # (N, H, W, C) or (N, D) uint8
    label: ArrayLike  # (N,) int32


class Gathered(NamedTuple):
    """The examples of some rows of indices, as the host gathered them."""

    image: jax.Array  # (S, B, D) uint8
    label: jax.Array  # (S, B) int32


Track: TypeAlias = Callable[[range], Iterable[int]]
"""Goes through the numbers of all steps of some work, and may show how far it is."""


class Splits(NamedTuple):
    """The two halves of a data set and what a model has to know of them."""

    train: Dataset
    test: Dataset
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of an image, (H, W, C)."""
        height, width, channels = self.train.image.shape[1:]
        return height, width, channels

    def fingerprint(self) -> str:
        """Give the SHA-256 of all arrays: two data sets are the same if theirs are."""
        digest = hashlib.sha256(str(self.num_classes).encode())
        for dataset in (self.train, self.test):
            for array in dataset:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class Batch(NamedTuple):
    """Examples as the model sees them; `mask` is 0 where a short batch was filled up."""

    image: jax.Array  # (B, ...) float32 grey levels in [0, 1]
    label: jax.Array  # (B,) int32
    mask: jax.Array  # (B,) float32, 1 or 0


class ElboTerms(NamedTuple):
    """The two terms of the evidence lower bound, per example, in nats."""

    log_likelihood: jax.Array  # (B,)
    kl: jax.Array  # (B,)


class LossSums(NamedTuple):
    """The loss of a batch, summed over its real examples, in nats."""

    reconstruction: jax.Array  # () or (S,)
    kl: jax.Array  # () or (S,)
    num_examples: jax.Array  # () or (S,) float32

    @property
    def loss(self) -> jax.Array:
        """Give what is minimised: minus the evidence lower bound, summed."""
        return self.reconstruction + self.kl


class TrainState(NamedTuple):
    """All that training changes. Keys and batches are functions of (seed, step) alone."""

    step: jax.Array  # () int32, batches trained on so far
    params: Params
    opt_state: Any


class EpochMetrics(NamedTuple):
    """One row of metrics.csv; losses in nats per image.

    `seconds` is the time since the row before, or since the run was started or went on:
    training and test, what was drawn or saved in between, and compilation.
    """

    epoch: int
    step: int
    train_loss: float
    train_reconstruction: float
    train_kl: float
    test_loss: float
    test_reconstruction: float
    test_kl: float
    seconds: float


class Progress(NamedTuple):
    """What a checkpoint holds beside the state: all that the rest of the run has to know.

    The sums are those of the epoch that is not over yet, in nats and in double precision.
    """

    history: tuple[EpochMetrics, ...] = ()
    reconstruction: float = 0.0
    kl: float = 0.0
    num_examples: float = 0.0


class UserError(Exception):
    """Something the user can mend; its text is one line that says what and how.

    Scripts print it without a traceback and exit with `exit_status`.
    """

    exit_status = 1


class ConfigError(UserError):
    """An argument, or a combination of arguments, that can't be used."""

    exit_status = 2


class DataError(UserError):
    """A data set that can't be found, fetched or read."""


class CheckpointError(UserError):
    """A checkpoint that can't be found, written or read."""


class PartedError(UserError):
    """One of several processes that train together failed, and can't wait for the others."""

    def __init__(self, message: str, exit_status: int = 1) -> None:  # noqa: D107
        super().__init__(message)
        self.exit_status = exit_status


class InterruptedRunError(UserError):
    """A signal stopped a run: Ctrl-C, a notebook's stop button, or a machine that is taken away."""

    def __init__(self, message: str, signal_number: int) -> None:  # noqa: D107
        super().__init__(message)
        self.exit_status = 128 + signal_number  # as shells have it
