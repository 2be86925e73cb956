import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.errors import CheckpointError
from cvae_jax.models.family import Model
from cvae_jax.storage import checkpoints
from cvae_jax.storage.history import EpochMetrics, Progress
from cvae_jax.training.step import init_state
from tests.helpers import SMALL, SMALL_CONFIG, assert_trees_equal

RUN = RunConfig(SMALL_CONFIG, SMALL.image_shape, SMALL.num_classes, "0" * 64)


def progress_at(step: int) -> Progress:
    """Return the progress of a run of ten steps an epoch, of 128 images each."""
    epochs, batches = divmod(step, 10)
    rows = (
        EpochMetrics(i, 10 * i, 1.5, 1.0, 0.5, 2.5, 2.0, 0.5, 0.1) for i in range(1, epochs + 1)
    )
    return Progress(tuple(rows), 0.1 * batches, 0.2 * batches, 128.0 * batches)


@pytest.fixture(scope="module")
def make_state(model: Model) -> Callable[[int], dict[str, Any]]:
    """Return a function that makes the state of a step, every array different from its start."""
    like = init_state(jax.random.key(0), model, optax.adam(1e-3))

    def make(step: int) -> dict[str, Any]:
        leaves, structure = jax.tree.flatten(like)
        keys = jax.random.split(jax.random.key(step), len(leaves))
        changed = [
            jax.random.normal(key, leaf.shape)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else jnp.full_like(leaf, step)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        state: dict[str, Any] = jax.tree.unflatten(structure, changed)._asdict()
        return state

    return make


MakeState = Callable[[int], dict[str, Any]]


@pytest.fixture
def saved(tmp_path: Path, make_state: MakeState) -> Path:
    """Return a folder with the checkpoints of the steps 10, 15 and 20."""
    directory = tmp_path / "checkpoints"
    for step in (10, 15, 20):
        checkpoints.save(directory, make_state(step), RUN, progress_at(step))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_state_and_progress_come_back_to_the_bit(saved: Path, make_state: MakeState) -> None:
    assert checkpoints.find_newest(saved) == saved / "20"
    like = jax.eval_shape(lambda: make_state(0))
    for step in (10, 15, 20):
        state, progress = checkpoints.restore(saved / str(step), like, RUN)
        assert_trees_equal(state, make_state(step))
        assert progress == progress_at(step)
        params, _ = checkpoints.restore(saved / str(step), {"params": like["params"]}, RUN)
        assert_trees_equal(params, {"params": make_state(step)["params"]})
    assert not list(saved.glob("*tmp*"))


def test_only_the_newest_five_are_kept(saved: Path, make_state: MakeState) -> None:
    for step in range(30, 80, 10):
        checkpoints.save(saved, make_state(step), RUN, progress_at(step))
    assert checkpoints.list_steps(saved) == [30, 40, 50, 60, 70]


def test_what_is_no_checkpoint_is_not_listed(tmp_path: Path) -> None:
    assert checkpoints.list_steps(tmp_path / "none") == []
    for name in ("5", "12", "7.damaged", ".8.tmp", "x", "-1", "²", "1.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "9").touch()
    assert checkpoints.list_steps(tmp_path) == [5, 12]


def test_a_relative_folder_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_state: MakeState
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = Path("runs/ö ä/checkpoints")
    checkpoints.save(directory, make_state(10), RUN, progress_at(10))
    assert checkpoints.find_newest(directory) == directory / "10"
    like = jax.eval_shape(lambda: make_state(0))
    assert_trees_equal(checkpoints.restore(directory / "10", like, RUN)[0], make_state(10))


def test_the_digests_are_those_that_sha256sum_reads(saved: Path) -> None:
    lines = (saved / "20" / "SHA256SUMS").read_text().splitlines()
    found = contents(saved / "20")
    del found["SHA256SUMS"]
    assert {line[66:]: line[:64] for line in lines} == {
        name: hashlib.sha256(text).hexdigest() for name, text in found.items()
    }
    assert len(found) > 5


# Damage.


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [flip, Path.unlink, lambda path: os.truncate(path, path.stat().st_size // 2)],
    ids=["a bit flipped", "deleted", "truncated"],
)
def test_damage_to_any_file_is_found_and_the_file_named(
    damage: Callable[[Path], None], saved: Path
) -> None:
    for name, content in contents(saved / "20").items():
        assert checkpoints.find_damage(saved / "20") is None
        damage(saved / "20" / name)
        found = checkpoints.find_damage(saved / "20")
        assert found is not None
        assert name in found or name == "SHA256SUMS", found
        (saved / "20" / name).write_bytes(content)


def test_an_empty_checkpoint_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "10").mkdir()
    assert checkpoints.find_damage(tmp_path / "10") is not None
    (tmp_path / "10" / "SHA256SUMS").touch()
    assert checkpoints.find_damage(tmp_path / "10") is not None


def test_checkpoints_under_each_others_names_are_damaged(saved: Path) -> None:
    (saved / "15").rename(saved / "x")
    (saved / "20").rename(saved / "15")
    (saved / "x").rename(saved / "20")
    assert "step 15" in str(checkpoints.find_damage(saved / "20"))
    assert "step 20" in str(checkpoints.find_damage(saved / "15"))
    newest = checkpoints.find_newest(saved)
    assert newest == saved / "10"
    checkpoints.clean(saved, newest)
    assert checkpoints.list_steps(saved) == [10]


def test_damaged_ones_are_named_passed_over_and_kept(
    saved: Path, caplog: pytest.LogCaptureFixture, make_state: MakeState
) -> None:
    (saved / "20" / "run.json").unlink()
    flip(saved / "15" / "state" / "_METADATA")
    damaged = {name: contents(saved / name) for name in ("15", "20")}
    with caplog.at_level(logging.WARNING):
        newest = checkpoints.find_newest(saved)
    assert newest == saved / "10"
    for part in (saved / "20", "run.json", saved / "15", "state/_METADATA"):
        assert str(part) in caplog.text
    assert checkpoints.list_steps(saved) == [10, 15, 20]  # a search changes nothing

    checkpoints.clean(saved, newest)
    for step in (15, 20):
        checkpoints.save(saved, make_state(step), RUN, progress_at(step))
    assert checkpoints.find_newest(saved) == saved / "20"
    assert {name: contents(saved / f"{name}.damaged") for name in damaged} == damaged
    (saved / "20" / "run.json").unlink()
    checkpoints.clean(saved, checkpoints.find_newest(saved))
    assert (saved / "20.damaged").is_dir()
    assert (saved / "20.damaged-2").is_dir()


def test_without_a_whole_one_the_run_is_refused_and_nothing_is_lost(saved: Path) -> None:
    for step in (10, 15, 20):
        flip(saved / str(step) / "run.json")
    before = contents(saved)
    with pytest.raises(CheckpointError, match="no whole checkpoint is left in"):
        checkpoints.find_newest(saved)
    assert contents(saved) == before


def test_what_a_killed_save_left_is_deleted_and_what_the_system_adds_is_no_damage(
    saved: Path,
) -> None:
    shutil.copytree(saved / "20", saved / ".30.tmp")
    (saved / "20" / ".DS_Store").write_bytes(b"of macOS")
    newest = checkpoints.find_newest(saved)
    assert newest == saved / "20"
    checkpoints.clean(saved, newest)
    assert sorted(path.name for path in saved.iterdir()) == ["10", "15", "20"]


# Other runs and other arrays.


def test_a_checkpoint_of_another_run_is_refused_by_setting(
    saved: Path, make_state: MakeState
) -> None:
    other = RunConfig(TrainConfig(hidden_dim=32, latent_dim=5, seed=3), (28, 28, 1), 10, "0" * 64)
    like = jax.eval_shape(lambda: make_state(0))
    with pytest.raises(CheckpointError, match=r"another run: seed 0 \(asked: 3\)"):
        checkpoints.restore(saved / "20", like, other)


def test_arrays_of_another_type_shape_or_name_are_refused(
    saved: Path, make_state: MakeState
) -> None:
    like = jax.eval_shape(lambda: make_state(0))
    layers = like["params"]
    bias = layers["decoder_logits"]["bias"]
    half = jax.ShapeDtypeStruct(bias.shape, jnp.bfloat16)
    for changed, message in (
        ({**layers, "decoder_logits": {**layers["decoder_logits"], "bias": half}}, "bfloat16"),
        (
            {name: layers[name] for name in layers if name != "decoder_logits"},
            "the model's is missing",
        ),
        ({**layers, "more": bias}, "more is missing"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(saved / "20", {"params": changed}, RUN)


def test_a_failed_save_leaves_nothing_and_loses_nothing(
    saved: Path, monkeypatch: pytest.MonkeyPatch, make_state: MakeState
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = contents(saved)
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", fail)
    with pytest.raises(CheckpointError, match=r"30 can't be written: No space left .* free there"):
        checkpoints.save(saved, make_state(30), RUN, progress_at(30))
    assert contents(saved) == before
