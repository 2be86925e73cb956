"""What a run is to do, and whether it can: before anything is written or compiled."""

import math
from pathlib import Path

from cvae_jax import devices, records
from cvae_jax.config import LARGEST_COUNT, RunConfig, TrainConfig
from cvae_jax.models import count_params
from cvae_jax.options import RunOptions
from cvae_jax.types import ConfigError, Splits


def describe_run(
    config: TrainConfig, options: RunOptions, splits: Splits, num_devices: int
) -> RunConfig:
    """Print what is trained on what, give it as a run, and refuse what can't go together.

    Args:
        config: the settings.
        options: how far to train.
        splits: the data set.
        num_devices: how many share a batch.

    Raises:
        ConfigError: the model does not fit the memory, or there would be too many steps.
    """
    num_train, num_test = len(splits.train.label), len(splits.test.label)
    run = RunConfig(
        train=config,
        image_shape=splits.image_shape,
        num_classes=splits.num_classes,
        data_sha256=splits.fingerprint(),
    )
    print(
        f"data: {config.dataset}, {num_train:,} training and {num_test:,} test images of shape "
        f"{run.image_shape}, {run.num_classes} classes",
        flush=True,
    )
    # The parameters, their gradient and Adam's averages, a copy; a batch and its activations.
    numbers = 7 * count_params(run.model)
    of_one_image = 4 * math.prod(run.image_shape) + 6 * config.hidden_dim
    numbers += config.batch_size // num_devices * of_one_image
    devices.require_memory(
        4 * numbers,
        f"--hidden-dim {config.hidden_dim} with --latent-dim {config.latent_dim} and --batch-size "
        f"{config.batch_size}",
    )
    most_epochs = LARGEST_COUNT // math.ceil(num_train / config.batch_size)
    if options.epochs > most_epochs:
        raise ConfigError(
            f"--epochs {options.epochs} can't be used; steps are counted up to {LARGEST_COUNT}, "
            f"choose 1 to {most_epochs}"
        )
    return run


def data_memory(options: RunOptions) -> float | None:
    """Give the bytes on a device that the data set may take; None for any number."""
    if options.data_memory is not None:
        return options.data_memory * 1e9
    memory = devices.memory()
    return None if memory is None else memory / 2


def to_agree_on(run: RunConfig, options: RunOptions, folder: Path) -> bytes:
    """Give all that has to be the same in every process, or they would wait for each other."""
    shared = options.epochs, options.sample_every, options.checkpoint_every, folder.resolve()
    return records.encode(run) + repr(shared).encode()
