import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from cvae_jax import (
    assessment,
    checkpoints,
    evaluation,
    experiment,
    idx,
    judge,
    likelihoods,
    overview,
    sample_quality,
    workdir,
)
from cvae_jax.config import TrainConfig
from cvae_jax.options import EvaluateOptions, RunOptions
from cvae_jax.programs import build_programs
from cvae_jax.types import CheckpointError, ConfigError, DataError, Dataset, Progress, UserError
from tests import fault_files
from tests.conftest import NUM_DEVICES, patched_script
from tests.test_files import contents, mounted
from tests.test_idx import write_directory

SCRIPTS = Path(__file__).parents[1] / "scripts"
CONFIG = TrainConfig(dataset="tiny", batch_size=4, hidden_dim=3, latent_dim=2)
MEASURES = {
    "negative ELBO, grey levels",
    "reconstruction, grey levels",
    "KL, grey levels",
    "negative ELBO, binarised",
    "reconstruction, binarised",
    "KL, binarised",
    "-log p(x|y), binarised",
    "accuracy of the judge",
    "conditional accuracy",
    "Fréchet distance of samples",
    "precision of samples",
    "recall of samples",
    "Fréchet distance of training images, the floor",
    "precision of training images, the floor",
    "recall of training images, the floor",
    "classification accuracy score",
    "active units",
}


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train judges for a minute less, keep them where the test is, and draw fewer bootstraps."""
    monkeypatch.setattr(sample_quality, "_NUM_BOOTSTRAPS", 3)
    monkeypatch.setattr(judge, "_FEWEST_STEPS", 20)
    monkeypatch.setattr(judge, "_EPOCHS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_data(folder: Path, num_train: int = 40, num_test: int = 8, classes: int = 3) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    train, test = (
        Dataset(
            random.integers(0, 256, (n, 5, 4, 1), np.uint8), np.arange(n, dtype=np.int32) % classes
        )
        for n in (num_train, num_test)
    )
    write_directory(folder, train, test)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a workdir with two checkpoints of a very small model, and its data beside it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_data(folder / "data")
    options = RunOptions(2, folder / "run", "idx", data, checkpoint_every=1, num_devices=1)
    experiment.train(CONFIG, options)
    return folder / "run"


def assess(folder: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "num_importance_samples": 7,
        "num_samples": 10,
        "source": "idx",
        "data_dir": folder.parent / "data",
    }
    assessment.assess(EvaluateOptions(workdir=folder, **(given | options)))
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "seconds"}


def test_an_evaluation_leaves_everything_it_promises(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = assess(trained)
    assert found["step"] == 20
    assert found["train"] == dataclasses.asdict(CONFIG)
    assert set(found["measurements"]) == MEASURES
    output = capsys.readouterr().out
    for name, measure in found["measurements"].items():
        assert np.isfinite(measure["value"])
        assert measure["protocol"]
        assert (measure["standard_error"] is None) == (name == "active units")
        assert re.search(rf"^{re.escape(name)} .*{re.escape(measure['protocol'])}$", output, re.M)
    confusion = np.array(found["confusion"])
    np.testing.assert_array_equal(confusion.sum(axis=1), [10, 10, 10])
    accuracy = found["measurements"]["conditional accuracy"]["value"]
    by_class = [one["value"] for one in found["accuracy_by_class"]]
    assert accuracy == pytest.approx(np.mean(by_class)) == np.trace(confusion) / 30
    kl = found["measurements"]["KL, grey levels"]["value"]
    assert len(found["judge_accuracy_by_class"]) == 3
    assert sum(found["kl_by_dimension"]) == pytest.approx(kl, rel=1e-5)
    assert found["measurements"]["active units"]["value"] == sum(found["is_active"])
    assert "posterior collapse" in found["latent_use"]
    assert found["latent_use"] in output
    picture = np.asarray(imread(trained / "evaluation.png"))
    assert picture.shape[0] > 1500
    assert picture.std() > 0.05


def test_equal_seeds_give_equal_figures(trained: Path) -> None:
    first, again, other = (assess(trained, seed=seed) for seed in (0, 0, 1))
    assert without_time(first) == without_time(again)
    for name in ("KL, grey levels", "accuracy of the judge", "active units"):
        assert other["measurements"][name] == first["measurements"][name]
    for name in ("negative ELBO, grey levels", "-log p(x|y), binarised", "KL, binarised"):
        assert other["measurements"][name]["value"] != first["measurements"][name]["value"]


def test_any_checkpoint_can_be_asked_for(trained: Path) -> None:
    newest, older = assess(trained), assess(trained, step=10)
    assert (newest["step"], older["step"]) == (20, 10)
    name = "negative ELBO, grey levels"
    assert older["measurements"][name]["value"] != newest["measurements"][name]["value"]
    with pytest.raises(ConfigError, match=r"--step 11 is not in .*; choose one of \[10, 20\]"):
        assess(trained, step=11)


def test_a_model_of_binarised_images_is_evaluated_as_well(trained: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, binarize="dynamic")
    data = trained.parent / "data"
    experiment.train(config, RunOptions(1, tmp_path / "run", "idx", data, num_devices=1))
    found = assess(tmp_path / "run", data_dir=data)
    assert found["train"]["binarize"] == "dynamic"
    assert set(found["measurements"]) == MEASURES


def test_a_run_that_was_stopped_in_its_first_epoch_can_be_evaluated(
    trained: Path, tmp_path: Path
) -> None:
    run = workdir.read_config(trained)
    data = trained.parent / "data"
    programs = build_programs(run, idx.load_directory(data))
    checkpoints.save(tmp_path / "run/checkpoints", programs.init(), run, Progress())
    workdir.claim(tmp_path / "run", run, is_new=True)
    assert assess(tmp_path / "run", data_dir=data)["step"] == 0


def test_classes_may_be_any_numbers_and_be_missing_in_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "MOST_CLASSES", 3)
    random = np.random.default_rng(0)
    train, test = (
        Dataset(random.integers(0, 256, (len(label), 5, 4, 1), np.uint8), np.array(label, np.int32))
        for label in ([5, 6, 7, 8] * 5, [6, 8] * 3)
    )
    data = tmp_path / "data"
    data.mkdir()
    write_directory(data, train, test)
    experiment.train(CONFIG, RunOptions(1, tmp_path / "run", "idx", data, num_devices=1))
    found = assess(tmp_path / "run")
    assert len(found["accuracy_by_class"]) == 9
    assert found["judge_accuracy_by_class"][5] is None
    assert found["judge_accuracy_by_class"][6]["protocol"] == "3 images"


def test_a_bound_that_is_not_finite_is_told_before_the_rest_is_measured(
    trained: Path, tmp_path: Path
) -> None:
    run, data = workdir.read_config(trained), trained.parent / "data"
    state = build_programs(run, idx.load_directory(data)).init()
    huge = state._replace(params=jax.tree.map(lambda x: x * 1e30, state.params))
    checkpoints.save(tmp_path / "run/checkpoints", huge, run, Progress())
    workdir.claim(tmp_path / "run", run, is_new=True)
    with pytest.raises(UserError, match=r"ELBO, grey levels of .*/0 is (nan|inf); choose an older"):
        assess(tmp_path / "run", data_dir=data)
    assert not (tmp_path / "run/evaluation.json").exists()


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.png"])
def test_a_folder_in_the_place_of_a_file_is_noticed_first(
    name: str, trained: Path, tmp_path: Path
) -> None:
    workdir.claim(tmp_path / "run", workdir.read_config(trained), is_new=True)
    (tmp_path / "run" / name).mkdir()
    with pytest.raises(ConfigError, match=f"{name} can't be used: .* is a folder"):
        assess(tmp_path / "run")


def test_other_data_than_the_models_is_refused(trained: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", num_train=41)
    with pytest.raises(DataError, match="trained on other data than this tiny; name them with"):
        assess(trained, data_dir=other)
    with pytest.raises(ConfigError, match="unknown dataset 'tiny'"):
        assess(trained, source="auto", data_dir=None)


def test_a_test_set_too_small_for_neighbours_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", num_test=3)
    experiment.train(CONFIG, RunOptions(1, tmp_path / "run", "idx", data, num_devices=1))
    with pytest.raises(DataError, match="tiny has 3 test images; an evaluation needs 4"):
        assess(tmp_path / "run")


def test_a_folder_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no trained model in .*scripts/train\.py --workdir"):
        assess(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_passed_over(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").parent.mkdir()
    for path, content in contents(trained).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            target.write_bytes(content)
    (folder / "checkpoints/20/run.json").write_bytes(b"")
    assert assess(folder, data_dir=trained.parent / "data")["step"] == 10
    assert "20 is damaged" in caplog.text
    (folder / "checkpoints/10/run.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        assess(folder, data_dir=trained.parent / "data")


def test_more_samples_than_fit_the_memory_are_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"--num-samples 2147483647 can't be used: .* GB"):
        assess(trained, num_samples=2**31 - 1)


def test_nothing_half_written_is_left_on_a_full_disk(trained: Path, tmp_path: Path) -> None:
    assess(trained)
    before = (trained / "evaluation.json").read_bytes()
    with mounted(tmp_path / "disk", "size=1m") as disk:
        folder = disk / "run"
        for path, content in contents(trained).items():
            if content is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
        fault_files.fill(disk)
        with pytest.raises(UserError, match=r"evaluation\.json can't be written: No space left"):
            assess(folder, data_dir=trained.parent / "data", seed=5)
        assert (folder / "evaluation.json").read_bytes() == before


def test_products_are_of_whole_float32_numbers(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = set()
    elbo_per_example = evaluation.elbo_per_example

    def spy(*arguments: Any, **options: Any) -> Any:
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        precisions.add(precision)
        return elbo_per_example(*arguments, **options)

    monkeypatch.setattr(likelihoods, "elbo_per_example", spy)
    assess(trained)
    assert precisions == {"highest"}


# As a user types it.


# The script itself, with a judge that is trained for a minute less.
START = patched_script("judge", _FEWEST_STEPS=20, _EPOCHS=0)


def test_the_command_evaluates_and_shows_how_far_it_is(trained: Path) -> None:
    arguments = ["--workdir", trained, "--source", "idx", "--data-dir", trained.parent / "data"]
    arguments += ["--num-importance-samples", 3, "--num-samples", 10]
    command = [sys.executable, "-c", START, SCRIPTS / "evaluate.py", *arguments]
    environ = {  # what the tests before have compiled will do
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,  # type: ignore[attr-defined]
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUM_CPU_DEVICES": str(NUM_DEVICES),
    }
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environ,
    )
    assert done.returncode == 0, done.stderr
    for bar in (
        "training the judge",
        "measuring distances",
        "log-likelihood",
        "training a judge on samples",
    ):
        assert f"{bar}: 100%" in done.stderr
    assert f"wrote {trained / 'evaluation.json'} and {trained / 'evaluation.png'}" in done.stdout
