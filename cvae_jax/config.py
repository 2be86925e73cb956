"""Every setting of the package, each with its default, its meaning and its bounds, once.

The scripts make their command lines from these classes: the text under a field is its
`--help`. A value out of bounds raises `ConfigError` when the object is made.
"""

import dataclasses
import reprlib
from pathlib import Path
from typing import Any, Literal, get_args

from cvae_jax.types import ConfigError

Source = Literal["auto", "bundled", "tfds", "idx"]
Binarize = Literal["none", "dynamic"]

LARGEST_SEED = 2**32 - 1
LARGEST_COUNT = 2**31 - 1
MOST_LATENTS = 10_000_000  # of one image
FEWEST_SAMPLES = 10  # of a class; their spread needs some
LARGEST_DIM = 65_536  # of anything that is an axis of the model's arrays
SMALLEST_RATE, LARGEST_RATE = 1e-30, 1e30  # float32 holds what lies between


def _require(condition: bool, option: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"--{option} {value} can't be used; choose {allowed}")


def _require_count(option: str, value: int, least: int = 1, most: int = LARGEST_COUNT) -> None:
    _require(least <= value <= most, option, value, f"a whole number from {least} to {most}")


def _require_source(source: Source, data_dir: Path | None) -> None:
    if source == "idx" and data_dir is None:
        raise ConfigError("--source idx needs --data-dir, the folder of the four IDX files")
    if source == "bundled" and data_dir is not None:
        raise ConfigError("--source bundled takes no --data-dir; leave one of the two out")


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
    seed: int = 2
    """Seed of the initial weights, the order of the images and the noise."""

    def __post_init__(self) -> None:
        allowed = "letters, digits, '_', '-', '.' and '/'"
        _require(
            bool(self.dataset)
            and all(part and not part.startswith(".") for part in self.dataset.split("/"))
            and all(c.isalnum() or c in "_-./" for c in self.dataset),
            "dataset",
            reprlib.repr(self.dataset),
            f"a name of {allowed}",
        )
        _require_count("batch-size", self.batch_size)
        _require(
            SMALLEST_RATE <= self.learning_rate <= LARGEST_RATE,  # not so for NaN
            "learning-rate",
            self.learning_rate,
            f"a number from {SMALLEST_RATE} to {LARGEST_RATE}",
        )
        _require_count("hidden-dim", self.hidden_dim, most=LARGEST_DIM)
        _require_count("latent-dim", self.latent_dim, most=LARGEST_DIM)
        _require(
            self.binarize in get_args(Binarize),
            "binarize",
            reprlib.repr(self.binarize),
            " or ".join(get_args(Binarize)),
        )
        _require_count("seed", self.seed, least=0, most=LARGEST_SEED)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How far, where, and from which files."""

    epochs: int = 100
    """Train up to this epoch; a workdir that has fewer goes on from its newest checkpoint."""
    workdir: Path | None = None
    """Folder of all results. Left out: runs/<dataset>."""
    source: Source = "auto"
    """Where the images come from.
    auto: what TFDS has prepared, else the MNIST in this package, else TFDS's download.
    idx: four IDX files (.gz, .xz or plain) in --data-dir."""
    data_dir: Path | None = None
    """Folder of the TFDS data sets (left out: TFDS's own), or of the four IDX files."""
    sample_every: int = 10
    """Epochs between two sample grids."""
    checkpoint_every: int = 10
    """Epochs between two checkpoints; the last epoch always makes one."""

    def __post_init__(self) -> None:
        _require_count("epochs", self.epochs)
        _require_count("sample-every", self.sample_every)
        _require_count("checkpoint-every", self.checkpoint_every)
        _require_source(self.source, self.data_dir)


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a conditional VAE, and go on where an earlier run of the same command stopped."""

    run: RunOptions
    config: TrainConfig


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Draw images from a trained model."""

    digit: int | None = None
    """Class to draw. Left out: each class in turn."""
    num: int | None = None
    """Number of images. Left out: ten of --digit, or one of each class."""
    seed: int = 0
    """Seed of the latent noise; the same seed gives the same images."""
    workdir: Path = Path("runs/mnist")
    """Folder that train.py wrote."""
    step: int | None = None
    """Checkpoint to load, by its training step. Left out: the newest."""
    out: Path | None = None
    """Picture to write (PNG).
    Left out: digit_<digit>.png or digits.png in the workdir; none where --npz is given."""
    npz: Path | None = None
    """Arrays to write (NPZ): image, float32 (N, H, W, C) in [0, 1], and label, int32."""
    show: bool = False
    """Show the picture in a window as well."""

    def __post_init__(self) -> None:
        if self.num is not None:
            _require_count("num", self.num)
        if self.step is not None:
            _require_count("step", self.step, least=0)
        _require_count("seed", self.seed, least=0, most=LARGEST_SEED)
        if self.out is not None:
            _require(self.out.suffix.lower() == ".png", "out", self.out, "a name that ends in .png")
        if self.npz is not None:
            _require(self.npz.suffix.lower() == ".npz", "npz", self.npz, "a name that ends in .npz")


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Measure how good a trained model is, on the whole test set."""

    workdir: Path = Path("runs/mnist")
    """Folder that train.py wrote; evaluation.json and evaluation.png are written into it."""
    step: int | None = None
    """Checkpoint to evaluate, by its training step. Left out: the newest."""
    num_importance_samples: int = 5000
    """Latents drawn for each test image to estimate its log-likelihood."""
    num_samples: int = 1000
    """Images drawn of each class."""
    seed: int = 0
    """Seed of all that is drawn; the same seed gives the same figures."""
    source: Source = "auto"
    """Where the images come from, as in train.py."""
    data_dir: Path | None = None
    """Folder of the TFDS data sets, or of the four IDX files, as in train.py."""

    def __post_init__(self) -> None:
        _require_count("num-importance-samples", self.num_importance_samples, most=MOST_LATENTS)
        _require_count("num-samples", self.num_samples, least=FEWEST_SAMPLES)
        if self.step is not None:
            _require_count("step", self.step, least=0)
        _require_count("seed", self.seed, least=0, most=LARGEST_SEED)
        _require_source(self.source, self.data_dir)


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """Train the classifier that judges samples, and write it to a file."""

    out: Path = Path("judge.npz")
    """File to write (NPZ)."""
    dataset: str = TrainConfig.dataset
    """Data set, as in train.py."""
    source: Source = "auto"
    """Where the images come from, as in train.py."""
    data_dir: Path | None = None
    """Folder of the TFDS data sets, or of the four IDX files, as in train.py."""

    def __post_init__(self) -> None:
        _require(self.out.suffix.lower() == ".npz", "out", self.out, "a name that ends in .npz")
        _require_source(self.source, self.data_dir)


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
