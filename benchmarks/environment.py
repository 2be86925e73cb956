"""The hardware and the versions that a benchmark ran on, and whether PyTorch is installed."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cvae_jax.errors import UserError

_PACKAGES = ("cvae_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch")


def require_torch() -> None:
    """Raise `UserError` where PyTorch is not installed; it is not imported."""
    if not _has_torch():
        raise UserError(
            "the benchmarks need PyTorch to compare with: pip install 'cvae_jax[parity]'"
        )


def num_threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, which `torch.compile` needs."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def describe() -> dict[str, Any]:
    """Return the hardware and the versions, in values that JSON can hold."""
    # In a process of its own, because JAX would occupy an accelerator that the contestants need.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        devices = pool.submit(_devices).result()
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "cores": num_threads(),
            "memory_gib": _memory_gib(),
            **devices,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES if name != "torch" or _has_torch()},
        },
    }


def name(result: Mapping[str, Any]) -> str:
    """Return the hardware of a result in a few words."""
    hardware = result["hardware"]
    if hardware["platform"] == "cpu":
        return f"{hardware['cores']} cores ({hardware['cpu']})"
    return str(hardware["jax_devices"])


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _devices() -> dict[str, Any]:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    from cvae_jax.runtime import devices

    found: dict[str, Any] = {
        "jax_devices": devices.describe(None),
        "num_devices": jax.device_count(),
        "platform": jax.default_backend(),
    }
    if _has_torch():
        import torch

        from benchmarks.torch_original import default_device

        on_cuda = default_device().type == "cuda"
        found["torch_device"] = torch.cuda.get_device_name() if on_cuda else "cpu"
    return found


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
