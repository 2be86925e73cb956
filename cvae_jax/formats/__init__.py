"""A trained model in files that other programs read, and from files that they wrote.

A new format is a file here with `write(folder, model)`, a line in `FORMATS` and a name in
`config.Format`. `write` returns the names of the files. The file and its format have one name.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from cvae_jax.config import Format, RunConfig
from cvae_jax.errors import ConfigError
from cvae_jax.storage.weights import is_original

FORMATS: dict[Format, Callable[[RunConfig], bool]] = {  # and the models that each is made for
    "safetensors": lambda _: True,
    "pth": is_original,
    "onnx": is_original,
    "stablehlo": lambda _: True,
}


def find(name: Format, run: RunConfig) -> Any:
    """Return the module of a format.

    Raises:
        ConfigError: the format is not made for the model of this run.
    """
    made = [one for one, is_made_for in FORMATS.items() if is_made_for(run)]
    if name not in made:
        model = f"--model {run.model.name} with --prior {run.model.prior}"
        raise ConfigError(f"--format {name} is not made for {model}; choose {' or '.join(made)}")
    return import_module(f"cvae_jax.formats.{name}")


def require_package(name: str, extra: str) -> Any:
    """Import a package that only one format needs.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name} is needed and can't be imported ({error}); pip install 'cvae_jax[{extra}]'"
        ) from error
