"""Every setting of a run: its default, its meaning and its bounds.

The command line is made from these classes: the text under a field is its `--help`. A value out of
bounds raises `ConfigError` when the object is made. This module does not import JAX, so that
`--help` and errors in arguments appear at once.
"""

import dataclasses
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from cvae_jax.errors import ConfigError

Binarize = Literal["none", "dynamic"]
ModelName = Literal["mlp", "conv"]
Prior = Literal["normal", "flow"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine"]
Source = Literal["auto", "bundled", "tfds", "idx", "emnist", "folder"]
PresetName = Literal["original", "quick", "best", "best-accelerator"]
Pretrained = Literal["original", "best"]
Format = Literal["safetensors", "pth", "onnx", "stablehlo"]

PRETRAINED = Path(__file__).parent / "pretrained"
"""The folder of the trained models in this package, each in a folder of its name."""

LARGEST_SEED = 2**32 - 1
LARGEST_COUNT = 2**31 - 1
HIGHEST_TEMPERATURE = 100
TEMPERATURES = f"a number from 0 to {HIGHEST_TEMPERATURE}"
LARGEST_DIM = 65_536  # of any axis of the model's arrays
LARGEST_SIDE = 1024  # pixels to which images are scaled
SMALLEST_RATE, LARGEST_RATE = 1e-30, 1e30  # within the range of float32
SMALLEST_MEMORY, LARGEST_MEMORY = 1e-9, 1e9  # GB


def require(condition: bool, option: str, value: Any, allowed: str) -> None:
    """Raise `ConfigError` unless a condition on an option's value holds."""
    if not condition:
        raise ConfigError(f"--{option} {value} can't be used; choose {allowed}")


def require_count(option: str, value: int, least: int = 1, most: int = LARGEST_COUNT) -> None:
    """Raise `ConfigError` where an option's whole number is out of bounds."""
    require(least <= value <= most, option, value, f"a whole number from {least} to {most}")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What to start from, how far to train, and where the results go."""

    preset: PresetName = "original"
    """Settings to start from; other options replace single ones. original: the tutorial's.
    quick: its network and test loss in a third of its time. best: convolutional with a learnt
    prior, of black-and-white images, for two cores. best-accelerator: a larger one for a GPU or a
    TPU, not yet tried on one."""
    epochs: int = 100
    """Train up to this epoch. A run that stopped earlier resumes from its newest checkpoint."""
    workdir: Path | None = None
    """Folder of all results. Default: runs/<dataset>, or runs/<dataset>-<preset>."""
    sample_every: int = 10
    """Epochs between two sample grids; the last epoch always draws one."""
    checkpoint_every: int = 10
    """Epochs between two checkpoints; the last epoch always saves one."""
    quiet: bool = False
    """Print warnings and errors only."""
    tensorboard: bool = False
    """Write losses, samples and reconstructions for TensorBoard, too. Needs the extra
    tensorboard."""

    def __post_init__(self) -> None:
        allowed = get_args(PresetName)
        require(self.preset in allowed, "preset", reprlib.repr(self.preset), " or ".join(allowed))
        require_count("epochs", self.epochs)
        require_count("sample-every", self.sample_every)
        require_count("checkpoint-every", self.checkpoint_every)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What to train. Equal settings on equal data give equal results."""

    dataset: str = "mnist"
    """Data set: mnist, fashion_mnist, kmnist, or a part of EMNIST, such as emnist/letters
    (`cvae-jax data` lists all); with --source idx or folder any name of your own."""
    model: ModelName = "mlp"
    """Model. mlp: the original, one hidden layer in the encoder and one in the decoder.
    conv: residual blocks of convolutions."""
    prior: Prior = "normal"
    """Prior of the latent. normal: N(0, I). flow: learnt, for each class."""
    batch_size: int = 128
    """Images in a batch."""
    learning_rate: float = 1e-3
    """Learning rate of Adam; the highest one of a schedule."""
    schedule: Schedule = "constant"
    """Learning rate over time. cosine: it falls to zero at the last of --decay-epochs."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from zero."""
    decay_epochs: int | None = None
    """Epochs of a cosine schedule. Default: --epochs."""
    nesterov: float | None = None
    """Momentum, such as 0.95, of Adam with Nesterov's steps (Dozat 2016, NAdam). Default: Adam's
    own, with a momentum of 0.9."""
    clip_norm: float | None = None
    """Largest norm of a gradient; a larger one is scaled down. Default: none."""
    skip_norm: float | None = None
    """Norm of a gradient above which it is taken as zero: that of an outlier. Default: none."""
    ema: float = 0.0
    """Decay of a moving average of the weights, such as 0.999. The average is tested, sampled and
    saved beside the weights. 0: no average."""
    hidden_dim: int = 600
    """Units in each hidden layer of the model mlp."""
    channels: int = 32
    """Channels of the model conv at half an image's height and width; twice as many at a
    quarter."""
    latent_dim: int = 50
    """Dimensions of the latent Gaussian."""
    binarize: Binarize = "none"
    """Training images. none: grey levels. dynamic: black and white, drawn anew at each step with
    the grey level as the probability of white."""
    precision: Precision = "float32"
    """Type of matrix products and activations in training. Parameters, loss, optimizer, tests and
    samples are float32 with either."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the noise."""

    def __post_init__(self) -> None:
        require(
            bool(self.dataset)
            and all(part and not part.startswith(".") for part in self.dataset.split("/"))
            and all(c.isalnum() or c in "_-./" for c in self.dataset),
            "dataset",
            reprlib.repr(self.dataset),
            "a name of letters, digits, '_', '-', '.' and '/'",
        )
        require_count("batch-size", self.batch_size)
        require_count("hidden-dim", self.hidden_dim, most=LARGEST_DIM)
        require_count("channels", self.channels, most=LARGEST_DIM)
        require_count("latent-dim", self.latent_dim, most=LARGEST_DIM)
        for option, value, allowed in (
            ("model", self.model, get_args(ModelName)),
            ("prior", self.prior, get_args(Prior)),
            ("schedule", self.schedule, get_args(Schedule)),
            ("binarize", self.binarize, get_args(Binarize)),
            ("precision", self.precision, get_args(Precision)),
        ):
            require(value in allowed, option, reprlib.repr(value), " or ".join(allowed))
        require_count("seed", self.seed, least=0, most=LARGEST_SEED)
        require_count("warmup-steps", self.warmup_steps, least=0)
        for option, decay in (("ema", self.ema), ("nesterov", self.nesterov)):
            if decay is not None:
                require(0 <= decay < 1, option, decay, "a number from 0 to below 1")
        if self.decay_epochs is not None:
            require_count("decay-epochs", self.decay_epochs)
        bounds = f"a number from {SMALLEST_RATE} to {LARGEST_RATE}"
        for option, number in (
            ("learning-rate", self.learning_rate),
            ("clip-norm", self.clip_norm),
            ("skip-norm", self.skip_norm),
        ):
            if number is not None:
                in_bounds = SMALLEST_RATE <= number <= LARGEST_RATE  # false for NaN
                require(in_bounds, option, number, bounds)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Where the images come from."""

    source: Source = "auto"
    """Source of the images.
    auto: what TFDS has prepared, else the MNIST in this package, else a download.
    bundled: the MNIST in this package. tfds: what TFDS has prepared, else its download.
    emnist: letters and digits, from their official archive.
    idx: four IDX files (.gz, .xz or plain) in --data-dir.
    folder: images in --data-dir, in a folder for each class: CLASS/, or train/CLASS/ and
    test/CLASS/."""
    data_dir: Path | None = None
    """Folder of the TFDS data sets (default: TFDS's own), of the four IDX files, or of images."""
    image_size: int = 28
    """With --source folder: pixels of a side to which images are scaled."""
    grey: bool = False
    """With --source folder: make coloured images grey."""
    skip_broken: bool = False
    """With --source folder: leave out files that can't be read, instead of ending there."""

    def __post_init__(self) -> None:
        needed = {"idx": "the folder of the four IDX files", "folder": "the folder of the images"}
        if self.source in needed and self.data_dir is None:
            raise ConfigError(f"--source {self.source} needs --data-dir, {needed[self.source]}")
        if self.source == "bundled" and self.data_dir is not None:
            raise ConfigError("--source bundled takes no --data-dir; leave one of the two out")
        require_count("image-size", self.image_size, most=LARGEST_SIDE)
        if self.source != "folder":
            for name in ("image_size", "grey", "skip_broken"):
                if getattr(self, name) != getattr(DataOptions, name):
                    option = name.replace("_", "-")
                    raise ConfigError(f"--{option} needs --source folder; leave it out")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which trained model to use."""

    workdir: Path = Path("runs/mnist")
    """Folder of the trained model: a run's, or one with model.safetensors and config.json."""
    pretrained: Pretrained | None = None
    """Use a trained model of MNIST in this package; results go into the current folder.
    original: the tutorial's, 100 epochs. best: the preset best."""
    step: int | None = None
    """Checkpoint to load, by its training step. Default: the newest."""

    def __post_init__(self) -> None:
        if self.step is not None:
            require_count("step", self.step, least=0)
        if self.pretrained is not None:
            allowed = get_args(Pretrained)
            named = reprlib.repr(self.pretrained)
            require(self.pretrained in allowed, "pretrained", named, " or ".join(allowed))
            for name in ("workdir", "step"):
                if getattr(self, name) != getattr(ModelOptions, name):
                    raise ConfigError(f"--pretrained takes no --{name}; leave one of the two out")

    @property
    def model_folder(self) -> Path:
        """Where the model is."""
        return PRETRAINED / self.pretrained if self.pretrained else self.workdir

    @property
    def results(self) -> Path:
        """Where results go unless an option says otherwise."""
        return Path() if self.pretrained else self.workdir


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """How a batch is spread over devices and hosts."""

    num_devices: int | None = None
    """Devices that share each batch; several pay off for batches of thousands, and for the model
    conv, for which a CPU is split. Default: all."""
    data_memory: float | None = None
    """Memory for the data set on a device, in GB; a larger data set streams from the host.
    Default: half of the device's memory."""
    coordinator_address: str | None = None
    """Several processes that train one model: host:port of process 0, reachable by all.
    Default: detected on a TPU pod and under Slurm; elsewhere there is one process."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""

    def __post_init__(self) -> None:
        if self.num_devices is not None:
            require_count("num-devices", self.num_devices)
        if self.data_memory is not None:
            require(
                SMALLEST_MEMORY <= self.data_memory <= LARGEST_MEMORY,  # false for NaN
                "data-memory",
                self.data_memory,
                f"a number from {SMALLEST_MEMORY} to {LARGEST_MEMORY}",
            )
        address, number, index = self.coordinator_address, self.num_processes, self.process_id
        if (address, number, index) == (None, None, None):
            return
        if address is None or number is None or index is None:
            raise ConfigError(
                "--coordinator-address, --num-processes and --process-id belong together; give "
                "all three, or none"
            )
        host, _, port = address.rpartition(":")
        require(
            bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 2**16,
            "coordinator-address",
            reprlib.repr(address),
            "host:port, such as 10.0.0.1:1234",
        )
        require_count("num-processes", number)
        require_count("process-id", index, least=0, most=number - 1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings that fix a model's arrays, and the names of its classes."""

    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int
    name: ModelName = TrainConfig.model
    prior: Prior = TrainConfig.prior
    hidden_dim: int = TrainConfig.hidden_dim
    channels: int = TrainConfig.channels
    latent_dim: int = TrainConfig.latent_dim
    class_names: tuple[str, ...] = ()

    @property
    def names(self) -> Sequence[str]:
        """The names of the classes; their numbers where they have none."""
        return self.class_names or [str(label) for label in range(self.num_classes)]

    def __post_init__(self) -> None:
        for field, sizes in (
            ("image_shape", self.image_shape),
            ("num_classes", (self.num_classes,)),
            ("hidden_dim", (self.hidden_dim,)),
            ("channels", (self.channels,)),
            ("latent_dim", (self.latent_dim,)),
        ):
            if not all(1 <= size <= LARGEST_DIM for size in sizes):
                raise ConfigError(
                    f"{field} {sizes} can't be used; choose whole numbers from 1 to {LARGEST_DIM}"
                )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The contents of config.json: the settings, and what the data set adds to them."""

    train: TrainConfig
    image_shape: tuple[int, int, int]
    num_classes: int
    data_sha256: str
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self.model  # checks the sizes

    @property
    def model(self) -> ModelConfig:
        """The settings of the model that was or will be trained."""
        return ModelConfig(
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            name=self.train.model,
            prior=self.train.prior,
            hidden_dim=self.train.hidden_dim,
            channels=self.train.channels,
            latent_dim=self.train.latent_dim,
            class_names=self.class_names,
        )


_CONV = {
    "model": "conv",
    "prior": "flow",
    "latent_dim": 48,
    "binarize": "dynamic",
    "batch_size": 64,
    "learning_rate": 1.5e-3,
    "schedule": "cosine",
    "warmup_steps": 500,
    "clip_norm": 3000.0,
    "skip_norm": 50_000.0,
    "ema": 0.999,
}
PRESETS: dict[str, dict[str, Any]] = {
    "original": {},
    "quick": {
        "epochs": 34,
        "batch_size": 256,
        "learning_rate": 8e-3,
        "nesterov": 0.95,
        "schedule": "cosine",
        "warmup_steps": 500,
        "ema": 0.999,
    },
    "best": _CONV | {"epochs": 75},
    "best-accelerator": _CONV
    | {
        "epochs": 200,
        "channels": 64,
        "batch_size": 256,
        "clip_norm": 12_000.0,
        "skip_norm": 200_000.0,
    },
}
"""The settings of each preset that differ from the defaults, by their Python names."""
