"""Faults, each tried on a real run; `benchmarks/reliability.py` tries them many times."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cvae_jax
from cvae_jax.config import DataOptions, DeviceOptions, RunOptions, TrainConfig
from cvae_jax.errors import CheckpointError, ConfigError, UserError
from cvae_jax.storage import checkpoints, workdir
from cvae_jax.training import loop
from tests import fault_files, faults

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the faults are those of POSIX")


@pytest.fixture
def trainer(tmp_path: Path) -> faults.Trainer:
    """Return the command of a run whose workdir does not exist yet."""
    return faults.Trainer(tmp_path / "run", faults.small_run())


@pytest.fixture
def copy(trainer: faults.Trainer) -> Path:
    """Copy a workdir that has been trained, to be spoiled; return it."""
    return Path(shutil.copytree(faults.small_reference(), trainer.folder))


def train_here(folder: Path) -> None:
    """Do in this process what the command does."""
    arguments = list(map(str, faults.small_run()))
    value = dict(zip(arguments[::2], arguments[1::2], strict=True))
    config = TrainConfig(
        hidden_dim=int(value["--hidden-dim"]),
        latent_dim=int(value["--latent-dim"]),
        batch_size=int(value["--batch-size"]),
    )
    data = DataOptions("idx", Path(value["--data-dir"]))
    loop.train(
        config, RunOptions(epochs=faults.EPOCHS, workdir=folder), data, DeviceOptions(num_devices=1)
    )


def list_checkpoints(folder: Path) -> list[Path]:
    directory = folder / workdir.CHECKPOINTS
    return [directory / str(step) for step in checkpoints.list_steps(directory)]


def test_while_one_trains_a_second_is_refused_and_readers_find_whole_checkpoints(
    trainer: faults.Trainer,
) -> None:
    started = trainer.start_and_wait()
    with pytest.raises(UserError, match=f"in use by process {started.process.pid} on host "):
        train_here(trainer.folder)
    num_read = 0
    while started.is_running:
        cvae_jax.load(trainer.folder)
        num_read += 1
    assert num_read >= 3
    assert started.end() == 0
    with workdir.lock(trainer.folder):
        pass


# Damage.


def test_training_falls_back_to_a_whole_checkpoint_and_keeps_the_damaged_one(
    trainer: faults.Trainer, copy: Path
) -> None:
    newest = list_checkpoints(copy)[-1]
    (newest / "run.json").write_bytes(b"")
    started = trainer.start()
    assert started.end() == 0
    assert f"{newest} is damaged (run.json" in started.output
    assert f"resuming after epoch {faults.EPOCHS - 1}, from " in started.output
    assert (newest.with_name(f"{newest.name}.damaged") / "run.json").read_bytes() == b""
    assert fault_files.differences(copy, faults.small_reference()) == []


def test_with_every_checkpoint_damaged_nothing_is_trained_or_deleted(copy: Path) -> None:
    for record in copy.glob("checkpoints/*/run.json"):
        record.unlink()
    before = sorted(copy.rglob("*"))
    with pytest.raises(CheckpointError, match="no whole checkpoint is left in "):
        train_here(copy)
    assert sorted(copy.rglob("*")) == before


def test_swapped_checkpoints_are_damage_and_an_older_one_is_taken(
    trainer: faults.Trainer, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    *_, whole, older, newest = list_checkpoints(copy)
    fault_files.swap(older, newest)
    model = cvae_jax.load(copy)
    assert model.checkpoint == whole
    assert len(model.history) == faults.EPOCHS - 2
    assert f"{newest} is damaged (it is the checkpoint of step {older.name}" in caplog.text
    for swapped in (older, newest):
        with pytest.raises(CheckpointError, match=f"{swapped} is damaged"):
            cvae_jax.load(copy, step=int(swapped.name))

    started = trainer.start()
    assert started.end() == 0
    assert f"resuming after epoch {faults.EPOCHS - 2}, from {whole}" in started.output
    assert fault_files.differences(copy, faults.small_reference()) == []
    assert len([*newest.parent.glob("*.damaged")]) == 2


@pytest.mark.parametrize("fault", ["swapped", "renamed", "copied"])
def test_the_newest_name_on_another_checkpoint_is_refused_where_nothing_else_is_left(
    fault: str, copy: Path
) -> None:
    *others, older, newest = list_checkpoints(copy)
    for other in others:
        shutil.rmtree(other)
    if fault == "swapped":
        fault_files.swap(older, newest)
    else:
        shutil.rmtree(newest)
        older.rename(newest)
        if fault == "copied":  # under a third name too; none is its own
            shutil.copytree(newest, older.with_name(str(int(newest.name) + 1)))
    for use in (train_here, cvae_jax.load):
        with pytest.raises(CheckpointError, match=r"no whole checkpoint is left .* step \d+"):
            use(copy)


# Output that can't be written.


def test_closed_streams_and_a_reader_that_is_gone_cost_nothing(tmp_path: Path) -> None:
    redirects = {"closed": ">&- 2>&-", "gone": "| true"}
    trainers = [faults.Trainer(tmp_path / name, faults.small_run()) for name in redirects]
    runs = [
        trainer.start(redirect)
        for trainer, redirect in zip(trainers, redirects.values(), strict=True)
    ]
    assert [started.end() for started in runs] == [0, 0]
    assert runs[0].output == ""
    assert runs[1].noise == []
    for trainer in trainers:
        assert fault_files.differences(trainer.folder, faults.small_reference()) == []


# Workdirs and disks that can't be written.


def test_a_workdir_that_cannot_be_made_is_refused_before_training(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "run", Path("/proc/run")):
        with pytest.raises(UserError, match=f"^{folder} can't be written: .*; choose another"):
            train_here(folder)
    for use in (train_here, cvae_jax.load):
        with pytest.raises(ConfigError, match=r"--workdir .* can't be used: 'utf-8' codec"):
            use(tmp_path / os.fsdecode(b"run\xff"))
    assert [*tmp_path.iterdir()] == [file]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 8 MB: room for all of a run."""
    try:
        with fault_files.small_disk(tmp_path / "disk", "8m"):
            yield tmp_path / "disk"
    except PermissionError as error:
        pytest.skip(str(error))


def assert_failed_cleanly(started: faults.Started, path: Path) -> None:
    assert started.end() == 1
    assert started.noise == []
    assert str(path) in started.lines[-1]
    assert " free there)" in started.lines[-1]
    assert sum(line.startswith("error: ") for line in started.lines) == 1


def assert_older_stand(folder: Path) -> None:
    newest = list_checkpoints(folder)[-1]
    assert checkpoints.find_newest(newest.parent) == newest
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]


def test_a_disk_that_fills_up_while_it_saves_costs_that_checkpoint_and_no_more(disk: Path) -> None:
    trainer = faults.Trainer(disk / "run", faults.small_run())
    started = trainer.start_and_wait()
    filler = fault_files.fill(disk, leave=400_000)
    assert_failed_cleanly(started, trainer.checkpoints)
    assert_older_stand(trainer.folder)
    filler.unlink()
    assert trainer.finish() == []
    assert fault_files.differences(trainer.folder, faults.small_reference()) == []


def test_a_disk_that_becomes_read_only_is_told_in_a_line(disk: Path) -> None:
    # So long a run that it does not end before there is a moment in which it writes nothing.
    trainer = faults.Trainer(disk / "run", (*faults.small_run(), "--epochs", 1000))
    started = trainer.start_and_wait()
    with fault_files.read_only(trainer.folder):
        assert_failed_cleanly(started, trainer.folder)
        with pytest.raises(UserError, match=rf"{trainer.folder} can't be written: Read-only"):
            train_here(trainer.folder)
    assert_older_stand(trainer.folder)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process that runs")
def test_a_file_that_cannot_grow_is_told_in_a_line(tmp_path: Path) -> None:
    limits = {"loss.png": 20_000, "checkpoints": 300_000}
    trainers = [faults.Trainer(tmp_path / name, faults.small_run()) for name in limits]
    runs = [trainer.start() for trainer in trainers]
    for (written, limit), trainer, started in zip(limits.items(), trainers, runs, strict=True):
        started.wait_until(lambda: bool(list_checkpoints(trainer.folder)))  # noqa: B023
        fault_files.limit_files(started.process.pid, limit)
        assert_failed_cleanly(started, trainer.folder / written)
        assert_older_stand(trainer.folder)
