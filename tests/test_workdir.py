import csv
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cvae_jax import workdir
from cvae_jax.types import CheckpointError, ConfigError, EpochMetrics, UserError
from tests.test_records import NO_RECORDS, RUN


@pytest.fixture
def config_json(tmp_path: Path) -> Path:
    workdir.claim(tmp_path, RUN, is_new=True)
    return tmp_path / "config.json"


def test_what_is_claimed_is_read_back(tmp_path: Path) -> None:
    workdir.claim(tmp_path / "new" / "run", RUN, is_new=True)
    assert workdir.read_config(tmp_path / "new" / "run") == RUN


def test_a_claim_of_the_same_run_changes_nothing(config_json: Path) -> None:
    before = config_json.read_bytes()
    workdir.claim(config_json.parent, RUN, is_new=False)
    assert config_json.read_bytes() == before


def test_a_run_with_other_settings_is_refused_and_changes_nothing(config_json: Path) -> None:
    before = config_json.read_bytes()
    asked = dataclasses.replace(
        RUN, train=dataclasses.replace(RUN.train, seed=0, hidden_dim=9), num_classes=3
    )
    expected = (
        r"other settings: hidden_dim 5 \(asked: 9\), seed 4294967295 \(asked: 0\), "
        r"num_classes 26 \(asked: 3\);"
    )
    with pytest.raises(ConfigError, match=expected):
        workdir.claim(config_json.parent, asked, is_new=False)
    assert config_json.read_bytes() == before


def test_a_run_that_came_to_nothing_does_not_keep_its_folder_from_others(
    config_json: Path,
) -> None:
    asked = dataclasses.replace(RUN, num_classes=3)
    workdir.claim(config_json.parent, asked, is_new=True)
    assert workdir.read_config(config_json.parent) == asked
    workdir.write_metrics(config_json.parent, [])
    with pytest.raises(ConfigError, match=r"num_classes 3 \(asked: 26\)"):
        workdir.claim(config_json.parent, RUN, is_new=True)
    assert workdir.read_config(config_json.parent) == asked


@pytest.mark.parametrize("folder", ["", "none", "none/below", "file/below"])
def test_without_a_model_the_way_to_one_is_told(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"no trained model in {tmp_path / folder}.*train.py"):
        workdir.read_config(tmp_path / folder)


@pytest.mark.parametrize("content", NO_RECORDS, ids=lambda content: ascii(content[:12]))
def test_a_config_that_is_none_is_an_error_that_names_it(content: bytes, config_json: Path) -> None:
    config_json.write_bytes(content)
    for use in (workdir.read_config, lambda folder: workdir.claim(folder, RUN, is_new=False)):
        with pytest.raises(CheckpointError, match=f"{config_json} can't be read"):
            use(config_json.parent)


def test_the_config_of_an_older_version_says_which(config_json: Path) -> None:
    content = json.loads(config_json.read_text())
    del content["format"]
    config_json.write_text(json.dumps(content | {"version": "0.1.0"}))
    with pytest.raises(CheckpointError, match=r"cvae_jax '0.1.0' wrote it in format 1"):
        workdir.read_config(config_json.parent)


def test_a_folder_in_place_of_the_config_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=f"{tmp_path}/config.json can't be read"):
        workdir.read_config(tmp_path)


def test_metrics_are_a_table_with_a_row_an_epoch(tmp_path: Path) -> None:
    rows = [
        EpochMetrics(1, 469, 159.5, 149.25, 10.25, 126.2, 113.95, 12.25, 2.5),
        EpochMetrics(2, 938, 120.123456, 107.0, 13.123456, 5e-324, 1e-9, 3e9, 2.25),
    ]
    workdir.write_metrics(tmp_path, rows[:1])
    workdir.write_metrics(tmp_path, rows)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == [
        "epoch",
        "step",
        "train_loss",
        "train_reconstruction",
        "train_kl",
        "test_loss",
        "test_reconstruction",
        "test_kl",
        "seconds",
    ]
    assert [line[:2] for line in lines] == [["1", "469"], ["2", "938"]]
    for line, row in zip(lines, rows, strict=True):
        assert [float(value) for value in line] == pytest.approx(row, abs=5e-5)


HOLD = """
import sys, time
from pathlib import Path
from cvae_jax import workdir
with workdir.lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_second_trainer_is_told_of_the_first_until_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        expected = f"trained in by process {first.pid} on host {socket.gethostname()};"
        for _ in range(2):
            with pytest.raises(UserError, match=expected):
                workdir.require_unlocked(folder)
            with pytest.raises(UserError, match=expected), workdir.lock(folder):
                pass
        first.kill()
    workdir.require_unlocked(folder)
    with workdir.lock(folder):
        assert str(os.getpid()) in (folder / ".lock_holder").read_text()
    assert {path.name for path in folder.iterdir()} <= {".lock"}


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), workdir.lock(tmp_path):
        _ = 1 / 0
    with workdir.lock(tmp_path):
        pass


def test_asking_for_a_lock_makes_nothing(tmp_path: Path) -> None:
    workdir.require_unlocked(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_trainer_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    gone = [".metrics.csv.1.tmp", ".loss.png.23.tmp", ".config.json.4.tmp"]
    gone += ["samples/.epoch_010.png.99.tmp"]
    kept = ["digit_6.png", ".digit_6.png.7.tmp", "samples/epoch_010.png", "notes.tmp"]
    for name in [*gone, *kept]:
        (tmp_path / name).touch()
    with workdir.lock(tmp_path):
        pass
    assert not [name for name in gone if (tmp_path / name).exists()]
    assert not [name for name in kept if not (tmp_path / name).exists()]


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="file/run can't be locked"),
        workdir.lock(tmp_path / "file" / "run"),
    ):
        pass
