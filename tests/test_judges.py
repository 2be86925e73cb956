import dataclasses
import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvae_jax import idx, judge, judges
from cvae_jax.options import JudgeOptions
from cvae_jax.types import ConfigError, Dataset, Splits, UserError
from tests.test_assessment import write_data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(judge, "_FEWEST_STEPS", 2)
    monkeypatch.setattr(judge, "_EPOCHS", 1)
    return tmp_path / "cache" / "cvae_jax"


@pytest.fixture
def splits() -> Splits:
    random = np.random.default_rng(0)
    train, test = (
        Dataset(random.integers(0, 256, (n, 5, 4, 1), np.uint8), np.arange(n, dtype=np.int32) % 3)
        for n in (12, 6)
    )
    return Splits(train, test, num_classes=3)


@pytest.fixture
def trained() -> list[int]:
    """Give the list that `track` writes each training into."""
    return []


@pytest.fixture
def track(trained: list[int]) -> Callable[[range], range]:
    def track(numbers: range) -> range:
        trained.append(len(numbers))
        return numbers

    return track


@pytest.fixture(scope="module")
def file_of_a_judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Splits]:
    """Give a file with a whole judge in it, what it holds, and the data set."""
    path = tmp_path_factory.mktemp("judge") / "judge.npz"
    splits = idx.load_directory(write_data(path.parent / "data"))
    judges.write(path, judge.init_judge(jax.random.key(0), (5, 4, 1), 3), splits.fingerprint())
    return path, path.read_bytes(), splits


def same(one: object, other: object) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))


def test_it_is_trained_once_and_kept(
    splits: Splits, trained: list[int], track: Callable[[range], range], cache: Path
) -> None:
    first = judges.find_judge(splits, splits.fingerprint(), track)
    assert len(list(cache.iterdir())) == 1
    assert same(first, judges.find_judge(splits, splits.fingerprint(), track))
    assert len(trained) == 1
    other = splits._replace(train=splits.train._replace(image=255 - splits.train.image))
    assert not same(first, judges.find_judge(other, other.fingerprint(), track))
    assert len(trained) == 2


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "pickle", "shape", "nan"])
def test_a_damaged_one_is_trained_again_with_a_warning(
    damage: str,
    splits: Splits,
    trained: list[int],
    track: Callable[[range], range],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = judges.find_judge(splits, splits.fingerprint(), track)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "short":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 16
        file.write_bytes(content)
    else:
        with np.load(file) as there:
            arrays = dict(there)
        wrong: dict[str, np.ndarray] = {
            "pickle": np.array([print], object),
            "shape": np.ones((3, 4), np.float32),
            "nan": np.full_like(arrays["Dense_1.bias"], np.nan),
        }
        np.savez(file, **arrays | {"Dense_1.bias": wrong[damage]})
    with caplog.at_level(logging.WARNING):
        assert same(first, judges.find_judge(splits, splits.fingerprint(), track))
    assert f"{file} is damaged" in caplog.text
    assert len(trained) == 2
    judges.find_judge(splits, splits.fingerprint(), track)
    assert len(trained) == 2


def test_where_nothing_can_be_kept_it_goes_on_with_a_warning(
    splits: Splits,
    trained: list[int],
    track: Callable[[range], range],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.parent.write_bytes(b"in the way")
    with caplog.at_level(logging.WARNING):
        judges.find_judge(splits, splits.fingerprint(), track)
    assert "has to train the judge again" in caplog.text
    with pytest.raises(UserError, match="can't be written"):
        judges.write(cache / "judge.npz", {}, "")
    assert len(trained) == 1


def test_the_command_writes_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "judge.npz"
    options = JudgeOptions(out, "tiny", "idx", data)
    judges.train(options)
    with np.load(out, allow_pickle=False) as arrays:
        assert str(arrays["data_sha256"]) == idx.load_directory(data).fingerprint()
        assert arrays["Dense_1.bias"].shape == (3,)
    assert re.search(rf"wrote {re.escape(str(out))}; [0-8] of 8 test", capsys.readouterr().out)
    with pytest.raises(ConfigError, match=r"--out .* can't be used"):
        judges.train(dataclasses.replace(options, out=out / "judge.npz"))


@pytest.mark.fuzz
@given(content=st.binary(max_size=300), place=st.integers(0, 2**20), is_whole=st.booleans())
def test_a_file_of_a_judge_is_read_or_trained_anew_whatever_it_holds(
    content: bytes, place: int, is_whole: bool, file_of_a_judge: tuple[Path, bytes, Splits]
) -> None:
    path, there, splits = file_of_a_judge
    place %= len(there)
    path.write_bytes(content if is_whole else there[:place] + content + there[place + 1 :])
    found = judges.read(path, splits, splits.fingerprint())
    assert found is None or set(found) == set(judge.init_judge(jax.random.key(0), (5, 4, 1), 3))


@pytest.mark.parametrize("folder", ["relative", "~", "x" * 300, "/proc/no/such"])
def test_an_odd_cache_folder_costs_the_judge_and_nothing_else(
    folder: str,
    splits: Splits,
    track: Callable[[range], range],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    long = f"/{folder}" if len(folder) > 255 else folder
    monkeypatch.setenv("XDG_CACHE_HOME", long)
    judges.find_judge(splits, splits.fingerprint(), track)
    is_kept = (tmp_path / "home/.cache/cvae_jax").exists()
    assert is_kept == (folder in ("relative", "~"))
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}


def test_a_user_without_a_home_can_evaluate(
    splits: Splits,
    track: Callable[[range], range],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    judges.find_judge(splits, splits.fingerprint(), track)
    assert len(list((tmp_path / "cvae_jax").iterdir())) == 1
