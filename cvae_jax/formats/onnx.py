"""The original in ONNX: decoder.onnx and encoder.onnx, for any number of images at once.

They need no tracer, since the original is a handful of operators. Images are (N, H, W, C) in [0, 1]
and labels int64 (N,), from 0 to Y - 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvae_jax import __version__
from cvae_jax.api import TrainedModel
from cvae_jax.formats import require_package
from cvae_jax.runtime.files import whole_file
from cvae_jax.storage import weights

_Shapes = dict[str, Sequence[int]]  # without the first axis
_OPSET, _IR_VERSION = 17, 8  # of 2022, so that older runtimes read them as well


def write(folder: Path, model: TrainedModel) -> list[str]:
    """Write the decoder, latents and labels to images, and the encoder, to mean and logvar.

    Args:
        folder: it is made if it does not exist.
        model: an original.

    Raises:
        UserError: onnx is not installed, or the folder can't be written.
    """
    onnx = require_package("onnx", "onnx")
    node = onnx.helper.make_node
    layers = weights.to_names(model.run, model.params)
    shape, num_classes = model.run.image_shape, model.run.num_classes
    constants = layers | {
        "num_classes": np.array(num_classes),
        "off_on": np.array([0, 1], np.float32),
        "image_shape": np.array([-1, *shape]),
    }

    def with_label(flat: str) -> list[Any]:
        return [
            node("OneHot", ["label", "num_classes", "off_on"], ["one_hot"]),
            node("Concat", [flat, "one_hot"], ["inputs"], axis=1),
        ]

    def linear(layer: str, inputs: str, output: str) -> Any:
        return node("Gemm", [inputs, f"{layer}.weight", f"{layer}.bias"], [output], transB=1)

    decoder = [
        *with_label("latent"),
        linear("fc4", "inputs", "hidden"),
        node("Relu", ["hidden"], ["active"]),
        linear("fc5", "active", "logits"),
        node("Sigmoid", ["logits"], ["pixels"]),
        node("Reshape", ["pixels", "image_shape"], ["image"]),
    ]
    encoder = [
        node("Flatten", ["image"], ["pixels"]),
        *with_label("pixels"),
        linear("fc1", "inputs", "hidden"),
        node("Relu", ["hidden"], ["active"]),
        linear("fc2", "active", "mean"),
        linear("fc3", "active", "logvar"),
    ]
    latent = [model.run.train.latent_dim]
    files: dict[str, tuple[list[Any], _Shapes, _Shapes]] = {
        "decoder.onnx": (decoder, {"latent": latent}, {"image": shape}),
        "encoder.onnx": (encoder, {"image": shape}, {"mean": latent, "logvar": latent}),
    }
    for name, (nodes, inputs, outputs) in files.items():
        used = {one for node in nodes for one in node.input}
        graph = onnx.helper.make_graph(
            nodes,
            name.partition(".")[0],
            [*_floats(onnx, inputs), _value(onnx, "label", "INT64", [])],
            _floats(onnx, outputs),
            [onnx.numpy_helper.from_array(constants[one], one) for one in constants if one in used],
        )
        opset = [onnx.helper.make_opsetid("", _OPSET)]
        content = onnx.helper.make_model(
            graph,
            opset_imports=opset,
            ir_version=_IR_VERSION,
            producer_name="cvae_jax",
            producer_version=__version__,
        )
        with whole_file(folder / name) as file:
            file.write(content.SerializeToString())
    return list(files)


def _floats(onnx: Any, shapes: _Shapes) -> list[Any]:
    return [_value(onnx, name, "FLOAT", shape) for name, shape in shapes.items()]


def _value(onnx: Any, name: str, kind: str, shape: Sequence[int]) -> Any:
    element = getattr(onnx.TensorProto, kind)
    return onnx.helper.make_tensor_value_info(name, element, ["N", *shape])
