"""`cvae-jax page` and what it measures; `test_play_page.py` opens the page in a browser."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cvae_jax
from cvae_jax.commands.page import PageOptions, run
from cvae_jax.config import DataOptions, ModelConfig
from cvae_jax.data.dataset import Splits
from cvae_jax.drawing.play_page import measure
from cvae_jax.errors import ConfigError, UserError
from cvae_jax.models import build_model
from tests.helpers import SMALL


@pytest.fixture(scope="module")
def trained(small_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workdir of a small model that was trained on a part of MNIST."""
    folder = tmp_path_factory.mktemp("trained")
    cvae_jax.train(small_splits, epochs=1, workdir=folder, hidden_dim=32, latent_dim=5)
    return folder


def write(**options: Any) -> None:
    run(PageOptions(**options))


def test_a_page_is_written_into_the_workdir(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(workdir=trained)
    page = (trained / "play.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "arrays, model mlp, 52,154 parameters" in page
    assert "{{" not in page.partition("<script")[0]
    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"model: {trained}/checkpoints/8"
    assert output[-1] == f"wrote {trained}/play.html, 0.2 MB; open it in a browser"


def test_samples_stand_in_for_test_images_that_are_not_there(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(workdir=trained, out=tmp_path / "new" / "a.html")
    assert '"usual_bound":null' in (tmp_path / "new" / "a.html").read_text("utf-8")
    output = capsys.readouterr().out
    assert "the model's own samples stand in for test images" in output


def test_the_test_images_of_the_data_set_are_encoded(
    mnist: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Trained on all of MNIST, in one short epoch.
    cvae_jax.train(
        mnist, dataset="mnist", epochs=1, workdir=tmp_path, batch_size=2000, hidden_dim=8
    )
    write(workdir=tmp_path)
    assert "stand in" not in capsys.readouterr().out


def test_they_do_not_stand_in_for_a_data_set_whose_place_was_given(
    trained: Path, tmp_path: Path
) -> None:
    data = DataOptions(source="idx", data_dir=tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}"):
        write(workdir=trained, out=tmp_path / "a.html", data=data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "most"), [("original", 3e6), ("best", 5e6)])
def test_a_page_of_a_pretrained_model_is_small(
    name: Any, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(pretrained=name)
    assert 2e6 < (tmp_path / "play.html").stat().st_size < most


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"workdir": Path("nowhere")}, "no trained model in nowhere; use --pretrained best, "),
        ({"out": Path("a.png")}, "--out a.png can't be used; choose a name that ends in .html"),
        ({"step": -1}, "--step -1 can't be used"),
        ({"step": 7}, r"--step 7 is not in .*; choose one of \[8\]"),
        ({"out": Path("~nobody-here/a.html")}, "--out ~nobody-here/a.html can't be used"),
    ],
    ids=str,
)
def test_what_there_is_not_is_refused(
    options: dict[str, Any], expected: str, trained: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{expected}"):
        write(**{"workdir": trained} | options)


@pytest.mark.parametrize("name", ["file/a.html", "x" * 300 + ".html"], ids=["folder", "long"])
def test_a_page_that_cannot_be_written_is_one_line(
    name: str, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(UserError, match=r"can't be written: (Not a dir|File exists|File name too)"):
        write(workdir=trained, out=tmp_path / name)
    assert (tmp_path / "file").read_bytes() == b"old"


def examples(mnist: Splits, number: int) -> tuple[np.ndarray, np.ndarray]:
    image, label = (np.asarray(array[:number]) for array in mnist.test)
    return image / np.float32(255), label


def test_what_is_measured_of_mnist(mnist: Splits) -> None:
    model = build_model(SMALL)
    facts = measure(model, model.init(jax.random.key(0)), *examples(mnist, 200))
    assert facts.box == 20
    assert 0.6 < facts.width < 0.8
    assert facts.is_ink
    assert facts.hands.shape == (2, 5)
    assert np.abs(facts.hands[0] - facts.hands[1]).max() > 0


def test_directions_are_the_dimensions_by_their_kl(mnist: Splits) -> None:
    model = build_model(SMALL)
    params = model.init(jax.random.key(0))
    # The encoder's means grow from dimension to dimension; that of the first is zero.
    kernel = params["encoder_moments"]["kernel"] * jnp.asarray([[0, 20, 25, 30, 35, 0, 0, 0, 0, 0]])
    params = params | {"encoder_moments": {"kernel": kernel, "bias": jnp.zeros(10)}}
    image, label = examples(mnist, 200)
    facts = measure(model, params, image, label)
    noise = jnp.zeros((200, 5))
    kl = model.autoencode(params, jnp.asarray(image), jnp.asarray(label), noise).kl.mean(axis=0)
    order = np.argsort(-np.asarray(kl))[:-1]  # the first dimension carries nothing
    assert 0 not in order
    np.testing.assert_allclose(facts.kl, np.asarray(kl)[order], rtol=1e-5)
    np.testing.assert_array_equal(facts.direction, np.eye(5)[order])


def test_with_a_learnt_prior_they_are_principal_components(mnist: Splits) -> None:
    # A flow starts as a permutation, and so q(z | x, y) is normal and known.
    config = ModelConfig((28, 28, 1), 10, prior="flow", hidden_dim=32, latent_dim=5)
    model = build_model(config)
    params = model.init(jax.random.key(0))
    layer = params["base"]["encoder_moments"]
    bias = layer["bias"].at[5:].set(jnp.log(jnp.asarray([0.05, 0.1, 0.2, 0.4, 0.8])))
    params["base"]["encoder_moments"] = {"kernel": layer["kernel"] * 10, "bias": bias}
    image, label = examples(mnist, 1000)
    facts = measure(model, params, image, label)
    arrays = jnp.asarray(image), jnp.asarray(label)
    mean = model.autoencode(params, *arrays, jnp.zeros((1000, 5))).latent
    std = model.autoencode(params, *arrays, jnp.ones((1000, 5))).latent - mean
    np.testing.assert_allclose(facts.direction @ facts.direction.T, np.eye(5), atol=1e-5)
    covariance = facts.direction @ np.cov(np.asarray(mean).T) @ facts.direction.T
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-5)
    along = np.asarray(mean) @ facts.direction.T
    variance = np.asarray(std**2) @ facts.direction.T**2
    kl = 0.5 * (along**2 + variance - 1 - np.log(variance)).mean(axis=0)
    np.testing.assert_allclose(facts.kl, kl, rtol=0.05, atol=0.05)
    assert (np.diff(facts.kl) <= 0).all()
