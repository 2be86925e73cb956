"""What JAX compiles is kept for the next process, and can only cost time."""

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cvae_jax import compiled

DIRECTORY = "jax_compilation_cache_dir"
SETTINGS = (
    DIRECTORY,
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
    "jax_enable_compilation_cache",
)


@pytest.fixture(autouse=True)
def as_in_a_script() -> Iterator[None]:
    """Take the tests' own cache away, and the errors that pytest makes of warnings."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update(DIRECTORY, None)
    compilation_cache.reset_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of the cache, which is not yet made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cvae_jax" / "compiled"


@pytest.fixture
def compile_anew() -> Callable[[], tuple[np.ndarray, bool]]:
    """Give a function that a new process stands for: its result, and whether it was compiled."""
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))

    def compile_anew() -> tuple[np.ndarray, bool]:
        events.clear()
        value = jax.jit(lambda x: np.float32(3) * jax.numpy.sin(x))(np.arange(9, dtype=np.float32))
        return np.asarray(value), "/jax/compilation_cache/cache_hits" not in events

    return compile_anew


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-cache"))


def test_a_program_is_compiled_once_and_is_the_same_to_the_bit(
    folder: Path, compile_anew: Callable[[], tuple[np.ndarray, bool]]
) -> None:
    compiled.keep()
    first, was_compiled = compile_anew()
    assert was_compiled
    assert len(entries(folder)) == 1
    second, was_compiled = compile_anew()
    assert not was_compiled
    np.testing.assert_array_equal(first, second)
    assert folder.stat().st_mode & 0o777 == 0o700


def halve(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])


def flip(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)


def forget_when_it_was_used(entry: Path) -> None:
    entry.with_name(entry.name.replace("-cache", "-atime")).unlink()
    entry.rename(entry.with_name("jit_other-cache"))  # JAX looks at all when it writes one


def take_the_folder_away(entry: Path) -> None:
    shutil.rmtree(entry.parent)


@pytest.mark.parametrize("damage", [halve, flip, forget_when_it_was_used, take_the_folder_away])
def test_damage_costs_a_compilation_and_is_mended_without_a_word(
    damage: Callable[[Path], None],
    folder: Path,
    compile_anew: Callable[[], tuple[np.ndarray, bool]],
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    compiled.keep()
    first, _ = compile_anew()
    (entry,) = entries(folder)
    damage(entry)
    second, was_compiled = compile_anew()
    assert was_compiled
    np.testing.assert_array_equal(first, second)
    compile_anew()  # once more where the damage kept JAX from writing
    assert not compile_anew()[1]
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_other_warnings_are_shown(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as shown:
        compiled.keep()
        warnings.warn("about something else", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["about something else"]


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "/dev/null"])
def test_where_no_folder_can_be_made_nothing_is_kept(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    compiled.keep()
    assert getattr(jax.config, DIRECTORY) is None


@pytest.mark.parametrize("home", ["relative", None])
def test_nothing_is_kept_where_others_may_write(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir(tmp_path)
    if home is None:
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setenv("HOME", home)
    compiled.keep()
    assert getattr(jax.config, DIRECTORY) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_others_may_write_is_not_used(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    compiled.keep()
    assert getattr(jax.config, DIRECTORY) is None
    folder.chmod(0o700)
    compiled.keep()
    assert getattr(jax.config, DIRECTORY) == str(folder)


def test_jax_own_settings_come_first(folder: Path, tmp_path: Path) -> None:
    def settings() -> dict[str, object]:
        return {name: getattr(jax.config, name) for name in SETTINGS}

    jax.config.update(DIRECTORY, str(tmp_path / "mine"))
    before = settings()
    compiled.keep()
    assert settings() == before
    jax.config.update(DIRECTORY, None)
    jax.config.update("jax_enable_compilation_cache", False)
    before = settings()
    compiled.keep()
    assert settings() == before
    assert not folder.exists()


def test_jax_own_variables_are_heeded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "jax_compilation_cache_max_size"
    jax.config.update(name, 12_345)  # as JAX does where it finds the variable
    monkeypatch.setenv(name.upper(), "12345")
    compiled.keep()
    assert getattr(jax.config, DIRECTORY) == str(folder)
    assert getattr(jax.config, name) == 12_345


@pytest.mark.parametrize(
    ("version", "is_kept"),
    [((0, 7, 2), True), ((0, 8, 3), False), ((0, 10, 1), False), ((0, 10, 2), True)],
)
def test_versions_that_print_false_alarms_keep_nothing(
    version: tuple[int, ...], is_kept: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "__version_info__", version)
    compiled.keep()
    assert folder.exists() == is_kept


def test_the_oldest_programs_go_when_there_are_too_many(
    folder: Path,
    compile_anew: Callable[[], tuple[np.ndarray, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "_MOST_BYTES", 6000)
    compiled.keep()
    for size in range(1, 6):
        with contextlib.suppress(StopIteration):
            jax.jit(lambda x: x + 1)(np.zeros(size, np.float32))
    assert 0 < sum(path.stat().st_size for path in entries(folder)) <= 6000
    assert len(entries(folder)) < 5
