"""Any model as StableHLO by `jax.export`: for a CPU, CUDA and TPUs, and any number of images.

It is no archive: JAX refuses what it wrote half a year earlier, and what a newer version wrote. So
its version is in the name of each file.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from cvae_jax.api import TrainedModel
from cvae_jax.formats import require_package
from cvae_jax.runtime.files import whole_file

PLATFORMS = ("cpu", "cuda", "tpu")


def write(folder: Path, model: TrainedModel) -> list[str]:
    """Write the decoder, latents and labels to images, and the encoder, to latents.

    Both have the model's parameters in them. Their labels are int32 (N,); latents (N, Z) are in
    coordinates in which the prior is N(0, I), and the encoder's are the centre of q(z | x, y).

    Args:
        folder: it is made if it does not exist.
        model: the trained model.

    Raises:
        UserError: flatbuffers is not installed, or the folder can't be written.
    """
    require_package("flatbuffers", "stablehlo")  # serialising needs it, and JAX does not bring it
    params, size = model.params, model.model.latent_dim

    def decode(latent: jax.Array, label: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(model.model.decode(params, latent, label))

    def encode(image: jax.Array, label: jax.Array) -> jax.Array:
        noise = jnp.zeros((image.shape[0], size))
        return model.model.autoencode(params, image, label, noise).latent

    functions: dict[str, tuple[Callable[..., jax.Array], tuple[int, ...]]] = {
        "decoder": (decode, (size,)),
        "encoder": (encode, model.run.image_shape),
    }
    (number,) = export.symbolic_shape("n")
    names = []
    for name, (function, shape) in functions.items():
        arguments = (
            jax.ShapeDtypeStruct((number, *shape), jnp.float32),
            jax.ShapeDtypeStruct((number,), jnp.int32),
        )
        with jax.default_matmul_precision("highest"):  # the same digits on every device
            exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
        names.append(f"{name}.jax-{jax.__version__}.stablehlo")
        with whole_file(folder / names[-1]) as file:
            file.write(exported.serialize())
    return names
