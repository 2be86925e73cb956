import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.image import imread

import cvae_jax
from cvae_jax.commands import train_judge
from cvae_jax.commands.evaluate import EvaluateOptions, run
from cvae_jax.config import DataOptions
from cvae_jax.errors import CheckpointError, ConfigError, DataError, UserError
from cvae_jax.evaluation import judge
from cvae_jax.evaluation.measures import MEASURES
from cvae_jax.storage import checkpoints
from cvae_jax.storage.history import Progress
from tests.helpers import write_data


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the judges of this module in a folder of its own, and return it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "_FEWEST_STEPS", 100)  # enough for judges whose verdict does not count
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "cvae_jax"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workdir with two checkpoints of a very small model; its data are beside it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_data(folder / "data")
    train(folder / "run", data, epochs=2, batch_size=4, checkpoint_every=1)
    return folder / "run"


def train(folder: Path, data: Path, **settings: Any) -> None:
    settings = {"epochs": 1, "hidden_dim": 3, "latent_dim": 2, "num_devices": 1} | settings
    cvae_jax.train("tiny", workdir=folder, source="idx", data_dir=data, **settings)


def evaluate(folder: Path, *measures: str, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "num_importance_samples": 7,
        "num_samples": 10,
        "measures": measures or tuple(MEASURES),
        "data": DataOptions("idx", folder.parent / "data"),
    }
    run(EvaluateOptions(workdir=folder, **(given | options)))
    out = options.get("out") or folder
    found: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return found


def test_all_measures_of_any_data_set_whose_judge_is_trained_once_and_kept(
    trained: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(trained, "accuracy")
    assert "training the judge: 100%" in capsys.readouterr().err
    (kept,) = cache.iterdir()
    assert kept.name.startswith("judge-1-")
    found = evaluate(trained)
    assert found["step"] == 20
    assert found["train"]["latent_dim"] == 2
    assert len(found["measurements"]) == 21
    output = capsys.readouterr()
    assert max(map(len, output.out.split("\nwrote")[0].splitlines()[2:])) <= 100
    for name, one in found["measurements"].items():
        assert np.isfinite(one["value"])
        assert one["protocol"]
        has_no_error = name == "active units" or one["interval"] is not None
        assert (one["standard_error"] is None) == has_no_error
        assert f"\n{name} " in output.out
    # Classes may be any numbers, and be missing in the test set.
    confusion = np.array(found["confusion"])
    np.testing.assert_array_equal(confusion.sum(axis=1), [0] * 5 + [10] * 4)
    accuracy = found["measurements"]["conditional accuracy"]["value"]
    assert accuracy == np.trace(confusion) / 40
    assert found["judge_accuracy_by_class"][5] is None
    assert "4 images" in found["judge_accuracy_by_class"][6]["protocol"]
    kl = found["measurements"]["KL, grey levels"]["value"]
    assert sum(found["kl_by_dimension"]) == pytest.approx(kl, rel=1e-5)
    assert found["latent_use"] in output.out.replace("\n", " ")
    picture = np.asarray(imread(trained / "evaluation.png"))
    assert picture.shape[0] > 1500
    assert picture.std() > 0.05
    assert "training the judge" not in output.err
    for bar in ("training a judge on samples", "measuring distances"):
        assert f"{bar}: " in output.err
    assert f"wrote {trained / 'evaluation.json'} and {trained / 'evaluation.png'}" in output.out


def test_a_quick_look_says_what_it_leaves_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(trained, quick=True, out=tmp_path / "new/folder")
    assert len(found["measurements"]) == 20
    assert "classification accuracy score" not in found["measurements"]
    assert found["quick"]
    output = capsys.readouterr().out.replace("\n", " ")
    assert "without classification;" in output
    assert "Measured on 8 random test images" in output
    assert "the likelihood with K = 7" in output


def test_a_quick_look_is_of_a_thousand_images(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", num_test=1200)
    train(tmp_path / "run", data)
    found = evaluate(
        tmp_path / "run", "elbo", "likelihood", quick=True, num_importance_samples=5000
    )["measurements"]
    assert found["negative ELBO, binarised"]["protocol"].startswith("1,000 test images")
    assert "K = 500, 1,000 test images" in found["-log p(x|y), binarised"]["protocol"]


def test_equal_seeds_give_equal_figures(trained: Path) -> None:
    names = ("elbo", "likelihood", "latent")
    first, again, other = (
        evaluate(trained, *names, seed=seed)["measurements"] for seed in (0, 0, 1)
    )
    assert first == again
    assert len(first) == 8
    assert other["KL, grey levels"] == first["KL, grey levels"]
    assert other["active units"] == first["active units"]
    for name in ("negative ELBO, grey levels", "-log p(x|y), binarised", "KL, binarised"):
        assert other[name]["value"] != first[name]["value"]


def test_any_checkpoint_can_be_asked_for(trained: Path) -> None:
    older = evaluate(trained, "latent", step=10)
    assert older["step"] == 10
    assert list(older["measurements"]) == ["active units"]
    with pytest.raises(ConfigError, match=r"--step 11 is not in .*; choose one of \[10, 20\]"):
        evaluate(trained, step=11)


def test_a_model_of_binarised_images_is_looked_at_with_binarised_ones(
    trained: Path, tmp_path: Path
) -> None:
    train(tmp_path, trained.parent / "data", binarize="dynamic")
    found = evaluate(tmp_path, "latent", data=DataOptions("idx", trained.parent / "data"))
    assert found["measurements"]["active units"]["protocol"].endswith("8 test images, binarised")


def test_a_bound_that_is_not_finite_ends_in_an_error_and_without_files(
    trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.png", "evaluation*"))
    model = cvae_jax.load(folder, step=10)
    huge = jax.tree.map(lambda leaf: leaf * 1e30, model.params)
    shutil.rmtree(folder / "checkpoints")
    state = {"step": np.int32(0), "params": huge, "opt_state": ()}
    checkpoints.save(folder / "checkpoints", state, model.run, Progress())
    with pytest.raises(UserError, match=r"ELBO, grey levels of the model is (nan|inf)"):
        evaluate(folder, data=DataOptions("idx", trained.parent / "data"))
    assert sorted(path.name for path in folder.iterdir() if "evaluation" in path.name) == []


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    expected = "file/evaluation.json can't be written: .*; choose another folder with --out"
    with pytest.raises(UserError, match=expected):
        evaluate(trained, out=tmp_path / "file")
    assert "measuring" not in capsys.readouterr().err


def test_other_data_than_the_models_is_refused(trained: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", num_train=41)
    with pytest.raises(DataError, match="trained on other data than this tiny; name them with"):
        evaluate(trained, data=DataOptions("idx", other))


def test_a_test_set_too_small_for_neighbours_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", write_data(tmp_path / "data", num_test=3))
    with pytest.raises(DataError, match="tiny has 3 test images; an evaluation needs 4"):
        evaluate(tmp_path / "run")


def test_a_damaged_checkpoint_is_passed_over(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, data = tmp_path / "run", DataOptions("idx", trained.parent / "data")
    shutil.copytree(trained, folder)
    (folder / "checkpoints/20/run.json").write_bytes(b"")
    assert evaluate(folder, "latent", data=data)["step"] == 10
    assert "20 is damaged" in caplog.text
    (folder / "checkpoints/10/run.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        evaluate(folder, "latent", data=data)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"measures": ("elbo", "fid")}, "--measures fid can't be used; choose some of elbo, like"),
        ({"measures": ()}, "--measures  can't be used; choose some of elbo"),
        ({"num_samples": 9}, "--num-samples 9 can't be used; choose a whole number from 10 to"),
        ({"num_importance_samples": 0}, "--num-importance-samples 0 can't be used"),
        ({"step": -1}, "--step -1 can't be used"),
    ],
    ids=str,
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^{expected}"):
        EvaluateOptions(**options)


def test_the_judge_of_a_data_set_can_be_trained_into_a_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataOptions("idx", trained.parent / "data")
    options = train_judge.JudgeOptions(tmp_path / "judge.npz", "tiny", data)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="can't be written"):
        train_judge.run(dataclasses.replace(options, out=tmp_path / "file/judge.npz"))
    train_judge.run(options)
    with np.load(tmp_path / "judge.npz", allow_pickle=False) as arrays:
        assert str(arrays["data_sha256"]) == cvae_jax.load(trained).run.data_sha256
        assert arrays["Dense_1.bias"].shape == (9,)
    assert "judge.npz; " in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"choose a name that ends in \.npz"):
        train_judge.JudgeOptions(tmp_path / "judge")
