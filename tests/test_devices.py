import os
import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from cvae_jax import devices
from cvae_jax.types import ConfigError, UserError

TPU_V5E = ("0x1ae0", "0x0063", "0xff0000")
GOOGLE_NETWORK_CARD = ("0x1ae0", "0x0042", "0x020000")
NVIDIA_DISPLAY = ("0x10de", "0x2335", "0x030200")
NVIDIA_SOUND = ("0x10de", "0x22ba", "0x040300")
OTHER_DISPLAY = ("0x1002", "0x1638", "0x030000")

Machine = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Give a function that makes the root directory of a machine with these PCI devices."""

    def make(*pci: tuple[str, str, str]) -> Path:
        for number, values in enumerate(pci):
            device = tmp_path / f"sys/bus/pci/devices/0000:00:{number:02x}.0"
            device.mkdir(parents=True)
            for name, value in zip(("vendor", "device", "class"), values, strict=True):
                (device / name).write_text(value + "\n")
        return tmp_path

    return make


def test_the_devices_in_use_are_named_and_counted() -> None:
    assert devices.describe() == "8 x cpu (cpu), of which 1 is used"
    assert devices.describe(2) == "8 x cpu (cpu), of which 2 are used"
    assert devices.describe(8) == devices.describe(None) == "8 x cpu (cpu)"


@pytest.mark.parametrize(
    ("pci", "expected"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([TPU_V5E], ("tpu", "a TPU"), id="a TPU"),
        pytest.param([GOOGLE_NETWORK_CARD], None, id="a network card of Google"),
        pytest.param([GOOGLE_NETWORK_CARD, TPU_V5E], ("tpu", "a TPU"), id="both"),
        pytest.param([NVIDIA_DISPLAY], ("cuda12", "an NVIDIA GPU"), id="an NVIDIA GPU"),
        pytest.param([NVIDIA_SOUND], None, id="a sound device of NVIDIA"),
        pytest.param([OTHER_DISPLAY], None, id="a display of another maker"),
        pytest.param([("0x8086", "0x0063", "0x020000")], None, id="a TPU's number, not Google's"),
    ],
)
def test_accelerators_are_found_among_the_pci_devices(
    pci: list[tuple[str, str, str]], expected: tuple[str, str] | None, machine: Machine
) -> None:
    assert devices.find_accelerator(machine(*pci)) == expected


@pytest.mark.parametrize(
    ("file", "extra"), [("proc/driver/nvidia/version", "cuda12"), ("dev/accel0", "tpu")]
)
def test_accelerators_are_found_by_their_drivers(file: str, extra: str, machine: Machine) -> None:
    root = machine(OTHER_DISPLAY)
    (root / file).parent.mkdir(parents=True)
    (root / file).touch()
    found = devices.find_accelerator(root)
    assert found is not None
    assert found[0] == extra


@pytest.mark.parametrize("name", ["COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE"])
def test_colab_says_that_it_has_a_tpu(
    name: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "v5e-1")
    assert devices.find_accelerator(machine()) == ("tpu", "a TPU")


def test_a_device_that_does_not_say_what_it_is_is_passed_over(machine: Machine) -> None:
    root = machine(NVIDIA_SOUND)
    (root / "sys/bus/pci/devices/0000:00:01.0").mkdir()
    assert devices.find_accelerator(root) is None


@pytest.mark.parametrize("chosen", [None, "", "tpu,cpu", "cuda"])
@pytest.mark.parametrize(
    ("device", "extra", "name"),
    [(TPU_V5E, "tpu", "a TPU"), (NVIDIA_DISPLAY, "cuda12", "an NVIDIA GPU")],
)
def test_an_accelerator_that_jax_does_not_use_is_told_with_what_to_install(
    chosen: str | None,
    device: tuple[str, str, str],
    extra: str,
    name: str,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("JAX_PLATFORMS", chosen)
    said = devices.unused_accelerator(machine(device))
    assert said is not None
    assert f"this machine has {name}" in said
    # Another version of JAX would leave an old libtpu behind.
    assert re.search(rf"pip install 'jax\[{extra}\]=={re.escape(jax.__version__)}'", said)
    assert "\n" not in said


@pytest.mark.parametrize("chosen", ["cpu", "cpu,cuda"])
def test_nothing_is_said_where_the_cpu_was_chosen(
    chosen: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", chosen)
    assert devices.unused_accelerator(machine(TPU_V5E)) is None


def test_nothing_is_said_where_there_is_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    assert devices.unused_accelerator(machine(GOOGLE_NETWORK_CARD)) is None


def test_nothing_is_said_where_the_accelerator_is_in_use(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert devices.unused_accelerator(machine(TPU_V5E)) is None


def test_an_accelerator_that_is_held_by_another_process_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu': in use\nmore")

    monkeypatch.setattr(jax, "devices", refuse)
    with pytest.raises(UserError, match=r"'tpu': in use.*another process"):
        devices.describe()


class Device:
    """A device that has, or does not say that it has, some memory."""

    def __init__(self, stats: dict[str, int] | None) -> None:
        self.stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that sets what the first device and the machine say of their memory."""

    def set_memory(stats: dict[str, int] | None, pages: int) -> None:
        monkeypatch.setattr(jax, "local_devices", lambda: [Device(stats), Device(None)])
        sizes = {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 1000}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)

    return set_memory


@pytest.mark.parametrize(
    ("stats", "on_device", "most"),
    [
        ({"bytes_limit": 2_500_000_000}, True, 2_500_000_000),
        ({"bytes_limit": 2_500_000_000}, False, 4_000_000_000),
        ({"bytes_in_use": 1}, True, 4_000_000_000),
        (None, True, 4_000_000_000),
        (None, False, 4_000_000_000),
    ],
)
def test_what_never_fits_the_memory_is_refused_with_both_sizes(
    stats: dict[str, int] | None, on_device: bool, most: int, memory: Callable[..., None]
) -> None:
    memory(stats, pages=4_000_000)
    devices.require_memory(most, "--num 9", on_device=on_device)
    expected = rf"^--num 9 can't be used: .* {most / 1e9} GB; choose less"
    with pytest.raises(ConfigError, match=expected):
        devices.require_memory(most + 1, "--num 9", on_device=on_device)
    with pytest.raises(ConfigError, match=r" 1,000,000,000\.0 GB of memory are needed"):
        devices.require_memory(10**18, "--num 9", on_device=on_device)


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_nothing_is_refused_where_the_machine_does_not_say_what_it_has(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> int:
        raise error

    monkeypatch.setattr(os, "sysconf", refuse, raising=False)
    devices.require_memory(10**30, "--num 9")


def test_this_machine_has_some_memory_and_not_endlessly_much() -> None:
    devices.require_memory(1, "--num 9")
    with pytest.raises(ConfigError):
        devices.require_memory(10**18, "--num 9")
