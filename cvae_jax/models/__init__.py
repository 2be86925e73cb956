"""Models by name. A new one is a file here, a line in `FAMILIES` and a name in `config`."""

from collections.abc import Callable

import jax

from cvae_jax.config import ModelConfig, Precision
from cvae_jax.models import mlp
from cvae_jax.models.family import Model

FAMILIES: dict[str, Callable[[ModelConfig, Precision], Model]] = {"mlp": mlp.build}


def build_model(config: ModelConfig, precision: Precision = "float32") -> Model:
    """Return a model's functions.

    Args:
        config: the settings that fix its arrays.
        precision: type of its matrix products and activations; the parameters are float32.
    """
    return FAMILIES[config.name](config, precision)


def count_params(config: ModelConfig) -> int:
    """Return the number of a model's parameters, without allocating them."""
    model = build_model(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
