"""Checkpoints of the PyTorch original: cvae_checkpoint.pth, written for it and read from it.

Such a file is a zip of a pickle and the bytes of tensors: epoch, model_state_dict (fc1 to fc5) and
optimizer_state_dict (Adam's). It may come from anywhere, so it is checked before PyTorch reads it.
"""

import pickletools
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvae_jax.api import TrainedModel
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.errors import CheckpointError
from cvae_jax.formats import require_package
from cvae_jax.models.family import Params
from cvae_jax.runtime.files import reason, whole_file
from cvae_jax.storage import checkpoints, weights
from cvae_jax.training.optimizer import build_optimizer

FILE = "cvae_checkpoint.pth"
"""The name that the original gives its checkpoint."""

_AVERAGES = {"exp_avg": "mu", "exp_avg_sq": "nu"}  # Adam's, there and here
# Settings of ours that PyTorch's Adam lacks, and those of its that leave its results alone.
_OURS = ("schedule", "warmup_steps", "nesterov", "clip_norm", "skip_norm", "ema")
_ITS_OWN = {"params", "lr", "foreach", "fused", "capturable", "differentiable"}
# What the pickle of a checkpoint names. PyTorch allows more, such as arrays of any length.
_NAMED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
_LARGEST_PICKLE = 2**20  # bytes; the original's has three thousand


class Sizes(NamedTuple):
    """The sizes of an original."""

    num_pixels: int
    num_classes: int
    hidden_dim: int
    latent_dim: int


class Adam(NamedTuple):
    """Adam's state after some steps; the averages have the names of the parameters."""

    step: int
    learning_rate: float
    averages: dict[str, dict[str, np.ndarray]]  # "exp_avg" and "exp_avg_sq"


class Original(NamedTuple):
    """What a checkpoint of the original holds; arrays are float32, by PyTorch's names."""

    sizes: Sizes
    params: dict[str, np.ndarray]
    epoch: int  # epochs of training; 0 where the file has weights alone
    adam: Adam | None  # None there


def write(folder: Path, model: TrainedModel) -> list[str]:
    """Write a checkpoint that the original loads, and trains on from where it can.

    It has Adam's state where the model is a run's, with an optimizer that PyTorch has too.

    Args:
        folder: it is made if it does not exist.
        model: an original.

    Raises:
        UserError: PyTorch is not installed, or the folder can't be written.
        CheckpointError: the run's checkpoint can't be read.
    """
    torch = require_package("torch", "torch")
    run = model.run

    def tensors(params: Params) -> dict[str, Any]:
        named = weights.to_names(run, params)
        return {name: torch.tensor(array) for name, array in named.items()}

    layers = tensors(model.params)
    content: dict[str, Any] = {"model_state_dict": layers}
    if model.step is not None:
        content["epoch"] = checkpoints.require_run(model.checkpoint, run).num_epochs
        ours = [name for name in _OURS if getattr(run.train, name) != getattr(TrainConfig, name)]
        if ours:
            option = ours[0].replace("_", "-")
            print(f"Adam's state is left out: PyTorch's Adam has no --{option}")
        else:
            state = _restore_adam(model)
            averages = {
                name: tensors(optax.tree.get(state, here)) for name, here in _AVERAGES.items()
            }
            adam = torch.optim.Adam(list(layers.values()), lr=run.train.learning_rate).state_dict()
            adam["state"] = {
                i: {"step": torch.tensor(float(model.step))}
                | {name: average[layer] for name, average in averages.items()}
                for i, layer in enumerate(layers)
            }
            content["optimizer_state_dict"] = adam
    with whole_file(folder / FILE) as file:
        torch.save(content, file)
    return [FILE]


def _restore_adam(model: TrainedModel) -> Any:
    optimizer = build_optimizer(model.run.train, steps_per_epoch=1)
    like = {"opt_state": jax.eval_shape(optimizer.init, model.params)}
    return checkpoints.restore(model.checkpoint, like, model.run)[0]["opt_state"]


def to_state(found: Original, adam: Adam, run: RunConfig) -> dict[str, Any]:
    """Return the parts of a state, as a checkpoint of ours holds them, from one of the original.

    Args:
        found: from `read`.
        adam: its Adam's state.
        run: the settings of the run that goes on from it.
    """
    params = weights.from_names(run, found.params)
    averages = {
        ours: weights.from_names(run, adam.averages[name]) for name, ours in _AVERAGES.items()
    }
    start = build_optimizer(run.train, steps_per_epoch=1).init(params)
    step = jnp.asarray(adam.step, jnp.int32)
    opt_state = optax.tree.set(start, count=step, **averages)
    return {"step": step, "params": params, "opt_state": opt_state}


def read(path: Path) -> Original:
    """Read a checkpoint of the original.

    Raises:
        UserError: PyTorch is not installed.
        CheckpointError: the file is no such checkpoint, or is damaged; the message says how.
    """
    torch = require_package("torch", "torch")
    try:
        # PyTorch compares no checksum, and finds the records of a zip in a way of its own. Version
        # 2.6 reads past the end of one that is shorter than its tensor, unless the file is mapped.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            copy = Path(folder) / FILE
            size = _copy_checked(path, copy)
            content = torch.load(copy, map_location="cpu", weights_only=True, mmap=True)
            return _decode(torch, content, size)
    except Exception as error:  # PyTorch has no exception of its own
        raise CheckpointError(
            f"{path} can't be read as a checkpoint of the original: {reason(error)}"
        ) from error


def _copy_checked(path: Path, copy: Path) -> int:
    """Copy the records of a zip, once their sizes, their checksums and the pickle are checked.

    Returns:
        The bytes of all tensors.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise ValueError("it is cut short, or no file of torch.save since PyTorch 1.6")
    with zipfile.ZipFile(path) as there, zipfile.ZipFile(copy, "w") as here:
        records = there.infolist()
        if len({record.filename.lower() for record in records}) < len(records):
            raise ValueError("two of its records have one name")
        # torch.save compresses nothing.
        is_packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        if is_packed or sum(record.file_size for record in records) > size:
            raise ValueError(f"it unpacks to more than its own {size:,} bytes")
        for record in records:
            content = there.read(record)
            if record.filename.lower().endswith(".pkl"):
                _check_pickle(content)
            here.writestr(record.filename, content)
    return sum(record.file_size for record in records if "/data/" in record.filename)


def _check_pickle(content: bytes) -> None:
    if len(content) > _LARGEST_PICKLE:
        raise ValueError(f"its pickle has {len(content):,} bytes")
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL" and not _NAMED.fullmatch(str(argument)):
            raise ValueError(f"it names {argument}, which is no tensor and could run code")


def _decode(torch: Any, content: Any, size: int) -> Original:
    """Return what a file with `size` bytes of tensors holds."""
    layers = _part(content, "model_state_dict")
    expected = [f"fc{i}.{kind}" for i in range(1, 6) for kind in ("weight", "bias")]
    if sorted(layers) != sorted(expected):
        raise ValueError(f"its layers are {', '.join(layers)}, and not fc1 to fc5")
    has_adam = "optimizer_state_dict" in content
    tensors = {"params": layers}
    if has_adam:
        optimizer = content["optimizer_state_dict"]
        step, learning_rate, averages = _decode_adam(torch, optimizer, list(layers))
        tensors |= averages
    # A tensor may repeat the bytes of a record, or go on after its end.
    if 4 * sum(one.numel() for group in tensors.values() for one in group.values()) > size:
        raise ValueError("its tensors are larger than their records")
    arrays = {
        kind: {name: _array(torch, name, one) for name, one in group.items()}
        for kind, group in tensors.items()
    }
    sizes = _require_shapes(*arrays.values())
    params = arrays.pop("params")
    if not has_adam:
        return Original(sizes, params, 0, None)
    epoch = _part(content, "epoch")
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"its epoch is {epoch!r}")
    return Original(sizes, params, epoch, Adam(step, learning_rate, arrays))


def _part(content: Any, name: str) -> Any:
    if not isinstance(content, Mapping) or name not in content:
        raise ValueError(f"it has no {name}")
    return content[name]


def _decode_adam(
    torch: Any, optimizer: Any, names: list[str]
) -> tuple[int, float, dict[str, dict[str, Any]]]:
    """Return the step, the learning rate and the averages of PyTorch's Adam.

    Args:
        torch: the module.
        optimizer: its state.
        names: the parameters in the order of the module.
    """
    groups = _part(optimizer, "param_groups")
    if len(groups) != 1 or len(groups[0]["params"]) != len(names):
        raise ValueError("its optimizer has not one group of the ten parameters")
    group = groups[0]
    usual = torch.optim.Adam([torch.zeros(1)]).state_dict()["param_groups"][0]
    for name in sorted((group.keys() | usual.keys()) - _ITS_OWN):
        # A setting that one version lacks is off there.
        value, wanted = (settings.get(name, False) for settings in (group, usual))
        if value != wanted:
            raise ValueError(f"its optimizer has {name} {value}; Adam goes on with {wanted} only")
    states = [_part(_part(optimizer, "state"), number) for number in group["params"]]
    steps = {float(_part(state, "step")) for state in states}
    if len(steps) != 1 or not 0 < min(steps) < 2**31 or not min(steps).is_integer():
        raise ValueError(f"its optimizer's steps are {sorted(steps)}")
    averages = {
        kind: {name: _part(state, kind) for name, state in zip(names, states, strict=True)}
        for kind in _AVERAGES
    }
    return int(min(steps)), float(group["lr"]), averages


def _array(torch: Any, name: str, tensor: Any) -> np.ndarray:
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} is {tensor.dtype}, not torch.float32")
    array = np.array(tensor.detach().numpy())
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    return array


def _require_shapes(params: dict[str, np.ndarray], *averages: dict[str, np.ndarray]) -> Sizes:
    """Return the sizes that the arrays have; raise `ValueError` where they don't fit."""
    num_pixels, latent_dim = params["fc5.bias"].size, params["fc2.bias"].size
    hidden_dim = params["fc1.bias"].size
    num_classes = params["fc1.weight"].size // max(1, hidden_dim) - num_pixels
    shapes = {
        "fc1": (hidden_dim, num_pixels + num_classes),
        "fc2": (latent_dim, hidden_dim),
        "fc3": (latent_dim, hidden_dim),
        "fc4": (hidden_dim, latent_dim + num_classes),
        "fc5": (num_pixels, hidden_dim),
    }
    for layer, shape in shapes.items():
        for name, wanted in ((f"{layer}.weight", shape), (f"{layer}.bias", shape[:1])):
            for arrays in (params, *averages):
                if arrays[name].shape != wanted:
                    raise ValueError(f"{name} has the shape {arrays[name].shape}, not {wanted}")
    return Sizes(num_pixels, num_classes, hidden_dim, latent_dim)
