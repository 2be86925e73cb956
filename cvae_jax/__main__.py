"""The commands of the package: `python -m cvae_jax train --help`."""

from cvae_jax.commands.cli import main

if __name__ == "__main__":
    main()
