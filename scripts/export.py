"""Write a trained model's weights into files that last: `python scripts/export.py DIR`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main("export")
