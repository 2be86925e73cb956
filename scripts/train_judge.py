"""Train the judge of a data set: `python scripts/train_judge.py --out judge.npz`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main("train-judge")
