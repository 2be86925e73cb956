"""Draw samples from a trained model: `python scripts/sample.py --digit 6`."""

from cvae_jax import cli
from cvae_jax.config import SampleOptions


def main() -> None:
    """Parse the arguments, then draw."""
    with cli.one_line_errors():
        options = cli.parse(SampleOptions)
        from cvae_jax import drawing  # only now, so that --help and errors come at once

        drawing.draw(options)


if __name__ == "__main__":
    main()
