"""`cvae-jax export`: write a trained model into files for other programs."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import Format, ModelOptions, require
from cvae_jax.errors import ConfigError

_Dtype = Literal["float32", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Write a trained model into files for other programs."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to write into."""
    format: Format = "safetensors"
    """safetensors: weights, settings and a model card, for any model; cvae_jax.load reads them.
    pth: a checkpoint of the PyTorch original, with Adam's state where the model has it.
    onnx: decoder and encoder of the original. stablehlo: those of any model, for JAX of about
    the same version."""
    dtype: _Dtype = "float32"
    """Type of the weights in safetensors. float16 halves them and hardly changes a pixel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("format", Format), ("dtype", _Dtype)):
            value, allowed = getattr(self, name), get_args(kind)
            require(value in allowed, name, repr(value), " or ".join(allowed))
        if self.dtype != "float32" and self.format != "safetensors":
            raise ConfigError(f"--format {self.format} takes no --dtype; leave one of the two out")


def run(options: ExportOptions) -> None:
    """Write a model's files, and print their names."""
    with many_imports():
        from cvae_jax import api, formats
        from cvae_jax.runtime import devices
        from cvae_jax.runtime.files import user_path

    folder = user_path("DIR", options.directory)
    devices.describe()  # reports in one line where JAX can't start
    model = api.load(options.model_folder, options.step)
    print(f"model: {model.checkpoint}", flush=True)
    module = formats.find(options.format, model.run)
    settings = {"dtype": options.dtype} if options.format == "safetensors" else {}
    names = module.write(folder, model, **settings)
    print(f"wrote {', '.join(names)} in {folder}")
