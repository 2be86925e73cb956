"""The settings that decide what comes out: each with its default, its meaning and its bounds, once.

Those that decide where from, where to and how far are in `options`. The scripts make their command
lines from these classes: the text under a field is its `--help`. A value out of bounds raises
`ConfigError` when the object is made.
"""

import dataclasses
import reprlib
from typing import Any, Literal, get_args

from cvae_jax.types import ConfigError

Binarize = Literal["none", "dynamic"]
Precision = Literal["float32", "bfloat16"]

LARGEST_SEED = 2**32 - 1
LARGEST_COUNT = 2**31 - 1
LARGEST_DIM = 65_536  # of anything that is an axis of the model's arrays
SMALLEST_RATE, LARGEST_RATE = 1e-30, 1e30  # float32 holds what lies between


def require(condition: bool, option: str, value: Any, allowed: str) -> None:
    """Raise `ConfigError` where a condition on an option's value does not hold."""
    if not condition:
        raise ConfigError(f"--{option} {value} can't be used; choose {allowed}")


def require_count(option: str, value: int, least: int = 1, most: int = LARGEST_COUNT) -> None:
    """Raise `ConfigError` where an option's whole number is out of bounds."""
    require(least <= value <= most, option, value, f"a whole number from {least} to {most}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is trained. Equal settings on equal data give equal results."""

    dataset: str = "mnist"
    """Data set: mnist, fashion_mnist or kmnist; with --source idx any name of your own."""
    batch_size: int = 128
    """Images in a batch."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    hidden_dim: int = 600
    """Units in the hidden layer of the encoder and of the decoder."""
    latent_dim: int = 50
    """Dimensions of the latent Gaussian."""
    binarize: Binarize = "none"
    """What the model sees. none: the grey levels. dynamic: black or white, drawn anew at each
    step with the grey level as the probability of white."""
    precision: Precision = "float32"
    """Type of the matrix products and activations in training. The parameters, the loss and the
    optimizer are float32, and so are tests and samples."""
    seed: int = 2
    """Seed of the initial weights, the order of the images and the noise."""

    def __post_init__(self) -> None:
        allowed = "letters, digits, '_', '-', '.' and '/'"
        require(
            bool(self.dataset)
            and all(part and not part.startswith(".") for part in self.dataset.split("/"))
            and all(c.isalnum() or c in "_-./" for c in self.dataset),
            "dataset",
            reprlib.repr(self.dataset),
            f"a name of {allowed}",
        )
        require_count("batch-size", self.batch_size)
        require(
            SMALLEST_RATE <= self.learning_rate <= LARGEST_RATE,  # not so for NaN
            "learning-rate",
            self.learning_rate,
            f"a number from {SMALLEST_RATE} to {LARGEST_RATE}",
        )
        require_count("hidden-dim", self.hidden_dim, most=LARGEST_DIM)
        require_count("latent-dim", self.latent_dim, most=LARGEST_DIM)
        for option, value, allowed_values in (
            ("binarize", self.binarize, get_args(Binarize)),
            ("precision", self.precision, get_args(Precision)),
        ):
            require(
                value in allowed_values, option, reprlib.repr(value), " or ".join(allowed_values)
            )
        require_count("seed", self.seed, least=0, most=LARGEST_SEED)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings that fix the model's arrays; `models.CVAE` takes them."""

    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int
    hidden_dim: int = TrainConfig.hidden_dim
    latent_dim: int = TrainConfig.latent_dim

    def __post_init__(self) -> None:
        for name, sizes in (
            ("image_shape", self.image_shape),
            ("num_classes", (self.num_classes,)),
            ("hidden_dim", (self.hidden_dim,)),
            ("latent_dim", (self.latent_dim,)),
        ):
            if not all(1 <= size <= LARGEST_DIM for size in sizes):
                raise ConfigError(
                    f"{name} {sizes} can't be used; choose whole numbers from 1 to {LARGEST_DIM}"
                )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What config.json holds: the settings, and what the data set adds to them."""

    train: TrainConfig
    image_shape: tuple[int, int, int]
    num_classes: int
    data_sha256: str

    def __post_init__(self) -> None:
        _ = self.model  # which checks the sizes

    @property
    def model(self) -> ModelConfig:
        """The settings of the model that was or will be trained."""
        return ModelConfig(
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            hidden_dim=self.train.hidden_dim,
            latent_dim=self.train.latent_dim,
        )
