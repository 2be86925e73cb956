"""`cvae-jax export`: write a trained model's weights into files that last."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import ModelOptions, require

_Dtype = Literal["float32", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Write a model's weights and settings as model.safetensors and config.json."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to write into; cvae_jax.load reads it."""
    dtype: _Dtype = "float32"
    """Type of the weights in the file. float16 halves it and changes a pixel by less than 0.002."""

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
        from cvae_jax.storage.workdir import EVALUATION

    folder = user_path("DIR", options.directory)
    devices.describe()  # reports in one line where JAX can't start
    model = api.load(options.model_folder, options.step)
    print(f"model: {model.checkpoint}", flush=True)
    weights.write(folder, model.run, model.params, options.dtype)
    written = [weights.WEIGHTS, weights.CONFIG]
    found = user_path("workdir", options.model_folder) / EVALUATION
    if found.exists() and json.loads(found.read_bytes()).get("step") == model.step:
        with whole_file(folder / EVALUATION) as file:
            file.write(found.read_bytes())
        written.append(EVALUATION)
    print(f"wrote {', '.join(written)} in {folder}")
