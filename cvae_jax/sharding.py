"""Over which devices a batch is spread: a mesh of one axis, and what lies where on it.

Programs are written for the whole batch (global-view `jit`); XLA divides them. The parameters, the
optimizer's state and a resident data set are on every device, a batch is divided among them.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cvae_jax.types import ArrayLike, ConfigError

_AXIS = "batch"


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Line up the devices of all processes, or the first `num_devices` of them.

    Raises:
        ConfigError: there are not so many, or several processes are not to use all.
    """
    devices = jax.devices()
    if num_devices is not None:
        if num_devices > len(devices):
            raise ConfigError(
                f"--num-devices {num_devices} can't be used; JAX sees {len(devices)}, choose 1 to "
                f"{len(devices)}"
            )
        if num_devices < len(devices) and jax.process_count() > 1:
            raise ConfigError(
                f"--num-devices {num_devices} can't be used with {jax.process_count()} processes, "
                f"which train on all of their {len(devices)} devices; leave it out"
            )
        devices = devices[:num_devices]
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Refuse a batch that the devices can't have equal parts of.

    Raises:
        ConfigError: the message names both numbers.
    """
    if batch_size % mesh.size:
        fits = max(n for n in range(1, mesh.size) if batch_size % n == 0)
        advice = "" if jax.process_count() > 1 else f", or --num-devices {fits}"
        raise ConfigError(
            f"--batch-size {batch_size} can't be divided among {mesh.size} devices; choose a "
            f"multiple of {mesh.size}{advice}"
        )


def on_all(mesh: Mesh) -> NamedSharding:
    """Say that each device has all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
    """Say that each device has its part of the second axis: of arrays (S, B, ...)."""
    return NamedSharding(mesh, PartitionSpec(None, _AXIS))


def put(array: ArrayLike, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has where it belongs; each copies its own part alone."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
