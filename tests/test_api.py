from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import cvae_jax
from cvae_jax.data.dataset import Splits
from cvae_jax.errors import CheckpointError, ConfigError
from tests.helpers import assert_trees_equal


@pytest.fixture(scope="module")
def trained(
    small_splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> cvae_jax.TrainedModel:
    folder = tmp_path_factory.mktemp("run")
    return cvae_jax.train(
        small_splits,
        epochs=15,
        learning_rate=5e-3,
        workdir=str(folder),
        hidden_dim=64,
        latent_dim=8,
        num_devices=1,
    )


def test_training_prints_nothing_and_returns_what_load_returns(
    small_splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "workdir": tmp_path,
        "hidden_dim": 8,
        "latent_dim": 2,
        "num_devices": 1,
    }
    trained = cvae_jax.train(small_splits, epochs=2, checkpoint_every=1, **settings)
    assert capsys.readouterr() == ("", "")
    loaded = cvae_jax.load(tmp_path)
    assert_trees_equal(trained.params, loaded.params)
    assert (loaded.run, len(loaded.history)) == (trained.run, 2)
    assert len(cvae_jax.load(tmp_path, step=8).history) == 1


def test_samples_are_a_function_of_class_number_and_seed(trained: cvae_jax.TrainedModel) -> None:
    images = trained.sample(6)
    assert images.shape == (10, 28, 28, 1)
    assert images.dtype == np.float32
    assert 0 <= images.min() < 0.1 < images.max() <= 1
    np.testing.assert_array_equal(trained.sample(6, num=4, seed=0), images[:4])
    assert (trained.sample(6, seed=1) != images).any()
    np.testing.assert_allclose(trained.sample([3, 6])[1], images[1], atol=1e-6)


def test_a_second_sample_of_the_same_size_compiles_nothing(
    trained: cvae_jax.TrainedModel,
) -> None:
    trained.sample(3, num=12)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled: list[str] = []
        patch.setattr(jax.stages.Lowered, "compile", lambda *_: compiled.append("compiled"))
        trained.sample(4, num=12, seed=5)
        assert not compiled


def test_encode_and_decode_reconstruct(
    trained: cvae_jax.TrainedModel, small_splits: Splits
) -> None:
    image, label = small_splits.train.image[:20], small_splits.train.label[:20]
    latent = trained.encode(image, label)
    assert latent.shape == (20, 8)
    again = trained.decode(latent, label)
    assert again.shape == (20, 28, 28, 1)
    errors = ((image / 255 - again) ** 2).mean(axis=(1, 2, 3))
    others = ((image / 255 - np.roll(again, 1, axis=0)) ** 2).mean(axis=(1, 2, 3))
    assert errors.mean() < others.mean()
    # One image comes back as one, whether it is (H, W) uint8 or (H, W, C) float.
    one = trained.encode(image[0, ..., 0], int(label[0]))
    np.testing.assert_allclose(one, latent[0], atol=1e-5)
    float_one = trained.encode(image[0] / 255, int(label[0]))
    np.testing.assert_allclose(float_one, latent[0], atol=1e-5)
    assert trained.decode(one, 7).shape == (28, 28, 1)


def test_log_likelihood_is_tighter_than_the_bound_and_of_each_image(
    trained: cvae_jax.TrainedModel, small_splits: Splits
) -> None:
    image = (small_splits.test.image[:30] > 127).astype(np.float32)
    label = small_splits.test.label[:30]
    one, many = (trained.log_likelihood(image, label, num_samples=k) for k in (1, 200))
    assert many.shape == (30,)
    assert many.mean() > one.mean()
    alone = trained.log_likelihood(image[0], label[0], num_samples=200)
    assert alone == pytest.approx(many[0], rel=1e-5)
    wrong = trained.log_likelihood(image, (label + 1) % 10, num_samples=200)
    assert wrong.mean() < many.mean()


def test_wrong_arguments_are_named(trained: cvae_jax.TrainedModel, tmp_path: Path) -> None:
    image = np.zeros((20, 28, 28))
    for call, message in (
        (lambda: trained.sample(10), "no class 10; choose 0 to 9"),
        (lambda: trained.sample(0, num=0), "num 0 can't be used"),
        (lambda: trained.sample(0, seed=-1), "seed -1 can't be used"),
        (lambda: trained.encode(np.zeros((27, 28)), 0), r"shape \(27, 28\) don't fit"),
        (lambda: trained.encode(image[:0], 0), r"shape \(0, 28, 28\) don't fit"),
        (lambda: trained.encode(image, [1, 2, 3]), r"shape \(3,\) don't fit 20 images"),
        (lambda: trained.encode(np.full((28, 28), 255), 0), "uint8"),
        (lambda: trained.decode(np.zeros((2, 4)), 0), r"shape \(2, 4\) don't fit"),
        (lambda: trained.log_likelihood(image, 0, num_samples=0), "num_samples 0 can't be used"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ConfigError, match="cvae-jax train --workdir"):
        cvae_jax.load(tmp_path)
    with pytest.raises(ConfigError, match=r"--step 7 is not in .* choose one of \[80, 120\]"):
        cvae_jax.load(trained.checkpoint.parents[1], step=7)


def test_settings_of_another_type_are_refused_before_anything_is_written(
    small_splits: Splits, tmp_path: Path
) -> None:
    for name, value in (("seed", 1.5), ("latent_dim", 2.0), ("epochs", "3"), ("epochs", None)):
        settings: dict[str, Any] = {"workdir": tmp_path / "run", name: value}
        with pytest.raises(ConfigError, match=f"{name} {value!r} can't be used; it must be int"):
            cvae_jax.train(small_splits, **settings)
    with pytest.raises(TypeError, match="no setting latents"):
        cvae_jax.train("mnist", latents=3)
    with pytest.raises(TypeError, match="not int"):
        cvae_jax.train(3)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    # The numbers of a sweep are often NumPy's.
    settings = {"hidden_dim": np.int64(8), "learning_rate": np.float32(1e-2), "num_devices": 1}
    model = cvae_jax.train(small_splits, epochs=1, workdir=tmp_path / "run", **settings)
    assert model.run.train.hidden_dim == 8


def test_a_damaged_step_is_refused_where_it_is_asked_for(
    small_splits: Splits, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "workdir": tmp_path,
        "hidden_dim": 8,
        "latent_dim": 2,
        "num_devices": 1,
    }
    cvae_jax.train(small_splits, epochs=2, checkpoint_every=1, **settings)
    (tmp_path / "checkpoints" / "16" / "run.json").unlink()
    assert cvae_jax.load(tmp_path).checkpoint.name == "8"
    with pytest.raises(CheckpointError, match="16 is damaged"):
        cvae_jax.load(tmp_path, step=16)


def test_every_public_name_exists() -> None:
    for name in cvae_jax.__all__:
        assert getattr(cvae_jax, name).__doc__
    assert set(cvae_jax.__all__) <= set(dir(cvae_jax))
