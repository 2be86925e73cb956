from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from cvae_jax import checkpoints, records, trained, workdir
from cvae_jax.config import RunConfig
from cvae_jax.types import CheckpointError, ConfigError, EpochMetrics, Progress, TrainState
from tests.conftest import assert_trees_equal

HISTORY = (EpochMetrics(1, 8, 3.0, 2.0, 1.0, 3.5, 2.5, 1.0, 9.0),)


@pytest.fixture
def state(make_state: Callable[[], TrainState]) -> TrainState:
    return make_state()


@pytest.fixture
def folder(tmp_path: Path, small_run: RunConfig, state: TrainState) -> Path:
    """Give a workdir with checkpoints of the steps 0, 8 and 12."""
    for step, progress in ((0, Progress()), (8, Progress(HISTORY)), (12, Progress(HISTORY, 1.0))):
        now = state._replace(step=jax.numpy.asarray(step))
        checkpoints.save(tmp_path / workdir.CHECKPOINTS, now, small_run, progress)
    return tmp_path


@pytest.mark.parametrize(("step", "found"), [(None, 12), (12, 12), (8, 8), (0, 0)])
def test_a_model_comes_with_where_it_is_from_and_how_it_got_there(
    step: int | None, found: int, folder: Path, small_run: RunConfig, state: TrainState
) -> None:
    model = trained.load(folder, small_run, step)
    assert model.checkpoint == folder / workdir.CHECKPOINTS / str(found)
    assert model.run == small_run
    assert model.model.config == small_run.model
    assert model.history == (HISTORY if found else ())
    assert_trees_equal(model.params, state.params)


def test_a_step_that_is_not_there_is_refused_with_those_that_are(
    folder: Path, small_run: RunConfig
) -> None:
    with pytest.raises(ConfigError, match=r"--step 9 is not in .*; choose one of \[0, 8, 12\]"):
        trained.load(folder, small_run, 9)


def test_a_damaged_step_is_refused_where_it_is_asked_for_and_passed_over_where_not(
    folder: Path, small_run: RunConfig
) -> None:
    (folder / workdir.CHECKPOINTS / "12" / "run.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"12 is damaged \(run.json not as .*; choose anoth"):
        trained.load(folder, small_run, 12)
    assert trained.load(folder, small_run, None).checkpoint.name == "8"


def test_without_a_checkpoint_the_command_that_makes_one_is_named(
    tmp_path: Path, small_run: RunConfig
) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*scripts/train\.py --workdir"):
        trained.load(tmp_path, small_run, None)


def test_a_progress_that_is_none_is_an_error_in_a_line(
    folder: Path, small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a file of another version, whose digest is right.
    monkeypatch.setattr(checkpoints, "require_run", lambda *_: records.encode(small_run))
    with pytest.raises(CheckpointError, match="12 can't be read: progress is missing"):
        trained.load(folder, small_run, 12)
