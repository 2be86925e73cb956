"""Signals to real `scripts/train.py` processes, and runs that go on after them."""

import random
import signal
import sys
from pathlib import Path

import pytest

from cvae_jax.storage import checkpoints
from tests import fault_files, faults

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture
def trainer(tmp_path: Path) -> faults.Trainer:
    return faults.Trainer(tmp_path / "run", faults.small_run())


def test_a_run_stopped_within_an_epoch_is_saved_and_ends_the_same_to_the_bit(
    trainer: faults.Trainer,
) -> None:
    saved = ""
    for number in (signal.SIGTERM, signal.SIGINT):
        started = trainer.start()
        assert started.wait_for_training()
        started.process.send_signal(number)
        assert started.end() == 128 + number
        assert started.noise == []
        assert started.resumed_at == saved
        saved = started.saved_at
        assert "batch" in saved
    newest = checkpoints.find_newest(trainer.checkpoints)
    assert newest is not None
    moved = newest.rename(newest.with_name("9999"))
    assert checkpoints.find_damage(moved) == f"it is the checkpoint of step {newest.name}, renamed"
    moved.rename(newest)
    last = trainer.start()
    assert last.end() == 0
    assert last.resumed_at == saved
    assert fault_files.differences(trainer.folder, faults.small_reference()) == []


def test_a_run_killed_at_any_moment_ends_the_same_to_the_bit(trainer: faults.Trainer) -> None:
    moments = ["mid-save", "mid-figure", "mid-epoch"]
    hit, problems, _ = faults.kill_often(trainer, moments, random.Random(0))
    assert problems == []
    assert hit == moments
    assert fault_files.differences(trainer.folder, faults.small_reference()) == []


def test_a_run_stopped_before_its_first_step_says_so_in_a_line(trainer: faults.Trainer) -> None:
    started = trainer.start()
    assert started.wait_for("devices: ")
    started.process.send_signal(signal.SIGTERM)
    assert started.end() == 128 + signal.SIGTERM
    assert started.noise == []
    assert started.lines[-1].startswith("stopped")
    assert checkpoints.list_steps(trainer.checkpoints) == []
