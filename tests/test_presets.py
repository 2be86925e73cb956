"""Presets: the settings that a command starts from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cvae_jax
from cvae_jax.commands import cli, train
from cvae_jax.config import PRESETS, RunOptions, TrainConfig
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.training import loop


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[train.TrainCommand]:
    """Return a list that receives the options of each `train` command, which is not run."""
    received: list[train.TrainCommand] = []
    monkeypatch.setattr(train, "run", received.append)
    return received


@pytest.mark.parametrize("arguments", [["--preset", "best"], ["--preset=best"]])
def test_options_replace_those_of_a_preset(
    arguments: list[str], given: list[train.TrainCommand]
) -> None:
    cli.main("train", [*arguments, "--epochs", "3", "--prior", "normal"])
    (options,) = given
    assert options.run == RunOptions(preset="best", epochs=3)
    expected = PRESETS["best"] | {"prior": "normal"}
    del expected["epochs"]
    assert options.config == TrainConfig(**expected)


def test_the_original_is_the_default(given: list[train.TrainCommand]) -> None:
    for arguments in ([], ["--preset", "original"]):
        cli.main("train", arguments)
    assert given[0] == given[1]
    assert (given[0].run, given[0].config) == (RunOptions(), TrainConfig())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_settings_that_exist(name: str, given: list[train.TrainCommand]) -> None:
    cli.main("train", ["--preset", name])
    values = dataclasses.asdict(given[0].run) | dataclasses.asdict(given[0].config)
    assert PRESETS[name].items() <= values.items()


def test_a_preset_trains_in_python_in_a_folder_of_its_own(
    small_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = cvae_jax.train(small_splits, preset="quick", epochs=1, num_devices=1)
    assert (tmp_path / "runs/arrays-quick/metrics.csv").exists()
    assert model.run.train.schedule == "cosine"
    assert model.run.train.decay_epochs == 1


def test_a_preset_of_convolutions_uses_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("cvae_jax.runtime.devices.split_cpu", sizes.append)
    monkeypatch.setattr(loop, "train", lambda *_: None)
    best = ["--preset", "best"]
    for arguments in ([], best, [*best, "--num-devices", "1"], [*best, "--data-memory", "1"]):
        cli.main("train", arguments)
    assert sizes == [64, 64]


@pytest.mark.usefixtures("shallow")
def test_the_best_preset_trains_on_colour_images_of_another_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image, label = random.integers(0, 256, (128, 32, 32, 3), np.uint8), np.arange(128) % 7
    data = Dataset(image, label.astype(np.int32))
    splits = Splits(data, data, 7)
    settings: dict[str, Any] = {"epochs": 1, "channels": 4, "num_devices": 1}
    model = cvae_jax.train(splits, preset="best", workdir=tmp_path / "run", **settings)
    assert model.sample(6, num=2).shape == (2, 32, 32, 3)
    assert np.isfinite(model.log_likelihood(image[:2] > 127, label[:2])).all()
    (row,) = model.history
    assert row.test_loss < 32 * 32 * 3 * 0.8  # noise in grey levels: D log 2 without learning
