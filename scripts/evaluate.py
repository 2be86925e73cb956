"""Measure how good a trained model is: `python scripts/evaluate.py`."""

from cvae_jax import cli


def main() -> None:
    """Parse the arguments, then evaluate."""
    # The rest is imported once Ctrl-C ends in a line, and what is slow after the arguments.
    with cli.one_line_errors():
        from cvae_jax.options import EvaluateOptions

        options = cli.parse(EvaluateOptions)
        with cli.many_imports():
            from cvae_jax import assessment, compiled

        compiled.keep()
        assessment.assess(options)


if __name__ == "__main__":
    main()
