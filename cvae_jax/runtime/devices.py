"""The devices that JAX computes on, and how arrays lie on them.

Programs are written for the whole batch (global-view `jit`); XLA divides them. The parameters, the
optimizer's state and a resident data set are on every device; a batch is divided among them.
"""

import contextlib
import os
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cvae_jax.errors import ConfigError, UserError
from cvae_jax.runtime.files import reason

_AXIS = "batch"
_MOST_CPU_DEVICES = 4


def describe(num_used: int | None = 1) -> str:
    """Return the names of the devices, such as "2 x NVIDIA H200 (gpu), of which 1 is used".

    Args:
        num_used: number of devices that will be used; None for all.

    Raises:
        UserError: JAX can't start; most often another process holds the accelerator.
    """
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that its platform was found
        raise UserError(
            f"JAX can't start ({reason(error)}); check JAX_PLATFORMS, and whether another process, "
            "such as a notebook's kernel, holds the accelerator"
        ) from error
    kinds = [f"{device.device_kind} ({device.platform})" for device in devices]
    names = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    if num_used is None or num_used >= len(devices):
        return names
    return f"{names}, of which {num_used} {'is' if num_used == 1 else 'are'} used"


def split_cpu(batch_size: int) -> None:
    """Let JAX see a CPU as a device for each core, up to four, that divide a batch equally.

    Convolutions gain from it, because their loops use one core each. It must come before JAX
    starts, and it changes nothing where the user has set a number.
    """
    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if is_set or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        cores = os.cpu_count() or 1
    choices = range(1, min(cores, _MOST_CPU_DEVICES) + 1)
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", max(n for n in choices if batch_size % n == 0))


def unused_accelerator(root: Path = Path("/")) -> str | None:
    """Return a warning where this machine has an accelerator and JAX uses the CPU, else None.

    Args:
        root: the folder in which to look for the files that Linux shows for a device.
    """
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if jax.default_backend() != "cpu" or chosen.split(",")[0] == "cpu":
        return None
    if (
        "COLAB_TPU_ADDR" in os.environ
        or "TPU_ACCELERATOR_TYPE" in os.environ
        or any(root.glob("dev/accel*"))
    ):
        name, extra = "a TPU", "tpu"
    elif (root / "proc/driver/nvidia/version").exists():
        name, extra = "an NVIDIA GPU", "cuda12"
    else:
        return None
    return (
        f"this machine has {name}, but JAX (version {jax.__version__}) sees only the CPU and "
        f"will be far slower. Install the build of JAX for it, with its version left as it is: "
        f"pip install 'jax[{extra}]=={jax.__version__}', then restart the runtime."
    )


def memory() -> int | None:
    """Return the bytes of memory of JAX's first device; None where they are unknown."""
    on_device: int | None = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if on_device is not None:
        return on_device
    try:  # a CPU uses the memory of the machine
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, for example
        return None


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Return a mesh of one axis over the devices of all processes, or the first `num_devices`.

    Raises:
        ConfigError: there are fewer, or several processes would not use all of them.
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
    """Raise `ConfigError` where a batch can't be divided into equal parts, one a device."""
    if batch_size % mesh.size:
        fits = max(n for n in range(1, mesh.size) if batch_size % n == 0)
        advice = "" if jax.process_count() > 1 else f", or --num-devices {fits}"
        raise ConfigError(
            f"--batch-size {batch_size} can't be divided among {mesh.size} devices; choose a "
            f"multiple of {mesh.size}{advice}"
        )


def on_all(mesh: Mesh) -> NamedSharding:
    """Return the sharding with which each device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
    """Return the sharding that divides the second axis of arrays (S, B, ...) among the devices."""
    return NamedSharding(mesh, PartitionSpec(None, _AXIS))


def put(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """Return an array that every process holds, laid out on the devices.

    Each process copies only the parts that its own devices need.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
