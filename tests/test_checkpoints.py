import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvae_jax import checkpoints, records
from cvae_jax.config import RunConfig
from cvae_jax.models import CVAE, init_params
from cvae_jax.types import CheckpointError, Progress, TrainState
from tests.conftest import assert_trees_equal
from tests.test_records import PROGRESS, RUN

MakeState = Callable[[], TrainState]


def random_state(make_state: MakeState, step: int) -> TrainState:
    """Make a state in which every array differs from its start."""
    state = make_state()
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(step), len(leaves))
    changed = [
        jax.random.normal(key, leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else jnp.full_like(leaf, step)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    restored: TrainState = jax.tree.unflatten(structure, changed)
    return restored


@pytest.fixture
def saved(tmp_path: Path, make_state: MakeState, small_run: RunConfig) -> Path:
    """Give a folder with the checkpoints of the steps 1, 2 and 3."""
    directory = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoints.save(directory, random_state(make_state, step), small_run, PROGRESS)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_state_and_progress_come_back_to_the_bit(
    saved: Path, make_state: MakeState, small_run: RunConfig
) -> None:
    newest = checkpoints.find_newest(saved)
    assert newest == saved / "3"
    like = jax.eval_shape(make_state)
    state, progress = checkpoints.restore(saved / "3", like, small_run)
    assert_trees_equal(state, random_state(make_state, 3))
    assert progress == PROGRESS
    assert not list(saved.glob("*tmp*"))


def test_parameters_alone_can_be_restored_from_any_step(
    saved: Path, make_state: MakeState, model: CVAE, small_run: RunConfig
) -> None:
    like = jax.eval_shape(partial(init_params, model=model), jax.random.key(0))
    for step in (1, 2, 3):
        params = checkpoints.restore_params(saved / str(step), like, small_run)
        assert_trees_equal(params, random_state(make_state, step).params)


def test_only_the_newest_are_kept(saved: Path, make_state: MakeState, small_run: RunConfig) -> None:
    for step in range(10, 90, 10):
        checkpoints.save(saved, random_state(make_state, step), small_run, PROGRESS)
    assert checkpoints.list_steps(saved) == [40, 50, 60, 70, 80]


def test_what_is_no_checkpoint_is_not_listed(tmp_path: Path) -> None:
    assert checkpoints.list_steps(tmp_path / "none") == []
    for name in ("5", "12", "7.damaged", ".8.tmp", "x", "-1", "²", "1.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "9").touch()
    assert checkpoints.list_steps(tmp_path) == [5, 12]


def test_a_relative_folder_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_state: MakeState,
    small_run: RunConfig,
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = Path("runs/ö ä/checkpoints")
    checkpoints.save(directory, make_state(), small_run, Progress())
    newest = checkpoints.find_newest(directory)
    assert newest == directory / "0"
    restored, _ = checkpoints.restore(newest, jax.eval_shape(make_state), small_run)
    assert_trees_equal(restored, make_state())


def test_the_digests_are_those_that_sha256sum_reads(saved: Path) -> None:
    lines = (saved / "3" / "SHA256SUMS").read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    found = contents(saved / "3")
    del found["SHA256SUMS"]
    assert listed == {name: hashlib.sha256(text).hexdigest() for name, text in found.items()}
    assert len(found) > 5


# Damage.

Damage = Callable[[Path], Any]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(where: float) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[round(where * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return damage


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGES: dict[str, Damage] = {
    "truncated": truncate,
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "lengthened": lengthen,
    "first bit flipped": flip(0),
    "middle bit flipped": flip(0.5),
    "last bit flipped": flip(1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_is_noticed(damage: str, saved: Path) -> None:
    whole = contents(saved / "3")
    for name, content in whole.items():
        assert checkpoints.find_damage(saved / "3") is None
        DAMAGES[damage](saved / "3" / name)
        found = checkpoints.find_damage(saved / "3")
        assert found is not None
        assert name in found or name == "SHA256SUMS", found
        (saved / "3" / name).write_bytes(content)


def test_damage_to_everything_at_once_is_noticed(saved: Path, tmp_path: Path) -> None:
    for number, damage in enumerate(DAMAGES.values()):
        copy = Path(shutil.copytree(saved / "3", tmp_path / str(number)))
        for name in contents(copy):
            damage(copy / name)
        assert checkpoints.find_damage(copy) is not None
    (tmp_path / "empty").mkdir()
    assert checkpoints.find_damage(tmp_path / "empty") is not None
    (tmp_path / "empty" / "SHA256SUMS").touch()
    assert checkpoints.find_damage(tmp_path / "empty") is not None


def test_the_newest_whole_one_is_taken_and_the_damaged_ones_are_named_and_kept(
    saved: Path,
    caplog: pytest.LogCaptureFixture,
    make_state: MakeState,
    small_run: RunConfig,
) -> None:
    (saved / "3" / "run.json").unlink()
    flip(0.5)(saved / "2" / "state" / "_METADATA")
    damaged = {name: contents(saved / name) for name in ("2", "3")}
    with caplog.at_level(logging.WARNING):
        newest = checkpoints.find_newest(saved)
    assert newest == saved / "1"
    assert [str(saved / "3") in caplog.text, "run.json" in caplog.text] == [True, True]
    assert [str(saved / "2") in caplog.text, "state/_METADATA" in caplog.text] == [True, True]
    assert checkpoints.list_steps(saved) == [1, 2, 3]  # to look changes nothing

    checkpoints.clean(saved, newest)
    assert checkpoints.list_steps(saved) == [1]
    for step in (2, 3):
        checkpoints.save(saved, random_state(make_state, step), small_run, PROGRESS)
    assert checkpoints.find_newest(saved) == saved / "3"
    assert {name: contents(saved / f"{name}.damaged") for name in ("2", "3")} == damaged

    # A second time, the first damaged one stays as well.
    (saved / "3" / "run.json").unlink()
    checkpoints.clean(saved, checkpoints.find_newest(saved))
    assert (saved / "3.damaged").is_dir()
    assert (saved / "3.damaged-2").is_dir()


def test_with_none_whole_left_there_is_one_error_and_nothing_is_lost(saved: Path) -> None:
    for step in (1, 2, 3):
        (saved / str(step) / "SHA256SUMS").unlink()
    before = contents(saved)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint is left in .*3 is damaged"):
        checkpoints.find_newest(saved)
    assert contents(saved) == before


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.find_newest(tmp_path / "none") is None
    checkpoints.clean(tmp_path / "none", None)


def test_what_a_killed_process_left_is_cleared_away(saved: Path) -> None:
    for name in (".938.tmp", "938.orbax-checkpoint-tmp-123"):
        shutil.copytree(saved / "3", saved / name)
    checkpoints.clean(saved, saved / "3")
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2", "3"]


# A fuzzed manifest: bytes in place of SHA256SUMS, which nothing parses.


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listed")
    for name in ("run.json", "a"):
        (folder / name).write_bytes(name.encode())
    (folder / "SHA256SUMS").write_bytes(checkpoints._sums(folder))
    assert checkpoints.find_damage(folder) is None
    return folder


SUMS_SIZE = 2 * (64 + 2) + len("run.json\na\n")


@pytest.mark.fuzz
@given(st.binary(max_size=200), st.integers(0, SUMS_SIZE), st.integers(0, 80), st.booleans())
def test_no_other_manifest_is_believed(
    listed: Path, inserted: bytes, place: int, length: int, is_whole: bool
) -> None:
    sums = checkpoints._sums(listed)
    assert len(sums) == SUMS_SIZE
    other = inserted if is_whole else sums[:place] + inserted + sums[place + length :]
    (listed / "SHA256SUMS").write_bytes(other)
    assert (checkpoints.find_damage(listed) is None) == (other == sums)


# Other runs.


def test_a_checkpoint_of_another_run_is_refused_by_field(
    saved: Path, make_state: MakeState, small_run: RunConfig
) -> None:
    like = jax.eval_shape(make_state)
    for use in (
        lambda: checkpoints.restore(saved / "3", like, RUN),
        lambda: checkpoints.restore_params(saved / "3", like.params, RUN),
    ):
        with pytest.raises(CheckpointError, match="3 is of another run: dataset mnist") as caught:
            use()
        assert "seed 0 (asked: 4294967295)" in str(caught.value)


def sign(checkpoint: Path) -> None:
    """Make a changed checkpoint whole again, as somebody with other tools would."""
    (checkpoint / "SHA256SUMS").write_bytes(checkpoints._sums(checkpoint))
    assert checkpoints.find_damage(checkpoint) is None


def write_state(checkpoint: Path, tree: dict[str, Any]) -> None:
    shutil.rmtree(checkpoint / "state")
    ocp.PyTreeCheckpointer().save((checkpoint / "state").resolve(), tree)
    sign(checkpoint)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_arrays_of_another_type_are_refused_by_name(
    dtype: Any, saved: Path, make_state: MakeState, small_run: RunConfig
) -> None:
    state = make_state()
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), state.params)
    write_state(saved / "3", state._replace(params=cast)._asdict())
    name = np.dtype(dtype).name
    like = jax.eval_shape(make_state)
    for use in (
        lambda: checkpoints.restore(saved / "3", like, small_run),
        lambda: checkpoints.restore_params(saved / "3", like.params, small_run),
    ):
        with pytest.raises(CheckpointError, match=rf"params\..* is {name}\[.*expected float32"):
            use()


def test_arrays_of_another_shape_missing_or_too_many_are_refused_by_name(
    saved: Path, make_state: MakeState, small_run: RunConfig
) -> None:
    state = make_state()
    like = jax.eval_shape(make_state)

    def refused(**changes: Any) -> str:
        tree = {name: value for name, value in (state._asdict() | changes).items() if value}
        write_state(saved / "3", tree)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(saved / "3", like, small_run)
        return str(caught.value)

    step = jnp.ones((), jnp.int32)
    longer = jax.tree.map(lambda leaf: jnp.ones((*leaf.shape, 2)), state.params)
    assert "expected float32[" in refused(step=step, params=longer)
    assert "params" in refused(step=step, params=None)
    assert "more" in refused(step=step, params=state.params | {"more": jnp.ones(3)})


def test_a_record_of_an_older_version_says_which(
    saved: Path, make_state: MakeState, small_run: RunConfig
) -> None:
    record = saved / "3" / "run.json"
    record.write_text(record.read_text().replace('"format": 2', '"format": 1'))
    sign(saved / "3")
    with pytest.raises(CheckpointError, match=r"/3 can't be read: cvae_jax '.*' wrote it"):
        checkpoints.restore(saved / "3", jax.eval_shape(make_state), small_run)


# What can't be written or read.


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, make_state: MakeState, small_run: RunConfig
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/checkpoints/0 can't be written: .*free there"):
        checkpoints.save(tmp_path / "file" / "checkpoints", make_state(), small_run, Progress())


@pytest.mark.parametrize("part", ["state", "run.json", "SHA256SUMS"])
def test_a_save_that_fails_leaves_nothing_and_the_older_ones(
    part: str,
    saved: Path,
    make_state: MakeState,
    small_run: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(28, "No space left on device")

    if part == "state":
        monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", fail)
    elif part == "run.json":
        monkeypatch.setattr(records, "encode", fail)
    else:
        monkeypatch.setattr(checkpoints, "_sums", fail)
    before = contents(saved)
    with pytest.raises(CheckpointError, match=r"/9 can't be written: No space left .*free there"):
        checkpoints.save(saved, random_state(make_state, 9), small_run, PROGRESS)
    assert contents(saved) == before


def test_a_checkpoint_that_is_not_there_is_named(
    tmp_path: Path, make_state: MakeState, small_run: RunConfig
) -> None:
    with pytest.raises(CheckpointError, match=r"none/5 can't be read: No such file"):
        checkpoints.restore_params(tmp_path / "none" / "5", make_state().params, small_run)


def test_a_process_that_is_lost_while_all_save_is_no_problem_of_the_disk(
    saved: Path, make_state: MakeState, small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo: connection closed by peer")

    before = contents(saved)
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", fail)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="closed by peer"):
        checkpoints.save(saved, random_state(make_state, 9), small_run, PROGRESS)
    assert contents(saved) == before


def test_an_interrupted_save_leaves_nothing(
    saved: Path, make_state: MakeState, small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_sums", interrupt)
    before = contents(saved)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(saved, random_state(make_state, 9), small_run, PROGRESS)
    assert contents(saved) == before
