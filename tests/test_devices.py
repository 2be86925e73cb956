import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from cvae_jax.errors import ConfigError, UserError
from cvae_jax.runtime import devices


def test_the_devices_in_use_are_named_and_counted() -> None:
    assert devices.describe() == "8 x cpu (cpu), of which 1 is used"
    assert devices.describe(2) == "8 x cpu (cpu), of which 2 are used"
    assert devices.describe(8) == devices.describe(None) == "8 x cpu (cpu)"


@pytest.mark.parametrize(
    ("file", "extra", "name"),
    [
        ("proc/driver/nvidia/version", "cuda12", "an NVIDIA GPU"),
        ("dev/accel0", "tpu", "a TPU"),
        (None, "tpu", "a TPU"),
    ],
    ids=["GPU", "TPU", "Colab"],
)
def test_an_unused_accelerator_is_reported_with_what_to_install(
    file: str | None, extra: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS")
    assert devices.unused_accelerator(tmp_path) is None
    if file is None:
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5e-1")
    else:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    warning = str(devices.unused_accelerator(tmp_path))
    assert f"this machine has {name}" in warning
    # Another version of JAX would leave an old libtpu behind.
    assert f"pip install 'jax[{extra}]=={jax.__version__}'" in warning
    assert "\n" not in warning
    monkeypatch.setenv("JAX_PLATFORMS", "cpu,cuda")
    assert devices.unused_accelerator(tmp_path) is None  # the user chose the CPU


SPLIT = """
import os
os.sched_getaffinity = lambda _: {0, 1, 2}  # three cores
import jax
from cvae_jax.runtime import devices
devices.split_cpu(64)
print(jax.device_count())
devices.split_cpu(63)  # too late
"""


@pytest.mark.parametrize(("flags", "number"), [("", 2), ("5", 5)], ids=["cores", "user's"])
def test_a_cpu_is_split_into_as_many_devices_as_share_a_batch(flags: str, number: int) -> None:
    flags = flags and f"--xla_force_host_platform_device_count={flags}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SPLIT], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{number}\n"


def test_an_accelerator_held_by_another_process_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu': in use\nmore")

    monkeypatch.setattr(jax, "devices", refuse)
    with pytest.raises(UserError, match=r"'tpu': in use.*another process[^\n]*$"):
        devices.describe()


def test_memory_is_that_of_the_first_device_or_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_machine = devices.memory()
    assert on_machine == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for stats, expected in (({"bytes_limit": 5}, 5), ({"bytes_in_use": 1}, on_machine)):
        device = types.SimpleNamespace(memory_stats=lambda stats=stats: stats)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert devices.memory() == expected
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert devices.memory() is None


def test_too_many_devices_and_a_batch_they_cannot_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--num-devices 9 can't be used; .* choose 1 to 8$"):
        devices.make_mesh(9)
    mesh = devices.make_mesh(4)
    devices.require_divisible(128, mesh)
    expected = r"^--batch-size 126 .* 4 devices; choose a multiple of 4, or --num-devices 3$"
    with pytest.raises(ConfigError, match=expected):
        devices.require_divisible(126, mesh)


def test_arrays_lie_whole_on_all_devices_or_divided_by_their_second_axis() -> None:
    mesh = devices.make_mesh(2)
    array = np.arange(24).reshape(3, 4, 2)
    for sharding, shape in ((devices.on_all(mesh), (3, 4, 2)), (devices.divided(mesh), (3, 2, 2))):
        placed = devices.put(array, sharding)
        assert [shard.data.shape for shard in placed.addressable_shards] == [shape] * 2
        np.testing.assert_array_equal(np.asarray(placed), array)
