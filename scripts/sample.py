"""Draw samples from a trained model: `python scripts/sample.py --digit 6`."""

from cvae_jax import cli


def main() -> None:
    """Parse the arguments, then draw."""
    # The rest is imported once Ctrl-C ends in a line, and what is slow after the arguments.
    with cli.one_line_errors():
        from cvae_jax.options import SampleOptions

        options = cli.parse(SampleOptions)
        with cli.many_imports():
            from cvae_jax import compiled, drawing

        compiled.keep()
        drawing.draw(options)


if __name__ == "__main__":
    main()
