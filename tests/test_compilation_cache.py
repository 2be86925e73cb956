import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as cache_of_jax

from cvae_jax.runtime import compilation_cache

DIRECTORY = "jax_compilation_cache_dir"
SETTINGS = (
    DIRECTORY,
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
    "jax_enable_compilation_cache",
)


def settings() -> dict[str, object]:
    return {name: getattr(jax.config, name) for name in SETTINGS}


@pytest.fixture(autouse=True)
def _as_in_a_command() -> Iterator[None]:
    """Disable the tests' own cache, and put all settings back afterwards."""
    before = settings()
    jax.config.update(DIRECTORY, None)
    cache_of_jax.reset_cache()
    with warnings.catch_warnings():
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    cache_of_jax.reset_cache()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cvae_jax" / "compiled"


def test_a_program_is_compiled_once_and_once_more_when_its_entry_is_damaged(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))

    def compile_anew() -> tuple[np.ndarray, bool]:
        """Return a result as in a new process, and whether it was compiled."""
        events.clear()
        value = jax.jit(lambda x: np.float32(3) * jax.numpy.sin(x))(np.arange(9, dtype=np.float32))
        return np.asarray(value), "/jax/compilation_cache/cache_hits" not in events

    warnings.simplefilter("error")
    compilation_cache.keep()
    first, was_compiled = compile_anew()
    assert was_compiled
    second, was_compiled = compile_anew()
    assert not was_compiled
    np.testing.assert_array_equal(first, second)
    (entry,) = folder.glob("*-cache")
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    third, was_compiled = compile_anew()
    assert was_compiled
    np.testing.assert_array_equal(first, third)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_kept_where_no_private_folder_can_be_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settings()
    folder.mkdir(parents=True)
    folder.chmod(0o777)  # others could write programs that we run
    compilation_cache.keep()
    (folder / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    compilation_cache.keep()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "relative")
    compilation_cache.keep()
    assert settings() == before


@pytest.mark.parametrize(
    ("name", "value"), [(DIRECTORY, "mine"), ("jax_enable_compilation_cache", False)]
)
def test_jax_own_settings_come_first(name: str, value: object, folder: Path) -> None:
    jax.config.update(name, value)
    before = settings()
    compilation_cache.keep()
    assert settings() == before
    assert not folder.exists()


def test_jax_own_variables_come_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "jax_compilation_cache_max_size"
    jax.config.update(name, 12_345)  # as JAX does where it finds the variable
    monkeypatch.setenv(name.upper(), "12345")
    compilation_cache.keep()
    assert settings() == settings() | {DIRECTORY: str(folder), name: 12_345}


def test_a_version_that_prints_false_alarms_keeps_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "__version_info__", (0, 8, 3))
    compilation_cache.keep()
    assert not folder.exists()
