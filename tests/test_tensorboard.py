"""TensorBoard's event files say what metrics.csv and the pictures say, and each epoch once."""

import csv
import io
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from cvae_jax.commands import cli
from cvae_jax.config import DataOptions, DeviceOptions, RunOptions
from cvae_jax.data.dataset import Splits
from cvae_jax.errors import UserError
from cvae_jax.storage import checkpoints
from cvae_jax.training import loop
from tests.helpers import SMALL_CONFIG, assert_trees_equal, final_state, read_metrics

COLUMNS = {
    "train": {
        "nats per image/loss": "train_loss",
        "nats per image/reconstruction": "train_reconstruction",
        "nats per image/kl": "train_kl",
        "seconds": "seconds",
    },
    "test": {
        "nats per image/loss": "test_loss",
        "nats per image/reconstruction": "test_reconstruction",
        "nats per image/kl": "test_kl",
    },
}


@pytest.fixture
def train(small_splits: Splits) -> Any:
    """Return a function that trains a small model; samples every epoch, checkpoints every third."""

    def run(folder: Path, epochs: int, *, tensorboard: bool = True) -> None:
        options = RunOptions("original", epochs, folder, 1, 3, tensorboard=tensorboard)
        devices = DeviceOptions(num_devices=1)
        loop.train(SMALL_CONFIG, options, DataOptions(), devices, small_splits)

    return run


def read_events(folder: Path, split: str) -> list[Event]:
    """Return the events in the one file of a split, all of its checksums checked."""
    [path] = (folder / "tensorboard" / split).iterdir()
    content, events = path.read_bytes(), []
    while content:
        size = content[:8]
        [length] = struct.unpack("<Q", size)
        record, end = content[12 : 12 + length], 12 + length
        sums = struct.unpack("<II", content[8:12] + content[end : end + 4])
        assert sums == (masked_crc32c(size), masked_crc32c(record))
        events.append(Event.FromString(record))
        content = content[end + 4 :]
    version, start, *rest = events
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == SessionLog.START
    assert start.step == 0
    return rest


def assert_board_shows_metrics(folder: Path, num_epochs: int) -> None:
    """Compare every number with metrics.csv, to the bit of float32."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == num_epochs
    for split, columns in COLUMNS.items():
        events = read_events(folder, split)
        assert [event.step for event in events] == list(range(1, num_epochs + 1))
        times = [event.wall_time for event in events]
        seconds = [float(row["seconds"]) for row in rows]
        np.testing.assert_allclose(np.diff(times), seconds[1:], atol=1e-3)
        for event, row in zip(events, rows, strict=True):
            values = event.summary.value
            found = {one.tag: one.simple_value for one in values if one.HasField("simple_value")}
            expected = {tag: np.float32(row[column]) for tag, column in columns.items()}
            assert found == expected


def pictures(folder: Path, tag: str) -> dict[int, bytes]:
    """Return the pictures of a tag by their epochs."""
    return {
        event.step: value.image.encoded_image_string
        for event in read_events(folder, "test")
        for value in event.summary.value
        if value.tag == tag
    }


def test_a_board_shows_the_metrics_and_the_pictures_of_every_epoch(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 4)
    assert f"to watch: tensorboard --logdir {tmp_path}" in capsys.readouterr().out
    assert_board_shows_metrics(tmp_path, 4)
    samples, again = (pictures(tmp_path, tag) for tag in ("samples", "reconstructions"))
    assert list(samples) == list(again) == [1, 2, 3, 4]
    for epoch, content in samples.items():
        assert content == (tmp_path / f"samples/epoch_{epoch:03d}.png").read_bytes()
    # From epoch to epoch the lower of two rows changes, not the upper one.
    first, last = (np.asarray(Image.open(io.BytesIO(again[i])).convert("L")) for i in (1, 4))
    changed = (first != last).any(axis=1)
    upper, lower = slice(len(first) // 3, len(first) // 2), slice(3 * len(first) // 4, None)
    assert not changed[upper].any()
    assert changed[lower].any()
    value = read_events(tmp_path, "test")[0].summary.value[1]
    assert (value.image.height, value.image.width) == first.shape


def test_a_resumed_run_has_every_epoch_once_and_the_same_bits_as_without_a_board(
    train: Any, tmp_path: Path, small_splits: Splits
) -> None:
    train(tmp_path / "plain", 5, tensorboard=False)
    assert not (tmp_path / "plain" / "tensorboard").exists()
    folder = tmp_path / "watched"
    train(folder, 4)
    # As if the run had been killed after the fourth epoch, before its checkpoint.
    shutil.rmtree(folder / "checkpoints" / "32")
    train(folder, 5)
    assert checkpoints.list_steps(folder / "checkpoints") == [24, 40]
    assert_board_shows_metrics(folder, 5)
    assert list(pictures(folder, "reconstructions")) == [1, 2, 3, 4, 5]
    assert read_metrics(folder) == read_metrics(tmp_path / "plain")
    assert_trees_equal(
        final_state(folder, small_splits), final_state(tmp_path / "plain", small_splits)
    )


def test_a_finished_run_gets_its_history_and_a_lost_board_comes_back(
    train: Any, tmp_path: Path
) -> None:
    train(tmp_path, 2, tensorboard=False)
    (tmp_path / "samples" / "epoch_001.png").write_bytes(b"damaged")
    for _ in range(2):
        train(tmp_path, 2)
        assert_board_shows_metrics(tmp_path, 2)
        assert list(pictures(tmp_path, "samples")) == [2]
        shutil.rmtree(tmp_path / "tensorboard")


def test_a_board_that_cannot_be_written_ends_in_an_error_that_names_it(
    train: Any, tmp_path: Path
) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(UserError, match=r"tensorboard/train/.* can't be written"):
        train(tmp_path, 1)


def test_without_tensorboardx_one_line_names_the_extra_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "cvae_jax.training.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX.proto.event_pb2", None)  # as if not installed
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        cli.main("train", ["--tensorboard", "--epochs", "1", "--workdir", str(folder)])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1
    assert "pip install 'cvae_jax[tensorboard]'" in error
    assert not folder.exists()
