"""A model's weights and settings in files that last: model.safetensors and config.json.

The original's arrays have the names and shapes of its PyTorch layers, so that one file serves both
frameworks; those of other models have the names of their modules.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from cvae_jax.config import RunConfig
from cvae_jax.errors import CheckpointError
from cvae_jax.models import build_model
from cvae_jax.models.family import Params
from cvae_jax.runtime.files import reason, whole_file
from cvae_jax.storage import records

WEIGHTS, CONFIG = "model.safetensors", "config.json"

# Layers of the original in PyTorch, and ours. fc2 and fc3 are one layer of ours, side by side.
_LAYERS = {"fc1": "encoder_hidden", "fc4": "decoder_hidden", "fc5": "decoder_logits"}
_MOMENTS = ("fc2", "fc3"), "encoder_moments"


def write(folder: Path, run: RunConfig, params: Params, dtype: str = "float32") -> None:
    """Write a model's weights and settings into a folder, each file whole or not at all.

    Args:
        folder: it is made if it does not exist.
        run: the settings.
        params: the model's parameters.
        dtype: the type in the file; "float16" halves it.

    Raises:
        UserError: the folder can't be written.
    """
    arrays = {
        name: np.ascontiguousarray(array, dtype) for name, array in to_names(run, params).items()
    }
    with whole_file(folder / WEIGHTS) as file:
        file.write(safetensors.numpy.save(arrays, metadata={"format": "np"}))
    with whole_file(folder / CONFIG) as file:
        file.write(records.encode(run))


def read(folder: Path) -> tuple[RunConfig, Params]:
    """Read what `write` wrote; the arrays become float32.

    Raises:
        CheckpointError: a file is missing or damaged, or they don't belong together.
    """
    path = folder / CONFIG
    try:
        run, _ = records.decode(path.read_bytes())
        path = folder / WEIGHTS
        arrays = safetensors.numpy.load_file(path)
        return run, from_names(run, arrays)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {reason(error)}; export it again") from error


def to_names(run: RunConfig, params: Params) -> dict[str, np.ndarray]:
    """Return a model's arrays by their names in a file."""
    params = jax.tree.map(np.asarray, params)
    if not is_original(run):
        return {".".join(path): array for path, array in flatten_dict(params).items()}
    layers = {name: params[ours] for name, ours in _LAYERS.items()}
    names, ours = _MOMENTS
    halves = {kind: np.split(array, 2, axis=-1) for kind, array in params[ours].items()}
    for i, name in enumerate(names):
        layers[name] = {kind: pair[i] for kind, pair in halves.items()}
    found = {}
    for name in sorted(layers):
        found[f"{name}.weight"] = layers[name]["kernel"].T  # PyTorch's are (out, in)
        found[f"{name}.bias"] = layers[name]["bias"]
    return found


def from_names(run: RunConfig, arrays: Mapping[str, np.ndarray]) -> Params:
    """Return the parameters, float32, of arrays by their names in a file.

    Raises:
        ValueError: an array is missing, unknown, of another shape, or not finite.
    """
    if is_original(run):
        arrays = _from_torch(arrays)
    like = jax.eval_shape(lambda: build_model(run.model).init(jax.random.key(0)))
    wanted = {".".join(path): leaf.shape for path, leaf in flatten_dict(like).items()}
    found = {name: array.shape for name, array in arrays.items()}
    if wanted != found:
        differing = sorted(wanted.items() ^ found.items())
        raise ValueError(f"{differing[0][0]} is missing, unknown or of another shape")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    tree = {tuple(name.split(".")): np.float32(array) for name, array in arrays.items()}
    return jax.device_put(unflatten_dict(tree))


def is_original(run: RunConfig) -> bool:
    """Return whether a model is the original, whose arrays have PyTorch's names."""
    return run.model.name == "mlp" and run.model.prior == "normal"


def _from_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the original's arrays by our names, from those by PyTorch's."""
    rest = dict(arrays)
    names = (f"{name}.{kind}" for name in (*_LAYERS, *_MOMENTS[0]) for kind in ("weight", "bias"))
    if missing := [name for name in names if name not in rest]:
        raise ValueError(f"{missing[0]} is missing")
    layers = {
        name: (rest.pop(f"{name}.weight").T, rest.pop(f"{name}.bias"))
        for name in (*_LAYERS, *_MOMENTS[0])
    }
    pairs = {ours: layers[name] for name, ours in _LAYERS.items()}
    (kernel, bias), (other_kernel, other_bias) = (layers[name] for name in _MOMENTS[0])
    pairs[_MOMENTS[1]] = np.hstack([kernel, other_kernel]), np.hstack([bias, other_bias])
    for ours, (kernel, bias) in pairs.items():
        rest |= {f"{ours}.kernel": kernel, f"{ours}.bias": bias}
    return rest
