"""Checkpoints of the PyTorch original: imported and trained on, exported and trained on there."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import cvae_jax
from cvae_jax.commands import export, import_, sample
from cvae_jax.config import PRETRAINED, DataOptions, RunConfig
from cvae_jax.data.batches import Batch
from cvae_jax.data.dataset import Splits
from cvae_jax.errors import CheckpointError, ConfigError, UserError
from cvae_jax.formats import pth
from cvae_jax.models import build_model
from cvae_jax.noise import batch_noise
from cvae_jax.storage import weights, workdir
from cvae_jax.training.optimizer import build_optimizer
from cvae_jax.training.step import TrainState, train_step
from tests.helpers import final_state, read_metrics, write_data
from tests.test_cli import python

original = pytest.importorskip("benchmarks.torch_original", reason="no extra 'torch'")
torch: Any = pytest.importorskip("torch")

TINY: dict[str, Any] = {"hidden_dim": 7, "latent_dim": 3, "num_pixels": 20, "num_classes": 9}
NUM_FURTHER = 5  # steps


def one_hot(label: np.ndarray, num_classes: int) -> Any:
    return torch.nn.functional.one_hot(torch.tensor(label).long(), num_classes).float()


def train_original(
    path: Path,
    splits: Splits,
    *,
    batch_size: int,
    num_epochs: int = 2,
    start: Path | None = None,
    learning_rate: float = 1e-3,
    **sizes: int,
) -> Path:
    """Train the original, and save its checkpoint as it does."""
    torch.manual_seed(0)
    module = original.TorchCVAE(**sizes)
    if start:
        arrays = {name: torch.tensor(array) for name, array in load_file(start).items()}
        module.load_state_dict(arrays)
    optimizer = original.make_optimizer(module, learning_rate)
    for _ in range(num_epochs):
        for first in range(0, len(splits.train.label), batch_size):
            image, label = (np.asarray(one[first : first + batch_size]) for one in splits.train)
            image = torch.tensor(image).float() / 255
            original.train_step(module, optimizer, image, torch.tensor(label))
    content = {
        "epoch": num_epochs,
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(content, path)
    return path


def assert_both_go_on_alike(file: Path, state: TrainState, run: RunConfig, splits: Splits) -> None:
    """Take five further steps from a checkpoint in PyTorch and from a state in JAX."""
    content = torch.load(file, weights_only=True)
    num_pixels, num_classes = int(np.prod(run.image_shape)), run.num_classes
    latent_dim = run.train.latent_dim
    module = original.TorchCVAE(num_pixels, run.train.hidden_dim, latent_dim, num_classes)
    module.load_state_dict(content["model_state_dict"])
    theirs = torch.optim.Adam(module.parameters())
    theirs.load_state_dict(content["optimizer_state_dict"])
    model, ours = build_model(run.model), build_optimizer(run.train, 1)
    key = jax.random.key(3)
    step = jax.jit(partial(train_step, model=model, optimizer=ours))
    size = min(128, len(splits.train.label) // NUM_FURTHER)
    drawn = np.arange(20) % num_classes
    latent = jax.random.normal(key, (len(drawn), latent_dim))

    def require_same_pixels() -> None:
        with torch.no_grad():
            there = module.decode(torch.tensor(np.array(latent)), one_hot(drawn, num_classes))
        here = jax.nn.sigmoid(model.decode(state.params, latent, jnp.asarray(drawn)))
        np.testing.assert_allclose(here.reshape(there.shape), there, rtol=0, atol=1e-5)

    require_same_pixels()
    for first in range(0, NUM_FURTHER * size, size):
        image, label = (np.asarray(one[first : first + size]) for one in splits.train)
        image = image.astype(np.float32) / 255
        noise = batch_noise(jax.random.fold_in(key, state.step), size, latent_dim)
        batch = Batch(jnp.asarray(image), jnp.asarray(label), jnp.ones(size))
        state, sums = step(state, batch, key)
        terms = original.loss_terms(
            module, torch.tensor(image), one_hot(label, num_classes), torch.tensor(np.array(noise))
        )
        theirs.zero_grad()
        sum(terms).backward()
        theirs.step()
        np.testing.assert_allclose(sums.loss, sum(terms).item(), rtol=1e-5)
    require_same_pixels()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "idx")


@pytest.fixture(scope="module")
def tiny(data: Path) -> Splits:
    return cvae_jax.load_dataset("tiny", source="idx", data_dir=data)


@pytest.fixture(scope="module")
def checkpoint(data: Path, tiny: Splits) -> Path:
    """Write an original's checkpoint after two epochs of three batches, of other sizes."""
    return train_original(data / "x.pth", tiny, batch_size=16, learning_rate=2e-3, **TINY)


def take(path: Path, folder: Path, images: Path, **options: Any) -> None:
    """Import a checkpoint of the tiny data set."""
    source = DataOptions("idx", images)
    options = {"dataset": "tiny", "batch_size": 16, "data": source, **options}
    import_.run(import_.ImportOptions(file=path, workdir=folder, **options))


# From PyTorch.


def test_a_checkpoint_of_the_original_goes_on_here_as_there(mnist: Splits, tmp_path: Path) -> None:
    start = PRETRAINED / "original" / weights.WEIGHTS
    size = 20_000
    path = train_original(tmp_path / "x.pth", mnist, batch_size=size, num_epochs=1, start=start)
    folder = tmp_path / "imported"
    import_.run(import_.ImportOptions(file=path, workdir=folder, batch_size=size))
    run = workdir.read_config(folder)
    assert_both_go_on_alike(path, final_state(folder, mnist, run.train), run, mnist)
    image, label = (np.asarray(one[:100]) for one in mnist.test)
    there = torch.load(path, weights_only=True)["model_state_dict"]
    module = original.TorchCVAE()
    module.load_state_dict(there)
    with torch.no_grad():
        mean, _ = module.encode(torch.tensor(image).float() / 255, one_hot(label, 10))
    here = cvae_jax.load(folder).encode(image, label)
    np.testing.assert_allclose(here, mean, rtol=0, atol=1e-5)


def test_other_sizes_and_settings_go_on_too(
    checkpoint: Path, data: Path, tiny: Splits, tmp_path: Path
) -> None:
    take(checkpoint, tmp_path, data)
    run = workdir.read_config(tmp_path)
    assert (run.train.hidden_dim, run.train.latent_dim, run.train.learning_rate) == (7, 3, 2e-3)
    assert_both_go_on_alike(checkpoint, final_state(tmp_path, tiny, run.train), run, tiny)


def test_an_imported_run_trains_on_by_the_command_that_is_printed(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "imported"
    take(checkpoint, folder, data)
    found = capsys.readouterr().out
    assert f"wrote {folder}, a run after 2 epochs, 6 steps" in found
    command = next(line for line in found.splitlines() if line.startswith("to train on: "))
    assert command.endswith(f" --source idx --data-dir {data} --epochs 4")
    arguments = command.removeprefix("to train on: cvae-jax ").split()
    way = sample.WayOptions(film=True)
    with pytest.raises(UserError, match="a film needs the sample grids of two epochs"):
        sample.run(sample.SampleOptions(workdir=folder, way=way))

    from cvae_jax.commands.cli import main

    main(arguments[0], [*arguments[1:-1], "2"])  # nothing left to do
    assert not (folder / "loss.png").exists()
    main(arguments[0], [*arguments[1:], "--sample-every", "1"])
    assert "resuming after epoch 2" in capsys.readouterr().out
    rows = read_metrics(folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [("3", "9"), ("4", "12")]
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["epoch_003.png", "epoch_004.png"]
    model = cvae_jax.load(folder)
    assert (model.step, [row.epoch for row in model.history]) == (12, [3, 4])
    sample.run(sample.SampleOptions(workdir=folder, way=way))
    record = json.loads((folder / "checkpoints" / "12" / "run.json").read_text())
    assert record["progress"]["epochs_before"] == 2


def test_weights_alone_are_drawn_from(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save({"model_state_dict": content["model_state_dict"]}, tmp_path / "x.pth")
    take(tmp_path / "x.pth", tmp_path / "imported", data)
    assert "training can't go on from them" in capsys.readouterr().out
    model = cvae_jax.load(tmp_path / "imported")
    found = weights.to_names(model.run, model.params)
    for name, tensor in content["model_state_dict"].items():
        np.testing.assert_array_equal(found[name], tensor)


def test_a_folder_with_a_model_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    take(checkpoint, tmp_path, data)
    with pytest.raises(ConfigError, match=f"^--workdir {tmp_path} holds a model; name another"):
        take(checkpoint, tmp_path, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 8},
            "6 steps in 2 epochs, .* with --batch-size 8 make 10; --batch-size 14 fits",
        ),
        ({"dataset": "mnist", "data": DataOptions()}, "20 pixels in 9 .* mnist have 784 in 10;"),
    ],
)
def test_another_data_set_or_batch_size_is_named(
    checkpoint: Path, data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        take(checkpoint, tmp_path, data, **options)


Content = dict[str, Any]


def group(content: Content) -> Content:
    found: Content = content["optimizer_state_dict"]["param_groups"][0]
    return found


def sgd(content: Content) -> None:
    optimizer = torch.optim.SGD(list(content["model_state_dict"].values()), lr=0.1)
    content["optimizer_state_dict"] = optimizer.state_dict()


def set_state(kind: str, value: Any) -> Callable[[Content], object]:
    return lambda content: content["optimizer_state_dict"]["state"][3].update({kind: value})


def set_layer(name: str, value: Any) -> Callable[[Content], object]:
    return lambda content: content["model_state_dict"].update({name: value})


UNFIT: dict[str, tuple[Callable[[Content], object], str]] = {
    "no weights": (lambda content: content.pop("model_state_dict"), "no model_state_dict"),
    "bare weights": (
        lambda content: [content.update(content.pop("model_state_dict"))],
        "no model_state_dict",
    ),
    "no epoch": (lambda content: content.pop("epoch"), "it has no epoch"),
    "epoch": (lambda content: content.update(epoch="x"), "its epoch is 'x'"),
    "a layer more": (set_layer("fc6.bias", torch.zeros(1)), "fc6.bias, and not fc1 to fc5"),
    "shape": (set_layer("fc4.bias", torch.zeros(8)), r"fc4.bias has the shape \(8,\), not \(7,\)"),
    "type": (set_layer("fc4.bias", torch.zeros(7).double()), "fc4.bias is torch.float64"),
    "NaN": (set_layer("fc4.bias", torch.full((7,), torch.nan)), "fc4.bias is not finite"),
    "average": (set_state("exp_avg", torch.zeros(2)), r"fc2.bias has the shape \(2,\), not \(3,\)"),
    "steps": (set_state("step", torch.tensor(5.0)), r"optimizer's steps are \[5.0, 6.0\]"),
    "SGD": (sgd, "its optimizer has betas False; Adam goes on"),
    "amsgrad": (lambda content: group(content).update(amsgrad=True), "has amsgrad True; .* False"),
    "betas": (lambda content: group(content).update(betas=(0.5, 0.9)), r"betas \(0.5, 0.9\); "),
    "schedule": (lambda content: group(content).update(initial_lr=1.0), "has initial_lr 1.0"),
    "groups": (
        lambda content: content["optimizer_state_dict"]["param_groups"].append({}),
        "not one group of the ten parameters",
    ),
    "rate": (lambda content: group(content).update(lr=-1.0), "--learning-rate -1.0 can't be used"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_can_not_go_on_here_is_named(
    name: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    change, message = UNFIT[name]
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises((CheckpointError, ConfigError), match=message) as found:
        take(tmp_path / "x.pth", tmp_path / "imported", data)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "imported").exists()


# To PyTorch.


def test_a_run_goes_on_there_as_here(small_splits: Splits, tmp_path: Path) -> None:
    settings: Any = {"hidden_dim": 32, "latent_dim": 5, "num_devices": 1}
    model = cvae_jax.train(small_splits, epochs=2, workdir=tmp_path, **settings)
    options: Any = {"workdir": tmp_path, "directory": tmp_path, "format": "pth"}
    export.run(export.ExportOptions(**options))
    state = final_state(tmp_path, small_splits, model.run.train)
    assert_both_go_on_alike(tmp_path / pth.FILE, state, model.run, small_splits)


def assert_equal(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert list(left) == list(right)
        for name in left:
            assert_equal(left[name], right[name])
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right


def test_there_and_back_is_the_same_to_the_bit(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    take(checkpoint, tmp_path / "here", data)
    options: Any = {"workdir": tmp_path / "here", "directory": tmp_path, "format": "pth"}
    export.run(export.ExportOptions(**options))
    there, again = (
        torch.load(path, weights_only=True) for path in (checkpoint, tmp_path / pth.FILE)
    )
    for part in there:
        assert_equal(there[part], again[part])


def test_an_average_of_weights_has_no_adam(
    small_splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: Any = {"hidden_dim": 32, "latent_dim": 5, "num_devices": 1, "ema": 0.9}
    model = cvae_jax.train(small_splits, epochs=1, workdir=tmp_path, **settings)
    export.run(export.ExportOptions(workdir=tmp_path, directory=tmp_path, format="pth"))
    assert "Adam's state is left out: PyTorch's Adam has no --ema" in capsys.readouterr().out
    content = torch.load(tmp_path / pth.FILE, weights_only=True)
    assert sorted(content) == ["epoch", "model_state_dict"]
    found = weights.to_names(model.run, model.params)
    np.testing.assert_array_equal(content["model_state_dict"]["fc1.bias"], found["fc1.bias"])


INFERENCE = """
import sys
import torch
from torch import nn

class CVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(794, 600), nn.Linear(600, 50), nn.Linear(600, 50)
        self.fc4, self.fc5 = nn.Linear(60, 600), nn.Linear(600, 784)

model = CVAE()
checkpoint = torch.load(sys.argv[1], map_location="cpu")
model.load_state_dict(checkpoint["model_state_dict"])
inputs = torch.cat([torch.linspace(-1, 1, 50), nn.functional.one_hot(torch.tensor(6), 10)])
torch.save(torch.sigmoid(model.fc5(torch.relu(model.fc4(inputs)))).detach(), sys.argv[2])
assert "cvae_jax" not in sys.modules
"""


def test_a_program_without_this_package_draws_from_an_export(tmp_path: Path) -> None:
    options: Any = {"pretrained": "original", "directory": tmp_path, "format": "pth"}
    export.run(export.ExportOptions(**options))
    arguments = ["-I", "-c", INFERENCE, str(tmp_path / pth.FILE), str(tmp_path / "pixels")]
    subprocess.run([sys.executable, *arguments], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "pixels").numpy().reshape(28, 28, 1)
    expected = cvae_jax.load("original").decode(np.linspace(-1, 1, 50), 6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


# Files that harm. A process of its own reads all of them, since they might end it.


class Code:
    """An object that runs code when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


Records = dict[str, bytes]
_ZEROS = bytes(2**29)


def rezip(
    source: Path,
    target: Path,
    change: Callable[[Records], object] = lambda _: None,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Write the records of a checkpoint into another zip, some of them changed."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(target, "w", compression, compresslevel=1) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def only(records: Records, ending: str) -> str:
    (name,) = (name for name in records if name.endswith(ending))
    return name


def flip_bit(path: Path, whole: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        tensor = archive.read(only(dict.fromkeys(archive.namelist(), b""), "data/0"))
    place = whole.index(tensor)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


def write_harm(folder: Path, whole: Path) -> None:
    """Write files that harm, each under a name of `HARM`."""
    content = torch.load(whole, weights_only=True)
    rezip(
        whole,
        folder / "bomb",
        lambda r: r.update({only(r, "data/0"): _ZEROS}),
        zipfile.ZIP_DEFLATED,
    )
    rezip(
        whole,
        folder / "pickle bomb",
        lambda r: r.update({only(r, ".pkl"): _ZEROS}),
        zipfile.ZIP_DEFLATED,
    )
    rezip(whole, folder / "packed", compression=zipfile.ZIP_DEFLATED)
    rezip(whole, folder / "long pickle", lambda r: r.update({only(r, ".pkl"): _ZEROS[: 2**21]}))
    rezip(whole, folder / "short tensor", lambda r: r.update({only(r, "data/0"): b""}))
    rezip(whole, folder / "two names", lambda r: r.update({only(r, ".pkl").upper(): b""}))
    for name, harm in (
        ("code", Code(folder / "it ran")),
        ("wide", {**content["model_state_dict"], "fc5.bias": torch.zeros(1).expand(2**29)}),
        ("class", torch.nn.Linear(2, 2)),
    ):
        torch.save(content | {"model_state_dict": harm}, folder / name)
    torch.save(content, folder / "old", _use_new_zipfile_serialization=False)
    read = whole.read_bytes()
    for name, end in (("cut short", -1), ("half", len(read) // 2), ("empty", 0)):
        (folder / name).write_bytes(read[:end])
    shutil.copy(whole, folder / "flipped bit")
    flip_bit(folder / "flipped bit", read)
    (folder / "folder").mkdir()


HARM = {
    "bomb": "it unpacks to more than its own",
    "pickle bomb": "it unpacks to more than its own",
    "packed": "it unpacks to more than its own",
    "long pickle": "its pickle has 2,097,152 bytes",
    "short tensor": "its tensors are larger than their records",
    "two names": "two of its records have one name",
    "code": f"it names {os.name} mkdir, which is no tensor and could run code",
    "class": "it names torch.nn.modules.linear Linear, which is no tensor",
    "wide": "its tensors are larger than their records",
    "old": "it is cut short, or no file of torch.save since PyTorch 1.6",
    "cut short": "it is cut short",
    "half": "it is cut short",
    "empty": "it is cut short",
    "flipped bit": "Bad CRC-32 for file",
    "folder": "it is cut short, or no file",
    "missing": "No such file",
}
READ_ALL = """
import json, resource, sys, time
from pathlib import Path
import torch
from cvae_jax.errors import CheckpointError
from cvae_jax.formats import pth

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

pth.read(Path(sys.argv[1]))
found = {}
for name in sys.argv[3:]:
    started, before = time.perf_counter(), peak()
    try:
        pth.read(Path(sys.argv[2]) / name)
    except CheckpointError as error:
        found[name] = str(error), time.perf_counter() - started, peak() - before
print(json.dumps(found))
"""


def test_files_that_harm_end_in_a_line_at_once_and_in_little_memory(
    checkpoint: Path, tmp_path: Path
) -> None:
    write_harm(tmp_path, checkpoint)
    done = python("-c", READ_ALL, checkpoint, tmp_path, *HARM)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    for name, expected in HARM.items():
        message, seconds, megabytes = found[name]
        start = f"{tmp_path / name} can't be read as a checkpoint of the original: "
        assert message.startswith(start + expected), message
        assert "\n" not in message
        assert seconds < 2, name
        assert megabytes < 50, name
    assert not (tmp_path / "it ran").exists()
