import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from matplotlib.image import imread

from cvae_jax import api
from cvae_jax.config import DataOptions, DeviceOptions, RunOptions, TrainConfig
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import CheckpointError, ConfigError, UserError
from cvae_jax.storage import checkpoints, workdir
from cvae_jax.training import loop
from tests.helpers import (
    CONV_SETTINGS,
    SMALL_CONFIG,
    assert_trees_equal,
    final_state,
    read_metrics,
)

FIXTURE = Path(__file__).parent / "data" / "v02.tar.gz"


@pytest.fixture
def train(small_splits: Splits) -> Any:
    """Return a function that trains a small model on 1,000 images of MNIST."""

    def run(
        folder: Path,
        epochs: int,
        config: TrainConfig = SMALL_CONFIG,
        *,
        every: int = 2,
        splits: Splits = small_splits,
        quiet: bool = False,
        **spread: Any,
    ) -> None:
        options = RunOptions("original", epochs, folder, every, every, quiet)
        spread = {"num_devices": 1, **spread}
        loop.train(config, options, DataOptions(), DeviceOptions(**spread), splits)

    return run


def test_a_run_leaves_everything_it_promises(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 5)
    printed = capsys.readouterr()
    assert "devices: 8 x cpu (cpu), of which 1 is used" in printed.out
    assert "epoch 5/5: train loss" in printed.out
    assert "cvae-jax sample --digit 6" in printed.out
    assert "epoch 5/5" in printed.err  # the progress bar

    rows = read_metrics(tmp_path)
    assert [(row["epoch"], row["step"]) for row in rows] == [
        (f"{e}", f"{8 * e}") for e in range(1, 6)
    ]
    for row in rows:
        for split in ("train", "test"):
            parts = float(row[f"{split}_reconstruction"]) + float(row[f"{split}_kl"])
            assert float(row[f"{split}_loss"]) == pytest.approx(parts, abs=2e-4)
    assert float(rows[-1]["test_loss"]) < float(rows[0]["test_loss"])
    grids = [f"epoch_00{epoch}.png" for epoch in (2, 4, 5)]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == grids
    for picture in [tmp_path / "loss.png", *(tmp_path / "samples").iterdir()]:
        assert np.asarray(imread(picture)).std() > 0.05
    assert checkpoints.list_steps(tmp_path / "checkpoints") == [16, 32, 40]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_dim"], config["model"]) == (32, "mlp")
    assert not list(tmp_path.rglob("*.tmp"))


def test_quiet_prints_nothing(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 1, quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("stops", "settings"),
    [
        ([2], {}),
        ([1, 3], {"binarize": "dynamic"}),
        ([2], CONV_SETTINGS),  # a schedule, clipping and an average: there is more to restore
    ],
)
@pytest.mark.usefixtures("shallow")
def test_a_run_in_parts_equals_a_run_in_one_go_to_the_bit(
    stops: list[int],
    settings: dict[str, Any],
    train: Any,
    tmp_path: Path,
    small_splits: Splits,
) -> None:
    config = dataclasses.replace(SMALL_CONFIG, **settings)
    train(tmp_path / "whole", 4, config)
    for epochs in [*stops, 4]:
        train(tmp_path / "parts", epochs, config)
    whole, parts = (
        final_state(tmp_path / name, small_splits, config) for name in ("whole", "parts")
    )
    assert_trees_equal(whole, parts)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
    for name in ("samples/epoch_002.png", "samples/epoch_004.png", "loss.png"):
        whole_picture, part_picture = (tmp_path / part / name for part in ("whole", "parts"))
        assert whole_picture.read_bytes() == part_picture.read_bytes()


def test_a_workdir_of_version_0_2_is_resumed_and_sampled(tmp_path: Path) -> None:
    # Two epochs by commit fadabd5, its metrics of four, and its samples after two.
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "v02"
    model = api.load(folder / "run")
    with np.load(folder / "samples.npz") as arrays:
        drawn = model.sample(arrays["label"])
        np.testing.assert_allclose(drawn, arrays["image"], atol=1e-6)
    data = DataOptions("idx", folder / "data")
    options = RunOptions(epochs=4, workdir=folder / "run", checkpoint_every=1)
    loop.train(model.run.train, options, data, DeviceOptions(num_devices=1))
    expected = (folder / "metrics_of_4_epochs.csv").read_text().splitlines()
    found = (folder / "run" / "metrics.csv").read_text().splitlines()
    found_numbers, numbers = (
        [float(x) for line in lines[1:] for x in line.split(",")[:-1]]
        for lines in (found, expected)
    )
    assert found_numbers == pytest.approx(numbers, rel=1e-5)  # rounding differs between machines


def test_a_checkpoint_goes_on_with_any_number_of_devices(train: Any, tmp_path: Path) -> None:
    for epochs, num_devices in ((1, 4), (2, 1)):
        train(tmp_path / "many", epochs, num_devices=num_devices)
    train(tmp_path / "one", 2)
    found, expected = (
        [float(row["test_loss"]) for row in read_metrics(tmp_path / name)]
        for name in ("many", "one")
    )
    assert len(found) == 2
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_data_set_larger_than_its_memory_streams_and_changes_nothing(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_splits: Splits
) -> None:
    train(tmp_path / "whole", 2)
    assert "streams" not in capsys.readouterr().out
    train(tmp_path / "streamed", 2, data_memory=1e-4)
    assert "too large for the device (--data-memory), so it streams" in capsys.readouterr().out
    assert read_metrics(tmp_path / "streamed") == read_metrics(tmp_path / "whole")
    assert_trees_equal(
        final_state(tmp_path / "streamed", small_splits),
        final_state(tmp_path / "whole", small_splits),
    )


def test_a_batch_that_the_devices_cannot_share_is_refused(train: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL_CONFIG, batch_size=100)
    with pytest.raises(ConfigError, match="can't be divided among 8 devices"):
        train(tmp_path / "new", 1, config, num_devices=8)
    assert not (tmp_path / "new").exists()


def test_a_finished_run_changes_nothing_but_restores_its_tables(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 2)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.read_bytes() for path in files}
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "loss.png").write_bytes(b"damaged")
    capsys.readouterr()
    train(tmp_path, 1)
    assert "nothing left to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_a_wrong_command_does_not_take_the_place_of_a_lost_config(
    train: Any, tmp_path: Path
) -> None:
    train(tmp_path, 1)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"another run: seed 0 \(asked: 3\)"):
        train(tmp_path, 2, dataclasses.replace(SMALL_CONFIG, seed=3))
    assert not (tmp_path / "config.json").exists()
    train(tmp_path, 2)
    assert len(read_metrics(tmp_path)) == 2


def test_other_settings_and_other_data_are_refused_by_name(
    train: Any, tmp_path: Path, small_splits: Splits
) -> None:
    train(tmp_path, 1)
    other = TrainConfig(hidden_dim=32, latent_dim=6, seed=1)
    with pytest.raises(ConfigError, match=r"latent_dim 5 \(asked: 6\), seed 0 \(asked: 1\)"):
        train(tmp_path, 2, other)
    with pytest.raises(ConfigError, match="data_sha256"):
        train(tmp_path, 2, splits=small_splits._replace(test=small_splits.train))


def test_the_closing_hint_names_a_class_that_was_trained_on(
    train: Any, tmp_path: Path, small_splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    train_set = small_splits.train
    sevens = Dataset(train_set.image, np.full_like(train_set.label, 7))
    train(tmp_path, 1, splits=small_splits._replace(train=sevens))
    assert "cvae-jax sample --digit 7" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step_and_is_not_saved(
    train: Any, tmp_path: Path
) -> None:
    config = dataclasses.replace(SMALL_CONFIG, learning_rate=1e20)
    # The second step is the first one with weights of that learning rate.
    with pytest.raises(UserError, match=r"the loss of step 2 is (nan|inf) \(epoch 1, batch 2\)"):
        train(tmp_path, 5, config, every=1)
    assert checkpoints.list_steps(tmp_path / "checkpoints") == []
    assert not (tmp_path / "metrics.csv").exists()


def test_a_gradient_that_overflows_ends_the_run_though_its_loss_is_finite(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_adam = optax.adam

    def adam(learning_rate: float) -> optax.GradientTransformation:
        overflow = optax.stateless(lambda gradient, _: jax.tree.map(lambda x: x * 1e30, gradient))
        return optax.chain(overflow, plain_adam(learning_rate))

    monkeypatch.setattr(optax, "adam", adam)  # whose mean of squares is then infinite
    with pytest.raises(UserError, match=r"averages are not all finite after step 8 \(epoch 1"):
        train(tmp_path, 2, every=1)
    assert checkpoints.list_steps(tmp_path / "checkpoints") == []


def test_a_second_trainer_is_refused_before_it_touches_anything(train: Any, tmp_path: Path) -> None:
    with workdir.lock(tmp_path), pytest.raises(UserError, match="is in use by process"):
        train(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
