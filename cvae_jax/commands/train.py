"""`cvae-jax train`: train a model, or resume an earlier run of the same command."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from cvae_jax.commands.cli import many_imports, tolerant_output
from cvae_jax.config import PRESETS, DataOptions, DeviceOptions, RunOptions, TrainConfig


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a conditional VAE, or resume an earlier run of the same command."""

    run: RunOptions
    config: TrainConfig
    data: DataOptions
    spread: DeviceOptions


def defaults(arguments: Sequence[str]) -> TrainCommand:
    """Return the options that hold where the arguments name none: those of their --preset."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    name = parser.parse_known_args(arguments)[0].preset
    name = name if name in PRESETS else RunOptions.preset  # a wrong name is reported later

    def make(kind: Any) -> Any:
        fields = {field.name for field in dataclasses.fields(kind)}
        settings = PRESETS[name] | {"preset": name}
        return kind(**{key: value for key, value in settings.items() if key in fields})

    return TrainCommand(*map(make, (RunOptions, TrainConfig, DataOptions, DeviceOptions)))


def run(options: TrainCommand) -> None:
    """Train a model, and write everything below the workdir."""
    with many_imports():
        from cvae_jax.runtime import devices
        from cvae_jax.training import loop

    is_free = options.spread.num_devices is None and options.spread.coordinator_address is None
    if options.config.model == "conv" and is_free:
        devices.split_cpu(options.config.batch_size)
    with tolerant_output():
        loop.train(options.config, options.run, options.data, options.spread)
