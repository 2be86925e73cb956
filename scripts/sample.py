"""Draw samples from a trained model: `python scripts/sample.py --digit 6`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main("sample")
