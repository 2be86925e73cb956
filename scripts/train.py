"""Train a conditional VAE: `python scripts/train.py --epochs 100`."""

from cvae_jax import cli


def main() -> None:
    """Parse the arguments, then train."""
    # The rest is imported once Ctrl-C ends in a line, and what is slow after the arguments.
    with cli.one_line_errors():
        from cvae_jax.options import TrainCommand

        command = cli.parse(TrainCommand)
        with cli.many_imports():
            from cvae_jax import compiled, experiment

        compiled.keep()
        experiment.train(command.config, command.run)


if __name__ == "__main__":
    main()
