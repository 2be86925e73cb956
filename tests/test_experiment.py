import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from cvae_jax import checkpoints, data, devices, experiment, workdir
from cvae_jax.config import RunConfig, RunOptions, TrainConfig
from cvae_jax.programs import build_programs
from cvae_jax.types import ConfigError, InterruptedRunError, LossSums, Splits, TrainState, UserError
from tests.conftest import assert_trees_equal

CONFIG = TrainConfig(hidden_dim=32, latent_dim=5, seed=0)


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch: pytest.MonkeyPatch, small_splits: Splits) -> None:
    """Let a run find the first thousand images of MNIST where it looks for all of it."""
    monkeypatch.setattr(data, "load_dataset", lambda *_, **__: small_splits)


def train(folder: Path, epochs: int, config: TrainConfig = CONFIG, every: int = 2) -> None:
    options = RunOptions(epochs=epochs, workdir=folder, sample_every=every, checkpoint_every=every)
    experiment.train(config, options)


def final_state(folder: Path, run: RunConfig, splits: Splits) -> TrainState:
    like = jax.eval_shape(build_programs(run, splits).init)
    with checkpoints.open_manager(folder / "checkpoints") as manager:
        restored = checkpoints.restore_latest(manager, like)
    assert restored is not None
    return restored[0]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(file)
        ]


def test_a_run_leaves_everything_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, epochs=5)
    printed = capsys.readouterr()
    assert "devices: 1 x cpu" in printed.out
    assert "epoch 5/5: train loss" in printed.out
    assert "python scripts/sample.py" in printed.out
    assert "epoch 5/5" in printed.err  # the progress bar

    rows = metrics(tmp_path)
    assert [(row["epoch"], row["step"]) for row in rows] == [
        (f"{e}", f"{8 * e}") for e in range(1, 6)
    ]
    for row in rows:
        for split in ("train", "test"):
            parts = float(row[f"{split}_reconstruction"]) + float(row[f"{split}_kl"])
            assert float(row[f"{split}_loss"]) == pytest.approx(parts, abs=2e-4)
    assert float(rows[-1]["test_loss"]) < float(rows[0]["test_loss"])

    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "epoch_002.png",
        "epoch_004.png",
    ]
    for picture in [tmp_path / "loss.png", *(tmp_path / "samples").iterdir()]:
        assert np.asarray(imread(picture)).std() > 0.05
    assert checkpoints.list_steps(tmp_path / "checkpoints") == [16, 32, 40]
    assert json.loads((tmp_path / "config.json").read_text())["hidden_dim"] == 32
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("stops", [[2], [1, 3]])
def test_a_run_in_parts_equals_a_run_in_one_go_to_the_bit(
    stops: list[int], tmp_path: Path, small_run: RunConfig, small_splits: Splits
) -> None:
    train(tmp_path / "whole", epochs=4)
    for epochs in [*stops, 4]:
        train(tmp_path / "parts", epochs=epochs)
    whole, parts = (
        final_state(tmp_path / name, small_run, small_splits) for name in ("whole", "parts")
    )
    assert_trees_equal(whole, parts)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    for name in ("samples/epoch_002.png", "samples/epoch_004.png", "loss.png"):
        whole_picture, part_picture = (tmp_path / part / name for part in ("whole", "parts"))
        assert whole_picture.read_bytes() == part_picture.read_bytes()


def test_a_stopped_run_goes_on_from_its_newest_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_run: RunConfig,
    small_splits: Splits,
) -> None:
    train(tmp_path / "whole", epochs=4)

    def stop(folder: Path, history: list[object]) -> None:
        if len(history) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workdir, "write_metrics", stop)
        with pytest.raises(InterruptedRunError, match="the same command goes on after epoch 2,"):
            train(tmp_path / "parts", epochs=4)
    assert checkpoints.list_steps(tmp_path / "parts" / "checkpoints") == [16]
    train(tmp_path / "parts", epochs=4)
    assert_trees_equal(
        final_state(tmp_path / "whole", small_run, small_splits),
        final_state(tmp_path / "parts", small_run, small_splits),
    )
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_finished_run_says_so_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, epochs=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    for epochs in (1, 2):
        train(tmp_path, epochs=epochs)
        assert "nothing left to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_configuration_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    other = TrainConfig(hidden_dim=32, latent_dim=6, seed=1)
    with pytest.raises(ConfigError, match=r"latent_dim 5 \(asked: 6\), seed 0 \(asked: 1\)"):
        train(tmp_path, epochs=2, config=other)


def test_other_data_under_the_same_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_splits: Splits
) -> None:
    train(tmp_path, epochs=1)
    changed = small_splits._replace(test=small_splits.train)
    monkeypatch.setattr(data, "load_dataset", lambda *_, **__: changed)
    with pytest.raises(ConfigError, match="data_sha256"):
        train(tmp_path, epochs=2)


def test_the_mean_counts_every_image_once() -> None:
    pieces = [
        LossSums(*(jnp.array(values, jnp.float32) for values in ([10, 20], [1, 2], [4, 4]))),
        LossSums(*(jnp.array(values, jnp.float32) for values in ([6, 0], [3, 0], [1, 0]))),
    ]
    assert experiment._mean_terms(pieces) == (36 / 9, 6 / 9)


def test_an_unused_accelerator_is_announced_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "unused_accelerator", lambda: "there is a TPU")
    train(tmp_path, epochs=1)
    assert "WARNING: there is a TPU" in capsys.readouterr().out


def test_reading_lags_one_item_behind() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number

    seen = [(item, len(made)) for item in experiment._one_behind(make())]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=1e20)
    with pytest.raises(UserError, match="the loss of epoch 1 is not a finite number"):
        train(tmp_path, epochs=4, config=config, every=1)
    assert checkpoints.list_steps(tmp_path / "checkpoints") == []
