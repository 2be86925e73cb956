"""Train a conditional VAE: `python scripts/train.py --epochs 100`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main("train")
