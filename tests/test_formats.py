"""`cvae-jax export`: the model card, ONNX and StableHLO; `test_pth.py` has PyTorch's format."""

import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cvae_jax
from cvae_jax import api
from cvae_jax.commands import export
from cvae_jax.config import Format, Pretrained, TrainConfig
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import ConfigError, UserError
from cvae_jax.formats import FORMATS, onnx, stablehlo
from cvae_jax.models import build_model
from cvae_jax.storage import weights
from tests.helpers import run_config


def take(folder: Path, name: Pretrained = "original", **options: Any) -> None:
    """Export a model of this package."""
    export.run(export.ExportOptions(pretrained=name, directory=folder, **options))


@pytest.fixture(scope="module")
def colour() -> api.TrainedModel:
    """Return an original of odd sizes, of colour images."""
    image, label = np.zeros((3, 5, 4, 3), np.uint8), np.arange(3, dtype=np.int32)
    splits = Splits(Dataset(image, label), Dataset(image, label), num_classes=3)
    run = run_config(splits, TrainConfig(dataset="007", hidden_dim=7, latent_dim=4))
    model = build_model(run.model)
    return api.TrainedModel(Path(weights.WEIGHTS), run, model, model.init(jax.random.key(0)), ())


# The model card.


def front_matter(card: str) -> dict[str, Any]:
    yaml: Any = pytest.importorskip("yaml")  # Flax brings it
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_the_card_tells_the_hub_and_a_reader_what_the_model_is(tmp_path: Path) -> None:
    take(tmp_path)
    card = (tmp_path / "README.md").read_text()
    found = front_matter(card)
    assert (found["license"], found["library_name"]) == ("mit", "cvae_jax")
    assert found["datasets"] == ["ylecun/mnist"]
    assert {"jax", "conditional-vae"} <= set(found["tags"])
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())["measurements"]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in card.splitlines() if line[:1] == "|"]
    assert {len(row) for row in rows} == {3}
    names = [row[0].strip().replace("\\|", "|") for row in rows[2:]]
    assert names == list(evaluation)
    assert "| -log p(x\\|y), binarised | 86.21 ± 0.24 nats per image | importance samp" in card
    assert "| conditional accuracy | 95.19 ± 0.21 % | 1,000 samples of each class" in card
    assert "1,044,884 parameters" in card


def test_the_code_in_the_card_runs(tmp_path: Path) -> None:
    take(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code[0].replace('"DIR"', repr(str(tmp_path))), names)
    assert names["images"].shape == (10, 28, 28, 1)
    torch: Any = pytest.importorskip("torch", reason="no extra 'torch'")
    from benchmarks.torch_original import TorchCVAE

    names = {"model": TorchCVAE()}
    exec(code[1].replace('"DIR/', f'"{tmp_path}/'), names)
    there = names["model"].decode(torch.zeros(1, 50), torch.eye(10)[6:7]).detach()
    here = cvae_jax.load(tmp_path).decode(np.zeros((1, 50)), 6)
    np.testing.assert_allclose(here.reshape(1, -1), there, rtol=0, atol=1e-5)


def test_a_model_of_your_own_has_no_licence_and_no_figures_of_others(
    colour: api.TrainedModel, tmp_path: Path
) -> None:
    from cvae_jax.formats import safetensors

    assert "README.md" in safetensors.write(tmp_path, colour)
    card = (tmp_path / "README.md").read_text()
    found = front_matter(card)
    assert (found["license"], found["datasets"]) == ("unknown", ["007"])
    assert "It has not been measured" in card
    assert "# (10, 5, 4, 3), pixel means" in card


def test_a_readme_of_your_own_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("mine")
    take(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert f"{tmp_path / 'README.md'} stays as it is" in capsys.readouterr().out
    (tmp_path / "README.md").unlink()
    take(tmp_path)
    take(tmp_path, "best", dtype="float16")
    assert "float16 in the file" in (tmp_path / "README.md").read_text()


# ONNX.


def check_onnx(folder: Path, model: api.TrainedModel) -> None:
    """Compare both files with the model, in ONNX's own evaluator and in onnxruntime."""
    package: Any = pytest.importorskip("onnx", reason="no extra 'onnx'")
    reference: Any = pytest.importorskip("onnx.reference")
    runtime: Any = pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    shape, num_classes = model.run.image_shape, model.run.num_classes
    for file in ("decoder.onnx", "encoder.onnx"):
        package.checker.check_model(str(folder / file), full_check=True)
        runners = [
            reference.ReferenceEvaluator(str(folder / file)),
            runtime.InferenceSession(folder / file, providers=["CPUExecutionProvider"]),
        ]
        for number in (1, 13):
            label = random.integers(0, num_classes, number)
            if file == "decoder.onnx":
                latent = random.standard_normal((number, model.model.latent_dim), np.float32)
                inputs, expected = {"latent": latent}, [model.decode(latent, label)]
            else:
                image = random.random((number, *shape), np.float32)
                inputs = {"image": image}
                mean = model.encode(image, label)
                arrays = map(jnp.asarray, (image, label, np.ones_like(mean)))
                expected = [mean, np.asarray(model.model.autoencode(model.params, *arrays).latent)]
            for runner in runners:
                found = runner.run(None, inputs | {"label": label})
                if file == "encoder.onnx":
                    found = [found[0], found[0] + np.exp(found[1] / 2)]  # mean and logvar
                for one, other in zip(found, expected, strict=True):
                    assert one.shape == other.shape
                    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


# ONNX's own sigmoid computes both of its forms and takes the one that did not overflow.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_onnx_computes_what_jax_does(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="no extra 'onnx'")
    take(tmp_path, format="onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    check_onnx(tmp_path, cvae_jax.load("original"))


def test_onnx_of_other_sizes_and_colours(colour: api.TrainedModel, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="no extra 'onnx'")
    onnx.write(tmp_path, colour)
    check_onnx(tmp_path, colour)


# StableHLO.


@pytest.mark.parametrize("name", ["original", "best"])
def test_stablehlo_computes_what_the_model_does(name: Pretrained, tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers", reason="no extra 'stablehlo'")
    take(tmp_path, name, format="stablehlo")
    model, version = cvae_jax.load(name), jax.__version__
    files = [tmp_path / f"{part}.jax-{version}.stablehlo" for part in ("decoder", "encoder")]
    assert sorted(tmp_path.iterdir()) == files
    decoder, encoder = (jax.export.deserialize(bytearray(file.read_bytes())) for file in files)
    assert decoder.platforms == encoder.platforms == stablehlo.PLATFORMS
    random = np.random.default_rng(0)
    for number in (1, 3):
        label = random.integers(0, 10, number).astype(np.int32)
        latent = random.standard_normal((number, model.model.latent_dim), np.float32)
        image = np.asarray(decoder.call(latent, label))
        np.testing.assert_allclose(image, model.decode(latent, label), rtol=0, atol=1e-5)
        again = np.asarray(encoder.call(image, label))
        np.testing.assert_allclose(again, model.encode(image, label), rtol=0, atol=1e-5)


# What can't be written.


@pytest.mark.parametrize("name", ["pth", "onnx"])
def test_a_format_that_is_not_made_for_a_model_names_those_that_are(
    name: Format, tmp_path: Path
) -> None:
    message = f"^--format {name} is not made for --model conv with --prior flow; choose "
    with pytest.raises(ConfigError, match=f"{message}safetensors or stablehlo$"):
        take(tmp_path, "best", format=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("pth", "torch", "torch"),
        ("onnx", "onnx", "onnx"),
        ("stablehlo", "flatbuffers", "stablehlo"),
    ],
)
def test_a_missing_package_names_its_extra(
    name: Format, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"^{package} is needed .* 'cvae_jax\[{extra}\]'$"):
        take(tmp_path, format=name)


def test_every_format_is_a_choice_of_the_command() -> None:
    assert set(FORMATS) == set(get_args(Format))
    with pytest.raises(ConfigError, match="--format 'h5' can't be used; choose safetensors or pth"):
        export.ExportOptions(directory=Path("x"), format="h5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--format onnx takes no --dtype"):
        export.ExportOptions(directory=Path("x"), format="onnx", dtype="float16")
