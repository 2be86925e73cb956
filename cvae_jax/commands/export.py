"""`cvae-jax export`: write a trained model's weights into files that last."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import ModelOptions, require
from cvae_jax.errors import ConfigError

if TYPE_CHECKING:
    from cvae_jax.api import TrainedModel

_Dtype = Literal["float32", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Write a model's weights and settings as model.safetensors and config.json."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to write into; cvae_jax.load reads it."""
    dtype: _Dtype = "float32"
    """Type of the weights in the file. float16 halves it and hardly changes a pixel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = get_args(_Dtype)
        require(self.dtype in allowed, "dtype", repr(self.dtype), " or ".join(allowed))


def run(options: ExportOptions) -> None:
    """Write the weights, the settings and, where the model has one, its evaluation."""
    with many_imports():
        from cvae_jax import api
        from cvae_jax.runtime import devices
        from cvae_jax.runtime.files import user_path, whole_file
        from cvae_jax.storage import weights
        from cvae_jax.storage.workdir import CHECKPOINTS, EVALUATION

    folder = user_path("DIR", options.directory)
    if (folder / CHECKPOINTS).exists():
        raise ConfigError(f"DIR {folder} holds a run, whose settings would be lost; name another")
    devices.describe()  # reports in one line where JAX can't start
    model = api.load(options.model_folder, options.step)
    print(f"model: {model.checkpoint}", flush=True)
    evaluation = _read_evaluation(user_path("workdir", options.model_folder) / EVALUATION, model)
    (folder / EVALUATION).unlink(missing_ok=True)  # of the weights that are replaced now
    weights.write(folder, model.run, model.params, options.dtype)
    written = [weights.WEIGHTS, weights.CONFIG]
    if evaluation:
        with whole_file(folder / EVALUATION) as file:
            file.write(evaluation)
        written.append(EVALUATION)
    print(f"wrote {', '.join(written)} in {folder}")


def _read_evaluation(path: Path, model: "TrainedModel") -> bytes | None:
    """Return the file of the model's own evaluation; None where there is none, or another's."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        contents = path.read_bytes()
        if model.step is None or json.loads(contents)["step"] == model.step:
            return contents
    return None
