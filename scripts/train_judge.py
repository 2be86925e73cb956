"""Train the judge of a data set: `python scripts/train_judge.py --out judge.npz`."""

from cvae_jax import cli


def main() -> None:
    """Parse the arguments, then train."""
    # The rest is imported once Ctrl-C ends in a line, and what is slow after the arguments.
    with cli.one_line_errors():
        from cvae_jax.options import JudgeOptions

        options = cli.parse(JudgeOptions)
        with cli.many_imports():
            from cvae_jax import compiled, judges

        compiled.keep()
        judges.train(options)


if __name__ == "__main__":
    main()
