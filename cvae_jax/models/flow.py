"""A learnt prior p(z | y) for any model: a normalising flow (RealNVP, Dinh et al. 2017).

The model's latent z becomes f(u; y) with u ~ N(0, I), and u is the latent of the contract. Affine
couplings with bounded scale and shift, invertible in float32, are followed by an
affine map of each class.
"""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cvae_jax.models.family import Autoencoding, Model, Params

_COUPLINGS, _HIDDEN = 10, 256
MOST_LOG_SCALE, MOST_SHIFT = 1.0, 8.0


def with_flow(base: Model) -> Model:
    """Return a model whose prior is learnt; `kl` has one column, the draw's estimate (G = 1)."""
    flow = Flow(base.latent_dim, base.config.num_classes)

    def init(key: jax.Array) -> Params:
        base_key, flow_key = jax.random.split(key)
        latent, label = jnp.zeros((1, base.latent_dim)), jnp.zeros((1,), jnp.int32)
        params = flow.init(flow_key, latent, label)["params"]
        return {"base": base.init(base_key), "flow": params}

    def decode(params: Params, latent: jax.Array, label: jax.Array) -> jax.Array:
        moved = cast(jax.Array, flow.apply({"params": params["flow"]}, latent, label))
        return base.decode(params["base"], moved, label)

    def autoencode(
        params: Params, image: jax.Array, label: jax.Array, noise: jax.Array
    ) -> Autoencoding:
        found = base.autoencode(params["base"], image, label, noise)
        inverse = flow.apply({"params": params["flow"]}, found.latent, label, method="invert")
        latent, log_det = cast(tuple[jax.Array, jax.Array], inverse)
        # log N(z) - log p(z | y), where log p(z | y) = log N(u) + log |du / dz|.
        change = 0.5 * (latent**2 - found.latent**2).sum(axis=-1) - log_det
        return Autoencoding(
            latent=latent,
            logits=found.logits,
            log_ratio=found.log_ratio + change,
            # The base's part in closed form has less noise than the draw's own ratio.
            kl=(found.kl.sum(axis=-1) + change)[:, jnp.newaxis],
        )

    return Model(base.config, base.latent_dim, init, autoencode, decode)


def orders(latent_dim: int) -> list[np.ndarray]:
    """Return the fixed permutation of the dimensions before each coupling."""
    rng = np.random.default_rng(0)
    return [rng.permutation(latent_dim) for _ in range(_COUPLINGS)]


class Coupling(nn.Module):
    """Scale and shift of one half of the latent, given the other half and the label."""

    size: int
    num_classes: int

    @nn.compact
    def __call__(self, given: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return log-scale and shift, (B, size) each, bounded; they start at zero."""
        inputs = jnp.concatenate([given, jax.nn.one_hot(label, self.num_classes)], axis=-1)
        hidden = nn.silu(nn.Dense(_HIDDEN)(inputs))
        hidden = nn.silu(nn.Dense(_HIDDEN)(hidden))
        out = nn.Dense(2 * self.size, kernel_init=nn.initializers.zeros)(hidden)
        log_scale, shift = jnp.split(out, 2, axis=-1)
        return (
            MOST_LOG_SCALE * jnp.tanh(log_scale / MOST_LOG_SCALE),
            MOST_SHIFT * jnp.tanh(shift / MOST_SHIFT),
        )


class Flow(nn.Module):
    """z = f(u; y) and its inverse."""

    latent_dim: int
    num_classes: int

    def setup(self) -> None:
        """Declare the couplings and the affine map of each class."""
        first = self.latent_dim // 2
        self.couplings = [
            Coupling(self.latent_dim - first, self.num_classes) for _ in range(_COUPLINGS)
        ]
        shape = (self.num_classes, self.latent_dim)
        self.mean = self.param("mean", nn.initializers.zeros, shape)
        self.log_scale = self.param("log_scale", nn.initializers.zeros, shape)

    def __call__(self, latent: jax.Array, label: jax.Array) -> jax.Array:
        """Return z, (B, Z), for u, (B, Z)."""
        for coupling, order in zip(self.couplings, orders(self.latent_dim), strict=True):
            given, moved = jnp.split(latent[:, order], [self.latent_dim // 2], axis=-1)
            log_scale, shift = coupling(given, label)
            latent = jnp.concatenate([given, moved * jnp.exp(log_scale) + shift], axis=-1)
        return self.mean[label] + jnp.exp(self.log_scale[label]) * latent

    def invert(self, latent: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return u, (B, Z), and log |du / dz|, (B,), for z, (B, Z)."""
        latent = (latent - self.mean[label]) * jnp.exp(-self.log_scale[label])
        log_det = -self.log_scale[label].sum(axis=-1)
        steps = zip(self.couplings, orders(self.latent_dim), strict=True)
        for coupling, order in reversed(list(steps)):
            given, moved = jnp.split(latent, [self.latent_dim // 2], axis=-1)
            log_scale, shift = coupling(given, label)
            latent = jnp.concatenate([given, (moved - shift) * jnp.exp(-log_scale)], axis=-1)
            latent = latent[:, np.argsort(order)]
            log_det = log_det - log_scale.sum(axis=-1)
        return latent, log_det
