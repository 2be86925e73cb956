"""A conditional variational autoencoder in JAX that draws the digit you ask for.

Example:
    >>> import cvae_jax
    >>> model = cvae_jax.load("original")  # or train("mnist", epochs=3), or load("runs/mnist")
    >>> sixes = model.sample(6)  # pixel means in [0, 1]
    >>> sixes.shape
    (10, 28, 28, 1)

Names are imported at their first use, so that `import cvae_jax` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from cvae_jax.api import TrainedModel as TrainedModel
    from cvae_jax.api import load as load
    from cvae_jax.api import train as train
    from cvae_jax.data.sources import load_dataset as load_dataset
    from cvae_jax.models import build_model as build_model
    from cvae_jax.training.step import train_step as train_step

_HOMES = {
    "TrainedModel": "api",
    "load": "api",
    "train": "api",
    "load_dataset": "data.sources",
    "build_model": "models",
    "train_step": "training.step",
}

__all__ = ["TrainedModel", "build_model", "load", "load_dataset", "train", "train_step"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"cvae_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
