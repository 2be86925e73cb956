"""Weights in model.safetensors: `cvae-jax export`, `load`, and those in the package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import cvae_jax
from cvae_jax.commands import evaluate, export, sample
from cvae_jax.config import Pretrained, TrainConfig
from cvae_jax.data.batches import put_on_device
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import CheckpointError, ConfigError
from cvae_jax.evaluation.judge import BUNDLED, judge_all, read
from cvae_jax.models import build_model
from cvae_jax.storage import weights
from tests.helpers import SMALL_CONFIG, assert_trees_equal, random_params, run_config

Settings = dict[str, Any]


@pytest.mark.parametrize(
    "settings",
    [{}, {"prior": "flow"}, {"model": "conv"}, {"model": "conv", "prior": "flow"}],
    ids=str,
)
def test_what_is_written_is_read_to_the_bit(
    settings: Settings, small_splits: Splits, tmp_path: Path
) -> None:
    run = run_config(small_splits, TrainConfig(hidden_dim=8, channels=4, latent_dim=6, **settings))
    params = random_params(build_model(run.model))
    weights.write(tmp_path, run, params)
    found, again = weights.read(tmp_path)
    assert found == run
    assert_trees_equal(again, params)


def test_the_original_has_the_layers_of_its_pytorch_module(
    small_splits: Splits, tmp_path: Path
) -> None:
    run = run_config(small_splits, TrainConfig())
    params = random_params(build_model(run.model))
    weights.write(tmp_path, run, params)
    layers = safetensors.numpy.load_file(tmp_path / weights.WEIGHTS)
    shapes = {name: array.shape for name, array in layers.items()}
    assert shapes == {
        **{"fc1.weight": (600, 794), "fc1.bias": (600,)},
        **{"fc2.weight": (50, 600), "fc2.bias": (50,)},
        **{"fc3.weight": (50, 600), "fc3.bias": (50,)},
        **{"fc4.weight": (600, 60), "fc4.bias": (600,)},
        **{"fc5.weight": (784, 600), "fc5.bias": (784,)},
    }
    # The tutorial's forward pass: fc3 of relu(fc1) is the log-variance; the label comes last.
    image = np.random.default_rng(0).random((3, 784), np.float32)
    label = np.array([1, 0, 9], np.int32)

    def dense(name: str, hidden: np.ndarray) -> np.ndarray:
        return hidden @ layers[f"{name}.weight"].T + layers[f"{name}.bias"]

    def with_label(array: np.ndarray) -> np.ndarray:
        return np.hstack([array, np.eye(10, dtype=np.float32)[label]])

    hidden = np.maximum(dense("fc1", with_label(image)), 0)
    latent = dense("fc2", hidden) + np.exp(dense("fc3", hidden) / 2)
    logits = dense("fc5", np.maximum(dense("fc4", with_label(latent)), 0))
    model = build_model(run.model)
    arrays = image.reshape(3, 28, 28, 1), label, np.ones((3, 50), np.float32)
    found = model.autoencode(params, *map(jnp.asarray, arrays))
    np.testing.assert_allclose(found.latent, latent, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.logits.reshape(3, -1), logits, rtol=1e-3, atol=1e-3)


def _change(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def on_disk(folder: Path) -> None:
        arrays = safetensors.numpy.load_file(folder / weights.WEIGHTS)
        change(arrays)
        safetensors.numpy.save_file(arrays, folder / weights.WEIGHTS)

    return on_disk


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda folder: (folder / weights.WEIGHTS).write_bytes(
        (folder / weights.WEIGHTS).read_bytes()[:-1]
    ),
    "a header of 2^60 bytes": lambda folder: (folder / weights.WEIGHTS).write_bytes(
        (2**60).to_bytes(8, "little") + b"{}"
    ),
    "no weights": lambda folder: (folder / weights.WEIGHTS).write_bytes(b""),
    "a layer missing": _change(lambda arrays: arrays.pop("fc4.bias")),
    "a layer too many": _change(lambda arrays: arrays.update(fc6=np.zeros(1, np.float32))),
    "another shape": _change(lambda arrays: arrays.update({"fc4.bias": np.zeros(7, np.float32)})),
    "not a number": _change(lambda arrays: arrays["fc4.bias"].fill(np.nan)),
    "no settings": lambda folder: (folder / weights.CONFIG).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_refused_in_one_line(
    damage: str, small_splits: Splits, tmp_path: Path
) -> None:
    run = run_config(small_splits, SMALL_CONFIG)
    weights.write(tmp_path, run, random_params(build_model(run.model)))
    DAMAGE[damage](tmp_path)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}.*(can't be read|is missing)") as found:
        cvae_jax.load(tmp_path)
    assert "\n" not in str(found.value)


@pytest.fixture(scope="module")
def trained(small_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    settings: Settings = {"hidden_dim": 32, "latent_dim": 5, "num_devices": 1}
    cvae_jax.train(small_splits, epochs=1, workdir=folder, **settings)
    return folder


def test_an_exported_model_draws_as_the_run_did(trained: Path, tmp_path: Path) -> None:
    before = cvae_jax.load(trained).sample(6)
    for dtype, most in (("float32", 0), ("float16", 0.002)):
        options: Any = {"workdir": trained, "directory": tmp_path / dtype, "dtype": dtype}
        export.run(export.ExportOptions(**options))
        model = cvae_jax.load(tmp_path / dtype)
        assert model.step is None
        assert np.abs(model.sample(6) - before).max() <= most
    sizes = [(tmp_path / name / weights.WEIGHTS).stat().st_size for name in ("float16", "float32")]
    assert 1.9 < sizes[1] / sizes[0] < 2.1


def test_an_evaluation_goes_with_the_weights_that_it_is_of(trained: Path, tmp_path: Path) -> None:
    for text, is_there in (('{"step": 8}', True), ('{"step": 7}', False), ("[", False)):
        (trained / "evaluation.json").write_text(text)
        export.run(export.ExportOptions(workdir=trained, directory=tmp_path))
        assert (tmp_path / "evaluation.json").exists() == is_there
    (trained / "evaluation.json").unlink()


def test_an_export_into_the_folder_of_a_run_is_refused(trained: Path) -> None:
    before = (trained / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=f"^DIR {trained} holds a run"):
        export.run(export.ExportOptions(pretrained="original", directory=trained))
    assert (trained / "config.json").read_bytes() == before
    assert cvae_jax.load(trained).step == 8


def test_weights_have_no_steps_and_no_film(trained: Path, tmp_path: Path) -> None:
    export.run(export.ExportOptions(workdir=trained, directory=tmp_path))
    with pytest.raises(ConfigError, match=f"^--step 8 is not in {tmp_path}, which has weights"):
        cvae_jax.load(tmp_path, 8)
    way = sample.WayOptions(film=True)
    with pytest.raises(ConfigError, match=r"^--film needs the workdir of a run"):
        sample.run(sample.SampleOptions(workdir=tmp_path, way=way))


def test_pretrained_models_need_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--pretrained best, .* cvae-jax train --workdir"):
        sample.run(sample.SampleOptions())
    sample.run(sample.SampleOptions(digit=6, pretrained="best"))
    assert [path.name for path in tmp_path.iterdir()] == ["digit_6.png"]
    for other in ({"workdir": tmp_path}, {"step": 1}, {"pretrained": "worst"}):
        options: Any = {"pretrained": "best"} | other
        with pytest.raises(ConfigError, match=r"^--pretrained (takes no|'worst' can't)"):
            evaluate.EvaluateOptions(**options)


@pytest.mark.parametrize("name", get_args(Pretrained))
def test_pretrained_models_draw_what_they_are_asked_for(name: Pretrained, mnist: Splits) -> None:
    model = cvae_jax.load(name)
    label = np.resize(np.arange(10, dtype=np.int32), 1000)
    image = np.rint(255 * model.sample(label)).astype(np.uint8)
    judge = read(BUNDLED, mnist, mnist.fingerprint())
    dataset = put_on_device(Dataset(image, label))
    verdict = judge_all(judge, dataset, image_shape=(28, 28, 1), num_classes=10)
    accuracy = np.mean(np.argmax(verdict.logits, axis=-1) == label)
    # Their evaluation is of more samples; a standard error of these is up to 0.7 %.
    found = json.loads((model.checkpoint.parent / "evaluation.json").read_text())["measurements"]
    assert accuracy == pytest.approx(found["conditional accuracy"]["value"], abs=0.02)
