"""Measure how good a trained model is: `python scripts/evaluate.py`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main("evaluate")
