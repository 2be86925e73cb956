"""List data sets, or draw one: `python scripts/data.py --sheet mnist`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main("data")
