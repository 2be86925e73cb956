"""What JAX computes on, and what it should have found and did not."""

import os
from pathlib import Path

import jax

from cvae_jax.types import ConfigError, UserError

_PCI_GOOGLE, _PCI_NVIDIA = "0x1ae0", "0x10de"
# PCI device numbers of TPU v2 and v3, v4, v5e, v5p, v6e and v7; Google's network cards share
# the vendor number.
_PCI_TPUS = {"0x0027", "0x005e", "0x0063", "0x0062", "0x006f", "0x0076"}
_PCI_DISPLAY_CLASS = "0x03"


def describe(num_used: int | None = 1) -> str:
    """Name the devices that JAX found, for example "2 x NVIDIA H200 (gpu), of which 1 is used".

    Args:
        num_used: on how many of them there will be work; None for all.

    Raises:
        UserError: JAX can't start; most often another process holds the accelerator.
    """
    try:
        devices = jax.devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"JAX can't use its accelerator ({reason}); if another process holds it, such as a "
            "notebook's kernel, restart that one"
        ) from error
    kinds = [f"{device.device_kind} ({device.platform})" for device in devices]
    names = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    if num_used is None or num_used >= len(devices):
        return names
    return f"{names}, of which {num_used} {'is' if num_used == 1 else 'are'} used"


def unused_accelerator(root: Path = Path("/")) -> str | None:
    """Say which accelerator of this machine JAX does not see; None where all is well.

    Args:
        root: where to look for the files by which the operating system shows its devices.
    """
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if jax.default_backend() != "cpu" or chosen.split(",")[0] == "cpu":
        return None
    unused = find_accelerator(root)
    if unused is None:
        return None
    extra, name = unused
    return (
        f"this machine has {name}, but JAX (version {jax.__version__}) sees only the CPU and "
        f"will be far slower. Install the build of JAX for it, with its version left as it is: "
        f"pip install 'jax[{extra}]=={jax.__version__}', then restart the runtime."
    )


def memory() -> int | None:
    """Give the bytes that there are on JAX's first device; None where nobody says."""
    on_device: int | None = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return _machine_memory() if on_device is None else on_device


def require_memory(num_bytes: int, what: str, *, on_device: bool = True) -> None:
    """Refuse what can never fit, before any time is spent on it.

    Args:
        num_bytes: how much it needs.
        what: what needs it, as the error shall begin.
        on_device: whether it lies on JAX's first device, else in the machine's own memory.

    Raises:
        ConfigError: there is less than that; the message names both sizes.
    """
    most = memory() if on_device else _machine_memory()
    if most is not None and num_bytes > most:
        raise ConfigError(
            f"{what} can't be used: {num_bytes / 1e9:,.1f} GB of memory are needed, and there are "
            f"{most / 1e9:,.1f} GB; choose less"
        )


def _machine_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # this system does not say
        return None


def find_accelerator(root: Path) -> tuple[str, str] | None:
    """Find an accelerator without JAX: the extra of JAX that it needs, and its name."""
    pci = [
        (_read(device / "vendor"), _read(device / "device"), _read(device / "class"))
        for device in sorted((root / "sys/bus/pci/devices").glob("*"))
    ]
    if (
        any(vendor == _PCI_GOOGLE and device in _PCI_TPUS for vendor, device, _ in pci)
        or (root / "dev/accel0").exists()
        or "COLAB_TPU_ADDR" in os.environ
        or "TPU_ACCELERATOR_TYPE" in os.environ
    ):
        return "tpu", "a TPU"
    if (root / "proc/driver/nvidia/version").exists() or any(
        vendor == _PCI_NVIDIA and kind.startswith(_PCI_DISPLAY_CLASS) for vendor, _, kind in pci
    ):
        return "cuda12", "an NVIDIA GPU"
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
