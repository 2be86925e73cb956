"""Write a web page to play with a trained model: `python scripts/page.py --out play.html`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main("page")
