"""A default run, compiled by the TPU's own compiler for the chips of Colab and of a pod.

No TPU is needed, but its library: `pip install 'cvae_jax[tpu]'`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

from cvae_jax.config import ModelConfig, ModelName, Precision
from cvae_jax.data.batches import epoch_order
from cvae_jax.data.dataset import Dataset
from cvae_jax.evaluation.judge import init_judge, judge
from cvae_jax.evaluation.likelihood import importance_log_likelihood
from cvae_jax.models import build_model
from cvae_jax.models.sampling import sample
from cvae_jax.runtime import devices
from cvae_jax.training.step import init_state, train_steps
from cvae_jax.training.test_loss import compute_test_loss
from tests.helpers import epoch_shapes

pytest.importorskip("libtpu", reason="it comes with the extra `tpu`")

CONFIG, OPTIMIZER = ModelConfig(image_shape=(28, 28, 1), num_classes=10), optax.adam(1e-3)
MODEL = build_model(CONFIG)
MOST_BYTES = 500_000_000  # of the 16 GB of a v5e
HOST_TRANSFERS = ("infeed", "outfeed", " send(", " recv(")
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute")


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """Turn off the compilation cache: JAX 0.7 can't write programs of devices that it lacks."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture
def make_mesh(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Mesh]:
    """Return a function that describes the chips of a slice, which need not be there."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")

    def make(slice_name: str) -> Mesh:
        bounds = {"chips_per_host_bounds": [1, 1, 1]} if slice_name == "v5e:1x1" else {}
        chips = topologies.get_topology_desc(slice_name, "tpu", **bounds).devices
        return Mesh(np.array(chips), devices.make_mesh(1).axis_names)

    return make


def compile_for(
    mesh: Mesh, program: Callable[..., Any], *arguments: Any, divided: int | None = None
) -> str:
    """Return the text of a program that is compiled for these chips and fits into their memory.

    Args:
        mesh: the chips.
        program: the function.
        arguments: its arguments, or their shapes.
        divided: the position of the one that is divided among the chips.
    """
    shardings = [
        devices.divided(mesh) if i == divided else devices.on_all(mesh)
        for i in range(len(arguments))
    ]
    jitted = jax.jit(program, in_shardings=shardings, out_shardings=devices.on_all(mesh))
    compiled = jitted.lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert 0 < taken + memory.temp_size_in_bytes < MOST_BYTES
    return str(compiled.as_text())


@pytest.mark.parametrize(
    ("slice_name", "name", "precision", "batch_size"),
    [
        ("v5e:1x1", "mlp", "float32", 128),  # Colab's
        ("v5e:1x1", "mlp", "bfloat16", 128),
        ("v5e:2x2", "mlp", "float32", 128),
        ("v5e:2x4", "mlp", "bfloat16", 8192),  # two hosts
        ("v5e:1x1", "conv", "bfloat16", 256),
    ],
)
def test_an_epoch_compiles_for_a_slice_and_needs_nothing_from_its_hosts(
    slice_name: str,
    name: ModelName,
    precision: Precision,
    batch_size: int,
    make_mesh: Callable[[str], Mesh],
) -> None:
    config = dataclasses.replace(CONFIG, name=name, prior="flow" if name == "conv" else "normal")
    mesh, model = make_mesh(slice_name), build_model(config, precision)
    program = partial(train_steps, model=model, optimizer=OPTIMIZER)
    text = compile_for(mesh, program, *epoch_shapes(model, OPTIMIZER, batch_size), divided=2)
    assert " while(" in text
    assert not [word for word in HOST_TRANSFERS if word in text]
    # In bfloat16 the gradients and the sums of the loss differ in type.
    num_reductions = 0 if mesh.size == 1 else 1 if precision == "float32" else 2
    assert text.count(" all-reduce(") == num_reductions
    assert not [word for word in COLLECTIVES if word in text]


def test_all_other_programs_of_a_run_compile_for_colab(make_mesh: Callable[[str], Mesh]) -> None:
    mesh = make_mesh("v5e:1x1")
    state, _, _, key = epoch_shapes(MODEL, OPTIMIZER, 128)
    rows, label = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((10, 1024), (64,)))
    test_set = Dataset(jnp.zeros((10_000, 784), jnp.uint8), jnp.zeros((10_000,), jnp.int32))

    def order(key: jax.Array, epoch: int) -> jax.Array:
        return epoch_order(key=key, epoch=epoch, num_examples=60_000, batch_size=128)

    test_loss = partial(compute_test_loss, model=MODEL)
    compile_for(mesh, partial(init_state, model=MODEL, optimizer=OPTIMIZER), key)
    compile_for(mesh, order, key, 0)
    compile_for(mesh, partial(sample, model=MODEL), state.params, label, label, key)
    compile_for(mesh, test_loss, state.params, test_set, rows, key, divided=2)


def test_the_programs_of_an_evaluation_compile_for_colab(make_mesh: Callable[[str], Mesh]) -> None:
    mesh = make_mesh("v5e:1x1")
    state, _, _, key = epoch_shapes(MODEL, OPTIMIZER, 128)
    image, label = jnp.zeros((100, 28, 28, 1)), jnp.zeros((100,), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 100))
    judge_params = jax.eval_shape(
        partial(init_judge, image_shape=CONFIG.image_shape, num_classes=CONFIG.num_classes), key
    )
    likelihood = partial(importance_log_likelihood, model=MODEL, num_samples=5000, chunk_size=500)
    with jax.default_matmul_precision("highest"):
        compile_for(mesh, likelihood, state.params, image, label, keys)
        compile_for(mesh, partial(judge, num_classes=10), judge_params, image)
