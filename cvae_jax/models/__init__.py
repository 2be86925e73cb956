"""Models by name. A new one is a file here, a line in `FAMILIES` and a name in `config`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cvae_jax.config import ModelConfig, Precision
from cvae_jax.models import conv, mlp
from cvae_jax.models.family import Model
from cvae_jax.models.flow import with_flow

FAMILIES: dict[str, Callable[[ModelConfig, Precision], Model]] = {
    "mlp": mlp.build,
    "conv": conv.build,
}


def build_model(config: ModelConfig, precision: Precision = "float32") -> Model:
    """Return a model's functions.

    Args:
        config: the settings that fix its arrays.
        precision: type of its matrix products and activations; the parameters are float32.

    Example:
        >>> import jax
        >>> import cvae_jax
        >>> from cvae_jax.config import ModelConfig
        >>> model = cvae_jax.build_model(ModelConfig(image_shape=(28, 28, 1), num_classes=10))
        >>> params = model.init(jax.random.key(0))
        >>> latent = jax.random.normal(jax.random.key(1), (4, model.latent_dim))
        >>> model.decode(params, latent, jax.numpy.array([2, 0, 2, 6])).shape
        (4, 28, 28, 1)
    """
    model = FAMILIES[config.name](config, precision)
    return with_flow(model) if config.prior == "flow" else model


def count_flops(config: ModelConfig) -> float:
    """Return the floating-point operations that a model needs for one image, forward."""
    model = build_model(config)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    if config.name == "mlp" and config.prior == "normal":
        # Every weight is used once. XLA's own count would take a tenth of a second longer.
        return 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    image, noise = (
        jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        for shape in (config.image_shape, (model.latent_dim,))
    )
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    lowered = jax.jit(model.autoencode).lower(params, image, label, noise)
    cost: Any = lowered.cost_analysis()
    return float(cost["flops"])
