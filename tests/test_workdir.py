import contextlib
import csv
import dataclasses
import json
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvae_jax import __version__
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.errors import CheckpointError, ConfigError, UserError
from cvae_jax.storage import records, workdir
from cvae_jax.storage.history import EpochMetrics, Progress, write_metrics

RUN = RunConfig(TrainConfig(learning_rate=1, seed=2**32 - 1), (28, 28, 1), 10, "ab" * 32)
ROW = EpochMetrics(1, 8, 1 / 3, 0.3, 1 / 30, 0.7, 0.5, 0.2, 9.99)
PROGRESS = Progress((ROW,), 0.1, 1e-300, 128.0)


# Records.


def test_a_record_comes_back_to_the_bit() -> None:
    assert records.decode(records.encode(RUN, PROGRESS)) == (RUN, PROGRESS)
    assert records.decode(records.encode(RUN)) == (RUN, Progress())


def test_a_record_of_another_format_names_the_version_that_wrote_it() -> None:
    content = {**json.loads(records.encode(RUN)), "format": 3, "version": "9.9"}
    with pytest.raises(records.RecordError, match=rf"cvae_jax 9\.9 .* 3; this is .*{__version__}"):
        records.decode(json.dumps(content).encode())
    with pytest.raises(records.RecordError, match="format 1"):
        records.decode(b"{}")


def test_settings_that_are_newer_than_a_record_have_their_defaults() -> None:
    content = json.loads(records.encode(RUN))
    for name in ("model", "binarize", "precision"):
        del content[name]
    content["setting of a later version"] = 1
    assert records.decode(json.dumps(content).encode())[0] == RUN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_dim", "600"),
        ("hidden_dim", 0),
        ("learning_rate", None),
        ("model", "transformer"),
        ("image_shape", [28, 28]),
        ("num_classes", 1e9),
        ("progress", {"history": [[1, 2]]}),
    ],
)
def test_a_setting_that_no_run_can_have_is_refused(name: str, value: object) -> None:
    content = {**json.loads(records.encode(RUN, PROGRESS)), name: value}
    with pytest.raises(records.RecordError):
        records.decode(json.dumps(content).encode())


@pytest.mark.fuzz
@given(st.binary() | st.integers(0, 8 * 700).map(lambda bit: bit.to_bytes(2, "big")))
def test_a_damaged_record_is_read_or_refused(damage: bytes) -> None:
    whole = bytearray(records.encode(RUN, PROGRESS))
    if len(damage) == 2:
        place, bit = divmod(int.from_bytes(damage, "big"), 8)
        whole[place % len(whole)] ^= 1 << bit
        damage = bytes(whole)
    with contextlib.suppress(records.RecordError):
        assert isinstance(records.decode(damage)[0], RunConfig)


def test_every_difference_is_named_with_both_values() -> None:
    other = dataclasses.replace(RUN, num_classes=4, train=dataclasses.replace(RUN.train, seed=1))
    expected = "seed 4294967295 (asked: 1), num_classes 10 (asked: 4)"
    assert records.differences(RUN, other) == expected
    assert records.differences(RUN, RUN) == ""


# The folder.


def test_a_claim_is_kept_against_other_settings(tmp_path: Path) -> None:
    workdir.claim(tmp_path, RUN, is_new=True)
    write_metrics(tmp_path, [ROW])
    before = (tmp_path / "config.json").read_bytes()
    workdir.claim(tmp_path, RUN, is_new=False)
    other = dataclasses.replace(RUN, train=TrainConfig(seed=1))
    with pytest.raises(ConfigError, match=r"other settings: .*seed 4294967295 \(asked: 1\)"):
        workdir.claim(tmp_path, other, is_new=True)
    assert (tmp_path / "config.json").read_bytes() == before
    assert workdir.read_config(tmp_path) == RUN


def test_a_run_without_an_epoch_does_not_keep_its_folder(tmp_path: Path) -> None:
    workdir.claim(tmp_path, RUN, is_new=True)
    other = dataclasses.replace(RUN, train=TrainConfig(seed=1))
    workdir.claim(tmp_path, other, is_new=True)
    assert workdir.read_config(tmp_path) == other


def test_without_a_model_the_message_has_the_command_that_trains_one(tmp_path: Path) -> None:
    for folder in (tmp_path / "a b", tmp_path / "file" / "x", tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cvae-jax train --workdir"):
            workdir.read_config(folder)


def test_a_damaged_or_missing_config_is_named_with_what_restores_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(records.encode(RUN)[:-20])
    with pytest.raises(CheckpointError, match=r"config\.json can't be read: .*; delete it"):
        workdir.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing; the command that"):
        workdir.read_config(tmp_path)


def test_metrics_are_a_table_with_a_row_an_epoch(tmp_path: Path) -> None:
    write_metrics(tmp_path, [ROW, ROW._replace(epoch=2)])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0]["train_loss"] == "0.3333"
    assert list(rows[0]) == list(EpochMetrics._fields)


# The lock.


def _train_in(folder: str, connection: Connection) -> None:
    with workdir.lock(Path(folder)):
        connection.send("locked")
        connection.recv()


def test_a_second_trainer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_train_in, args=(str(tmp_path), there))
    process.start()
    assert here.recv() == "locked"
    with (
        pytest.raises(UserError, match=f"is in use by process {process.pid} on host"),
        workdir.lock(tmp_path),
    ):
        pass
    process.kill()
    process.join()
    with workdir.lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock_holder").read_text()
    assert not (tmp_path / ".lock_holder").exists()


def test_half_written_files_of_a_killed_trainer_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    left = [tmp_path / ".metrics.csv.123.tmp", tmp_path / "samples" / ".epoch_010.png.99.tmp"]
    theirs = [tmp_path / ".mine.123.tmp", tmp_path / "notes.tmp"]
    for path in (*left, *theirs):
        path.touch()
    with workdir.lock(tmp_path):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in theirs)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file.run can't be written: .*another --workdir"),
        workdir.lock(tmp_path / "file" / "run"),
    ):
        pass
