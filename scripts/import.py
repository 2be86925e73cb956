"""Take over a PyTorch checkpoint: `python scripts/import.py cvae_checkpoint.pth`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main("import")
