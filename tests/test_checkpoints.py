from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax import checkpoints
from cvae_jax.models import CVAE, init_params
from cvae_jax.types import CheckpointError, EpochMetrics, TrainState
from tests.conftest import assert_trees_equal

MakeState = Callable[[], TrainState]

HISTORY = [
    EpochMetrics(1, 469, 0.1 + 0.2, 1 / 3, 2e-40, 5.0, 6.0, 7.0, 8.5),
    EpochMetrics(2, 938, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
]


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


def test_state_and_history_come_back_to_the_bit(tmp_path: Path, make_state: MakeState) -> None:
    state = random_state(make_state, 938)
    with checkpoints.open_manager(tmp_path) as manager:
        checkpoints.save(manager, state, HISTORY)
    with checkpoints.open_manager(tmp_path) as manager:
        restored = checkpoints.restore_latest(manager, jax.eval_shape(make_state))
    assert restored is not None
    assert_trees_equal(restored[0], state)
    assert restored[1] == HISTORY


def test_a_state_may_be_donated_as_soon_as_it_is_saved(
    tmp_path: Path, make_state: MakeState
) -> None:
    @partial(jax.jit, donate_argnums=0)
    def ruin(state: TrainState) -> TrainState:
        return jax.tree.map(lambda leaf: leaf * 0 - 1, state)

    state = random_state(make_state, 7)
    expected = jax.tree.map(np.array, state)
    with checkpoints.open_manager(tmp_path) as manager:
        checkpoints.save(manager, state, HISTORY)
        for _ in range(20):
            state = ruin(state)
        jax.block_until_ready(state)
    with checkpoints.open_manager(tmp_path) as manager:
        restored = checkpoints.restore_latest(manager, jax.eval_shape(make_state))
    assert restored is not None
    assert_trees_equal(restored[0], expected)


def test_the_newest_is_restored_and_only_some_are_kept(
    tmp_path: Path, make_state: MakeState
) -> None:
    with checkpoints.open_manager(tmp_path) as manager:
        assert checkpoints.restore_latest(manager, make_state()) is None
        for step in range(10, 90, 10):
            checkpoints.save(manager, random_state(make_state, step), HISTORY)
    assert checkpoints.list_steps(tmp_path) == [40, 50, 60, 70, 80]
    with checkpoints.open_manager(tmp_path) as manager:
        restored = checkpoints.restore_latest(manager, jax.eval_shape(make_state))
    assert restored is not None
    assert int(restored[0].step) == 80


def test_parameters_alone_can_be_restored_from_any_step(
    tmp_path: Path, make_state: MakeState, model: CVAE
) -> None:
    with checkpoints.open_manager(tmp_path) as manager:
        for step in (1, 2):
            checkpoints.save(manager, random_state(make_state, step), HISTORY)
    like = jax.eval_shape(partial(init_params, model=model), jax.random.key(0))
    for step in (1, 2):
        params = checkpoints.restore_params(tmp_path / str(step), like)
        assert_trees_equal(params, random_state(make_state, step).params)


def test_a_relative_folder_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_state: MakeState
) -> None:
    monkeypatch.chdir(tmp_path)
    with checkpoints.open_manager(Path("runs/ö ä/checkpoints")) as manager:
        checkpoints.save(manager, make_state(), [])
    assert checkpoints.list_steps(tmp_path / "runs/ö ä/checkpoints") == [0]


def test_what_cannot_be_read_is_named(tmp_path: Path, make_state: MakeState) -> None:
    assert checkpoints.list_steps(tmp_path / "none") == []
    with pytest.raises(CheckpointError, match=r"none/5 can't be read"):
        checkpoints.restore_params(tmp_path / "none" / "5", make_state().params)

    with checkpoints.open_manager(tmp_path) as manager:
        checkpoints.save(manager, make_state(), [])
    (tmp_path / "0" / "history" / "metadata").write_text("not JSON")
    with (
        checkpoints.open_manager(tmp_path) as manager,
        pytest.raises(CheckpointError, match=r"/0 can't be read"),
    ):
        checkpoints.restore_latest(manager, jax.eval_shape(make_state))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match=r"file/checkpoints can't be used"),
        checkpoints.open_manager(tmp_path / "file" / "checkpoints"),
    ):
        pass
