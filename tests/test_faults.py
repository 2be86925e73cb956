"""Faults, each tried on a real run; `benchmarks/reliability.py` tries them many times."""

import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvae_jax import checkpoints, experiment, workdir
from cvae_jax.config import TrainConfig
from cvae_jax.options import RunOptions
from cvae_jax.types import CheckpointError, Dataset, Splits, UserError
from tests import fault_files, faults
from tests.test_idx import write_directory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

EPOCHS = 20
CONFIG = TrainConfig(hidden_dim=32, latent_dim=5)
_SMALL = ("--hidden-dim", CONFIG.hidden_dim, "--latent-dim", CONFIG.latent_dim)


@pytest.fixture(scope="session")
def digits(mnist: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the first 2,000 training and 500 test images of MNIST as IDX files."""
    folder = tmp_path_factory.mktemp("digits")
    train, test = (
        Dataset(d.image[:n], d.label[:n]) for d, n in ((mnist.train, 2000), (mnist.test, 500))
    )
    write_directory(folder, train, test)
    return folder


@pytest.fixture(scope="session")
def arguments(digits: Path) -> tuple[object, ...]:
    source = ("--source", "idx", "--data-dir", digits)
    return (*source, *_SMALL, "--epochs", EPOCHS, "--sample-every", 5)


@pytest.fixture(scope="session")
def reference(arguments: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the workdir of a run that nothing happened to."""
    trainer = faults.Trainer(tmp_path_factory.mktemp("reference") / "run", arguments)
    assert trainer.finish() == []
    return trainer.folder


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    """Give a copy of that workdir, to be spoiled."""
    return Path(shutil.copytree(reference, tmp_path / "copy"))


@pytest.fixture
def train(digits: Path) -> Callable[[Path], None]:
    """Give a function that does in this process what the command of the reference does."""

    def run(folder: Path) -> None:
        options = RunOptions(
            EPOCHS, folder, "idx", digits, sample_every=5, checkpoint_every=1, num_devices=1
        )
        experiment.train(CONFIG, options)

    return run


def newest_of(folder: Path) -> Path:
    directory = folder / workdir.CHECKPOINTS
    return directory / str(checkpoints.list_steps(directory)[-1])


# Processes that end.


def test_a_run_killed_at_any_moment_ends_as_if_it_had_been_left_alone(
    arguments: tuple[object, ...], reference: Path, tmp_path: Path
) -> None:
    trainer = faults.Trainer(tmp_path / "run", arguments)
    moments = ["mid-save", "mid-figure", "compiling", "mid-epoch"]
    hit, problems, _ = faults.kill_often(trainer, moments, random.Random(0))
    assert problems == []
    assert hit == moments
    assert fault_files.differences(trainer.folder, reference) == []


def test_a_run_stopped_by_signals_goes_on_from_where_it_was(tmp_path: Path) -> None:
    # The original: an epoch in several dispatches, so that it can be stopped within one.
    arguments = ("--source", "bundled", "--epochs", 2, "--sample-every", 1)
    whole, parts = (
        faults.Trainer(tmp_path / name, arguments, every=2) for name in ("whole", "parts")
    )
    assert whole.finish() == []
    assert faults.stop_at_once(parts, signal.SIGINT, random.Random(0)) == []
    where: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        started = parts.start()
        assert started.wait_for(r"epoch \d/2: +\d+%")
        started.process.send_signal(number)
        assert started.end() == 128 + number
        assert started.noise == []
        assert where == [] or faults.resumed_at(started) == where[-1]
        where.append(faults.saved_at(started))
    assert "batch" in where[0]
    last = parts.start()
    assert last.end() == 0
    assert faults.resumed_at(last) == where[-1]
    assert fault_files.differences(parts.folder, whole.folder) == []


def test_a_second_trainer_is_refused_and_told_of_the_first(
    arguments: tuple[object, ...], train: Callable[[Path], None], tmp_path: Path
) -> None:
    trainer = faults.Trainer(tmp_path / "run", arguments)
    first = trainer.start()
    assert first.wait_for("compiling: ")
    with pytest.raises(UserError, match=f"trained in by process {first.process.pid} on host "):
        train(trainer.folder)
    first.kill()
    workdir.require_unlocked(trainer.folder)


def test_a_model_can_be_read_at_any_time_while_it_trains(
    arguments: tuple[object, ...], tmp_path: Path
) -> None:
    trainer = faults.Trainer(tmp_path / "run", arguments)
    started = trainer.start()
    directory = trainer.folder / workdir.CHECKPOINTS
    assert started.wait_until(lambda: bool(checkpoints.list_steps(directory)))
    assert faults.read_while(started, trainer.folder) >= 5
    assert started.end() == 0


# Damage.


def test_no_damage_to_a_checkpoint_goes_unnoticed(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = copy / workdir.CHECKPOINTS
    older, newest = (directory / str(step) for step in checkpoints.list_steps(directory)[-2:])
    tried = 0
    for damage in fault_files.damage_each(newest, random.Random(0)):
        caplog.clear()
        assert checkpoints.find_newest(directory) == older, damage
        assert str(newest) in caplog.text, damage
        tried += 1
    assert tried >= 12 * len(fault_files.DAMAGES)
    assert checkpoints.find_newest(directory) == newest
    shutil.rmtree(newest)
    newest.mkdir()
    assert checkpoints.find_newest(directory) == older


def test_training_falls_back_to_a_whole_checkpoint_and_keeps_the_damaged_one(
    arguments: tuple[object, ...], copy: Path, reference: Path
) -> None:
    newest = newest_of(copy)
    (newest / "run.json").write_bytes(b"")
    # Not in this process, whose eight devices give other last digits in JAX 0.7.
    started = faults.Trainer(copy, arguments).start()
    assert started.end() == 0
    assert f"{newest} is damaged (run.json" in started.output
    assert f"going on after epoch {EPOCHS - 1}, from " in started.output
    assert (copy / workdir.CHECKPOINTS / f"{newest.name}.damaged" / "run.json").read_bytes() == b""
    assert fault_files.differences(copy, reference) == []


def test_with_every_checkpoint_damaged_nothing_is_trained_or_deleted(
    copy: Path, train: Callable[[Path], None]
) -> None:
    for record in copy.glob("checkpoints/*/run.json"):
        record.unlink()
    before = sorted(path for path in copy.rglob("*"))
    with pytest.raises(CheckpointError, match="no whole checkpoint is left in "):
        train(copy)
    assert sorted(path for path in copy.rglob("*")) == before


# Disks.


def assert_failed_cleanly(started: faults.Started, path: Path) -> None:
    assert started.end() == 1
    assert started.noise == []
    assert str(path) in started.lines[-1]
    assert " free there)" in started.lines[-1]
    assert sum(line.startswith("error: ") for line in started.lines) == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 8 MB: room for all of a run."""
    try:
        with fault_files.small_disk(tmp_path / "disk", "8m"):
            yield tmp_path / "disk"
    except PermissionError as error:
        pytest.skip(str(error))


def start_and_wait(trainer: faults.Trainer) -> faults.Started:
    """Start a run, and give it when it has its first checkpoint."""
    started = trainer.start()
    directory = trainer.folder / workdir.CHECKPOINTS
    assert started.wait_until(lambda: bool(checkpoints.list_steps(directory)))
    return started


def assert_older_stand(folder: Path) -> None:
    assert checkpoints.find_newest(folder / workdir.CHECKPOINTS) == newest_of(folder)
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]


def test_a_disk_that_fills_up_while_it_saves_costs_that_checkpoint_and_no_more(
    disk: Path, arguments: tuple[object, ...], reference: Path
) -> None:
    trainer = faults.Trainer(disk / "run", arguments)
    started = start_and_wait(trainer)
    filler = fault_files.fill(disk, leave=400_000)
    assert_failed_cleanly(started, trainer.folder / workdir.CHECKPOINTS)
    assert_older_stand(trainer.folder)
    filler.unlink()
    assert trainer.finish() == []
    assert fault_files.differences(trainer.folder, reference) == []


def test_a_disk_that_becomes_read_only_is_told_in_a_line(
    disk: Path, arguments: tuple[object, ...]
) -> None:
    # So long a run that it does not end before there is a moment in which it writes nothing.
    trainer = faults.Trainer(disk / "run", (*arguments, "--epochs", 1000))
    started = start_and_wait(trainer)
    with fault_files.read_only(trainer.folder):
        assert_failed_cleanly(started, trainer.folder)
    assert checkpoints.find_newest(trainer.folder / workdir.CHECKPOINTS)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process that runs")
@pytest.mark.parametrize(("limit", "written"), [(20_000, "loss.png"), (300_000, "checkpoints")])
def test_a_file_that_cannot_grow_is_told_in_a_line(
    limit: int, written: str, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    trainer = faults.Trainer(tmp_path / "run", arguments)
    started = start_and_wait(trainer)
    fault_files.limit_files(started.process.pid, limit)
    assert_failed_cleanly(started, trainer.folder / written)
    assert_older_stand(trainer.folder)
