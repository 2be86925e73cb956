"""`cvae-jax train`: train a model, or resume an earlier run of the same command."""

import dataclasses

from cvae_jax.commands.cli import many_imports, tolerant_output
from cvae_jax.config import DataOptions, DeviceOptions, RunOptions, TrainConfig


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a conditional VAE, or resume an earlier run of the same command."""

    run: RunOptions
    config: TrainConfig
    data: DataOptions
    spread: DeviceOptions


def run(options: TrainCommand) -> None:
    """Train a model, and write everything below the workdir."""
    with many_imports():
        from cvae_jax.training import loop
    with tolerant_output():
        loop.train(options.config, options.run, options.data, options.spread)
