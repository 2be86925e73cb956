"""`cvae-jax import`: take over a checkpoint of the PyTorch original."""

import dataclasses
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import DataOptions, TrainConfig
from cvae_jax.errors import ConfigError

if TYPE_CHECKING:
    from cvae_jax.data.dataset import Splits
    from cvae_jax.formats.pth import Original


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Take over a checkpoint of the PyTorch original: sample, evaluate and train on."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Checkpoint of the original, such as cvae_checkpoint.pth."""
    workdir: Path = Path("runs/imported")
    """Folder of the run that goes on from it; a new one."""
    dataset: str = TrainConfig.dataset
    """Data set that it was trained on."""
    batch_size: int = TrainConfig.batch_size
    """Images in a batch of that training."""
    data: DataOptions = dataclasses.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        TrainConfig(dataset=self.dataset, batch_size=self.batch_size)  # checks them


def run(options: ImportOptions) -> None:
    """Write the workdir of a run that has come as far as the checkpoint."""
    with many_imports():
        from cvae_jax.data.sources import load
        from cvae_jax.formats import pth
        from cvae_jax.runtime import devices
        from cvae_jax.runtime.files import user_path
        from cvae_jax.storage import checkpoints, weights, workdir
        from cvae_jax.storage.history import Progress

    path, folder = user_path("FILE", options.file), user_path("workdir", options.workdir)
    devices.describe()  # reports in one line where JAX can't start
    found = pth.read(path)
    data, adam = options.data, found.adam
    splits = load(options.dataset, data)
    _require_fit(path, found, splits, options)
    config = TrainConfig(
        dataset=options.dataset,
        batch_size=options.batch_size,
        learning_rate=adam.learning_rate if adam else TrainConfig.learning_rate,
        hidden_dim=found.sizes.hidden_dim,
        latent_dim=found.sizes.latent_dim,
    )
    run = splits.run(config)
    if any((folder / name).exists() for name in (weights.CONFIG, workdir.CHECKPOINTS)):
        raise ConfigError(f"--workdir {folder} holds a model; name another folder")
    place = f"--workdir {shlex.quote(str(folder))}"
    if adam is None:
        weights.write(folder, run, weights.from_names(run, found.params))
        print(f"wrote {weights.WEIGHTS} and {weights.CONFIG} in {folder}")
        print("training can't go on from them: the file has no optimizer_state_dict")
    else:
        progress = Progress(epochs_before=found.epoch, steps_before=adam.step)
        with workdir.lock(folder):
            workdir.claim(folder, run, is_new=True)
            state = pth.to_state(found, adam, run)
            checkpoints.save(folder / workdir.CHECKPOINTS, state, run, progress)
        print(f"wrote {folder}, a run after {found.epoch} epochs, {adam.step:,} steps")
        settings = f"{place}{_settings(config, data)} --epochs {2 * found.epoch}"
        print(f"to train on: cvae-jax train {settings}")
    print(f"to draw digits: cvae-jax sample {place}")


def _require_fit(path: Path, found: "Original", splits: "Splits", options: ImportOptions) -> None:
    """Raise `ConfigError` unless a checkpoint can have been trained on a data set as named."""
    there = found.sizes.num_pixels, found.sizes.num_classes
    here = math.prod(splits.image_shape), splits.num_classes
    if there != here:
        raise ConfigError(
            f"{path} is of images of {there[0]:,} pixels in {there[1]} classes, and those of "
            f"--dataset {options.dataset} have {here[0]:,} in {here[1]}; name its own"
        )
    if found.adam is None:
        return
    step, epoch, number = found.adam.step, found.epoch, len(splits.train.label)
    expected = epoch * math.ceil(number / options.batch_size)
    if step != expected:
        fitting = max(1, math.ceil(number * epoch / step))
        fits = epoch * math.ceil(number / fitting) == step
        raise ConfigError(
            f"{path} has {step:,} steps in {epoch} epochs, and {number:,} images with "
            f"--batch-size {options.batch_size} make {expected:,}; "
            + (f"--batch-size {fitting} fits" if fits else "no batch size fits, so name its data")
        )


def _settings(config: TrainConfig, data: DataOptions) -> str:
    """Return the options that are not the defaults, as the command line has them."""
    given = [
        (field.name, getattr(values, field.name))
        for values in (config, data)
        for field in dataclasses.fields(values)
        if getattr(values, field.name) != getattr(type(values), field.name)
    ]
    return "".join(
        f" --{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
        for name, value in given
    )
