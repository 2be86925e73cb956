"""Train a conditional VAE: `python scripts/train.py --epochs 100`."""

import dataclasses

from cvae_jax import cli
from cvae_jax.config import RunOptions, TrainConfig


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a conditional VAE, and go on where an earlier run of the same command stopped."""

    run: RunOptions
    config: TrainConfig


def main() -> None:
    """Parse the arguments, then train."""
    with cli.one_line_errors():
        command = cli.parse(TrainCommand)
        from cvae_jax import experiment  # only now, so that --help and errors come at once

        experiment.train(command.config, command.run)


if __name__ == "__main__":
    main()
