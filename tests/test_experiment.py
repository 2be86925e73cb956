import contextlib
import csv
import dataclasses
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from matplotlib.image import imread

from cvae_jax import (
    checkpoints,
    data,
    devices,
    experiment,
    programs,
    progress,
    records,
    stopping,
    workdir,
)
from cvae_jax.config import Binarize, RunConfig, TrainConfig
from cvae_jax.options import RunOptions
from cvae_jax.programs import build_programs
from cvae_jax.types import (
    CheckpointError,
    ConfigError,
    InterruptedRunError,
    Splits,
    TrainState,
    UserError,
)
from tests.conftest import assert_trees_equal

CONFIG = TrainConfig(hidden_dim=32, latent_dim=5, seed=0)


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch: pytest.MonkeyPatch, small_splits: Splits) -> None:
    """Let a run find the first thousand images of MNIST where it looks for all of it."""
    monkeypatch.setattr(data, "load_dataset", lambda *_, **__: small_splits)


def train(
    folder: Path, epochs: int, config: TrainConfig = CONFIG, every: int = 2, num_devices: int = 1
) -> None:
    options = RunOptions(
        epochs=epochs,
        workdir=folder,
        sample_every=every,
        checkpoint_every=every,
        num_devices=num_devices,
    )
    experiment.train(config, options)


def final_state(folder: Path, run: RunConfig, splits: Splits) -> TrainState:
    like = jax.eval_shape(build_programs(run, splits).init)
    newest = checkpoints.find_newest(folder / "checkpoints")
    assert newest is not None
    return checkpoints.restore(newest, like, run)[0]


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
    assert "devices: 8 x cpu (cpu), of which 1 is used" in printed.out
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


@pytest.mark.parametrize(("stops", "binarize"), [([2], "none"), ([1, 3], "dynamic")])
def test_a_run_in_parts_equals_a_run_in_one_go_to_the_bit(
    stops: list[int],
    binarize: Binarize,
    tmp_path: Path,
    small_run: RunConfig,
    small_splits: Splits,
) -> None:
    config = dataclasses.replace(CONFIG, binarize=binarize)
    train(tmp_path / "whole", 4, config)
    for epochs in [*stops, 4]:
        train(tmp_path / "parts", epochs, config)
    run = dataclasses.replace(small_run, train=config)
    whole, parts = (final_state(tmp_path / name, run, small_splits) for name in ("whole", "parts"))
    assert_trees_equal(whole, parts)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    for name in ("samples/epoch_002.png", "samples/epoch_004.png", "loss.png"):
        whole_picture, part_picture = (tmp_path / part / name for part in ("whole", "parts"))
        assert whole_picture.read_bytes() == part_picture.read_bytes()


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 3), (signal.SIGINT, 4), (signal.SIGTERM, 11)],
)
def test_a_signal_saves_the_run_and_the_same_command_goes_on_from_there(
    number: signal.Signals,
    after: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_run: RunConfig,
    small_splits: Splits,
) -> None:
    monkeypatch.setattr(programs, "_DISPATCH_FLOPS_CPU", 1e8)  # two steps in a dispatch
    train(tmp_path / "whole", epochs=4)
    read = 0
    original = progress.require_finite

    def require_finite(*arguments: Any, **options: Any) -> None:
        nonlocal read
        read += 1
        if read == after:
            signal.raise_signal(number)
            end = time.monotonic() + 20
            while stop is not None and not stop() and time.monotonic() < end:
                time.sleep(0.01)
        original(*arguments, **options)

    stop: Callable[[], int | None] | None = None
    watch = stopping.watch

    @contextlib.contextmanager
    def watch_too() -> Iterator[Callable[[], int | None]]:
        nonlocal stop
        with watch() as stop:
            yield stop

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "require_finite", require_finite)
        patch.setattr(stopping, "watch", watch_too)
        with pytest.raises(InterruptedRunError, match="goes on from there") as caught:
            train(tmp_path / "parts", epochs=4)
    assert caught.value.exit_status == 128 + number
    saved = checkpoints.list_steps(tmp_path / "parts" / "checkpoints")[-1]
    # The dispatch being read and the one in flight were finished, no other was sent.
    assert saved == 2 * (after + 1)
    assert f"{number.name}: saving" in capsys.readouterr().err
    train(tmp_path / "parts", epochs=4)
    assert f"going on after epoch {saved // 8}" in capsys.readouterr().out
    assert_trees_equal(
        final_state(tmp_path / "whole", small_run, small_splits),
        final_state(tmp_path / "parts", small_run, small_splits),
    )
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_checkpoint_goes_on_with_any_number_of_devices(tmp_path: Path) -> None:
    for epochs, num_devices in ((1, 8), (2, 1), (3, 4), (4, 2)):
        train(tmp_path / "many", epochs, num_devices=num_devices)
    train(tmp_path / "one", epochs=4)
    found, expected = (
        [float(row["test_loss"]) for row in metrics(tmp_path / name)] for name in ("many", "one")
    )
    assert len(found) == 4
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_data_set_larger_than_its_memory_streams_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_run: RunConfig, small_splits: Splits
) -> None:
    train(tmp_path / "whole", epochs=2)
    assert "streams" not in capsys.readouterr().out
    options = RunOptions(2, tmp_path / "streamed", data_memory=1e-4, num_devices=1)
    experiment.train(CONFIG, options)
    assert "too large for the device (--data-memory), so it streams" in capsys.readouterr().out
    assert metrics(tmp_path / "streamed") == metrics(tmp_path / "whole")
    assert_trees_equal(
        final_state(tmp_path / "streamed", small_run, small_splits),
        final_state(tmp_path / "whole", small_run, small_splits),
    )


@pytest.mark.parametrize("kind", [{"batch_size": 100}, {"batch_size": 4}])
def test_a_batch_that_the_devices_cannot_share_is_refused(
    kind: dict[str, int], tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, **kind)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="can't be divided among 8 devices"):
        train(tmp_path / "new", epochs=1, config=config, num_devices=8)
    assert not (tmp_path / "new").exists()


def test_a_finished_run_says_so_and_changes_nothing_but_mends_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, epochs=2)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.read_bytes() for path in files}
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "loss.png").write_bytes(b"damaged")
    capsys.readouterr()
    for epochs in (1, 2):
        train(tmp_path, epochs=epochs)
        printed = capsys.readouterr().out
        assert "nothing left to do" in printed
        assert "python scripts/sample.py --digit 6" in printed
        assert {path: path.read_bytes() for path in before} == before


def test_a_wrong_command_does_not_take_the_place_of_a_lost_config(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    (tmp_path / "config.json").unlink()
    other = dataclasses.replace(CONFIG, seed=3)
    with pytest.raises(CheckpointError, match=r"another run: seed 0 \(asked: 3\)"):
        train(tmp_path, epochs=2, config=other)
    assert not (tmp_path / "config.json").exists()
    train(tmp_path, epochs=2)
    assert len(metrics(tmp_path)) == 2


def test_output_that_nobody_reads_does_not_cost_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            if "epoch" in text:
                raise BrokenPipeError
            return len(text)

    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", Broken())
    train(tmp_path, epochs=2)
    assert checkpoints.list_steps(tmp_path / "checkpoints") == [16]


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


def test_an_unused_accelerator_is_announced_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "unused_accelerator", lambda: "there is a TPU")
    train(tmp_path, epochs=1)
    assert "WARNING: there is a TPU" in capsys.readouterr().out


@pytest.mark.parametrize("first_batch", [1, 3])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step_and_is_not_saved(
    first_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, epochs=first_batch - 1) if first_batch > 1 else None
    config = dataclasses.replace(CONFIG, learning_rate=1e20)
    monkeypatch.setattr(workdir, "claim", lambda *_, **__: None)
    monkeypatch.setattr(records, "differences", lambda *_: "")
    step = 8 * (first_batch - 1) + 2  # the first one with weights of that learning rate
    before = checkpoints.list_steps(tmp_path / "checkpoints")
    expected = rf"the loss of step {step} is (nan|inf) \(epoch {first_batch}, batch 2\)"
    with pytest.raises(UserError, match=expected):
        train(tmp_path, epochs=5, config=config, every=1)
    assert checkpoints.list_steps(tmp_path / "checkpoints") == before
    assert "nan" not in (tmp_path / "metrics.csv").read_text() if before else True


def test_a_gradient_that_overflows_ends_the_run_though_its_loss_is_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_adam = optax.adam

    def adam(learning_rate: float) -> optax.GradientTransformation:
        overflow = optax.stateless(
            lambda gradient, _: jax.tree.map(lambda leaf: leaf * 1e30, gradient)
        )
        return optax.chain(overflow, plain_adam(learning_rate))

    monkeypatch.setattr(optax, "adam", adam)  # whose mean of squares is then infinite
    with pytest.raises(UserError, match=r"averages are not all finite after step 8 \(epoch 1"):
        train(tmp_path, epochs=2, every=1)
    assert checkpoints.list_steps(tmp_path / "checkpoints") == []
    assert not (tmp_path / "metrics.csv").exists()


def test_more_steps_than_can_be_counted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--epochs 300000000 .* choose 1 to 268435455"):
        train(tmp_path / "new", epochs=300_000_000)
    assert not (tmp_path / "new").exists()


def test_a_second_trainer_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    with workdir.lock(tmp_path), pytest.raises(UserError, match="is being trained in by process"):
        train(tmp_path, epochs=1)
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
