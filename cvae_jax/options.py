"""The options of the scripts, each with its default, its meaning and its bounds, once.

What they ask for changes nothing in a trained model; what does is in `config`.
"""

import dataclasses
import reprlib
from pathlib import Path
from typing import Literal

from cvae_jax.config import LARGEST_SEED, TrainConfig, require, require_count
from cvae_jax.types import ConfigError

Source = Literal["auto", "bundled", "tfds", "idx"]

MOST_LATENTS = 10_000_000  # of one image
FEWEST_SAMPLES = 10  # of a class; their spread needs some
SMALLEST_MEMORY, LARGEST_MEMORY = 1e-9, 1e9  # GB: from a byte on


def _require_source(source: Source, data_dir: Path | None) -> None:
    if source == "idx" and data_dir is None:
        raise ConfigError("--source idx needs --data-dir, the folder of the four IDX files")
    if source == "bundled" and data_dir is not None:
        raise ConfigError("--source bundled takes no --data-dir; leave one of the two out")


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
    num_devices: int | None = None
    """Devices to spread each batch over, which pays for batches of thousands. Left out: all."""
    data_memory: float | None = None
    """Memory that the data set may take on a device, in GB; a larger one streams from the host.
    Left out: half of what the device has."""
    coordinator_address: str | None = None
    """Where several processes train one model: host:port of process 0, which they all can reach.
    Left out: found out on a TPU pod and under Slurm; elsewhere there is one process."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this one is, from 0."""

    def __post_init__(self) -> None:
        require_count("epochs", self.epochs)
        require_count("sample-every", self.sample_every)
        require_count("checkpoint-every", self.checkpoint_every)
        if self.num_devices is not None:
            require_count("num-devices", self.num_devices)
        if self.data_memory is not None:
            require(
                SMALLEST_MEMORY <= self.data_memory <= LARGEST_MEMORY,  # not so for NaN
                "data-memory",
                self.data_memory,
                f"a number from {SMALLEST_MEMORY} to {LARGEST_MEMORY}",
            )
        self._check_processes()
        _require_source(self.source, self.data_dir)

    def _check_processes(self) -> None:
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
            require_count("num", self.num)
        if self.step is not None:
            require_count("step", self.step, least=0)
        require_count("seed", self.seed, least=0, most=LARGEST_SEED)
        if self.out is not None:
            require(self.out.suffix.lower() == ".png", "out", self.out, "a name that ends in .png")
        if self.npz is not None:
            require(self.npz.suffix.lower() == ".npz", "npz", self.npz, "a name that ends in .npz")


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
        require_count("num-importance-samples", self.num_importance_samples, most=MOST_LATENTS)
        require_count("num-samples", self.num_samples, least=FEWEST_SAMPLES)
        if self.step is not None:
            require_count("step", self.step, least=0)
        require_count("seed", self.seed, least=0, most=LARGEST_SEED)
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
        require(self.out.suffix.lower() == ".npz", "out", self.out, "a name that ends in .npz")
        _require_source(self.source, self.data_dir)
