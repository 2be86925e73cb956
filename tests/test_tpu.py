"""A default run, compiled by the TPU's own compiler for the chips of Colab and of a pod.

No TPU is needed, but its library: `pip install 'cvae_jax[tpu]'`.
"""

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

from cvae_jax import evaluation, judge, sampling, sharding, training
from cvae_jax.batches import epoch_order
from cvae_jax.config import ModelConfig
from cvae_jax.models import CVAE
from cvae_jax.types import Dataset
from tests.conftest import epoch_shapes

pytest.importorskip("libtpu", reason="it comes with the extra `tpu`")

MODEL, OPTIMIZER = CVAE(ModelConfig((28, 28, 1), 10)), optax.adam(1e-3)
MOST_BYTES = 500_000_000  # of the 16 GB of a v5e
HOST_TRANSFERS = ("infeed", "outfeed", " send(", " recv(")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Keep none of it: JAX 0.7 can't write what no device is there for."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture
def make_mesh(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Mesh]:
    """Give a function that lines up the chips of a slice that is not there."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")

    def make(slice_name: str) -> Mesh:
        bounds = {"chips_per_host_bounds": [1, 1, 1]} if slice_name == "v5e:1x1" else {}
        devices = topologies.get_topology_desc(slice_name, "tpu", **bounds).devices
        return Mesh(np.array(devices), sharding.make_mesh(1).axis_names)

    return make


def compile_for(mesh: Mesh, program: Callable[..., Any], *arguments: Any, rows: Any = ()) -> str:
    """Compile for these chips; give the text of what came out, which has to fit their memory."""
    on_all, divided = sharding.on_all(mesh), sharding.divided(mesh)
    compiled = (
        jax.jit(
            program,
            in_shardings=(*(on_all for _ in arguments), *(divided for _ in rows)),
            out_shardings=on_all,
        )
        .lower(*arguments, *rows)
        .compile()
    )
    memory = compiled.memory_analysis()
    assert memory is not None
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert 0 < taken + memory.temp_size_in_bytes < MOST_BYTES
    return str(compiled.as_text())


@pytest.mark.parametrize(
    ("slice_name", "precision", "batch_size"),
    [
        ("v5e:1x1", "float32", 128),  # Colab's
        ("v5e:1x1", "bfloat16", 128),
        ("v5e:2x2", "float32", 128),
        ("v5e:2x4", "bfloat16", 8192),  # two hosts
    ],
)
def test_an_epoch_compiles_for_a_slice_and_asks_nothing_of_its_hosts(
    slice_name: str, precision: Any, batch_size: int, make_mesh: Callable[[str], Mesh]
) -> None:
    mesh = make_mesh(slice_name)
    model = CVAE(MODEL.config, precision=precision)
    *arguments, order = epoch_shapes(model, OPTIMIZER, batch_size)
    program = partial(training.train_steps, model=model, optimizer=OPTIMIZER)
    text = compile_for(mesh, program, *arguments, rows=[order])
    assert " while(" in text
    assert not [word for word in HOST_TRANSFERS if word in text]
    # In bfloat16 the gradients and the sums of the loss differ in type.
    num_reductions = 0 if mesh.size == 1 else 1 if precision == "float32" else 2
    assert text.count(" all-reduce(") == num_reductions
    assert not [word for word in ("all-gather", "all-to-all", "collective-permute") if word in text]


def test_everything_else_that_a_run_does_compiles_for_colab(
    make_mesh: Callable[[str], Mesh],
) -> None:
    mesh = make_mesh("v5e:1x1")
    state, key, *_ = epoch_shapes(MODEL, OPTIMIZER, 128)
    init = partial(training.init_state, model=MODEL, optimizer=OPTIMIZER)
    rows, labels = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((10, 1024), (64,)))
    compile_for(mesh, init, key)
    compile_for(mesh, partial(epoch_order, num_examples=60_000, batch_size=128), key, 0)
    compile_for(mesh, partial(sampling.sample, model=MODEL), state.params, key, labels, labels)
    test_set = Dataset(jnp.zeros((10_000, 784), jnp.uint8), jnp.zeros((10_000,), jnp.int32))
    evaluate = partial(evaluation.evaluate, model=MODEL)
    compile_for(mesh, evaluate, state.params, key, test_set, rows=[rows])


def test_what_an_evaluation_does_compiles_for_colab(make_mesh: Callable[[str], Mesh]) -> None:
    mesh = make_mesh("v5e:1x1")
    state, key, *_ = epoch_shapes(MODEL, OPTIMIZER, 128)
    image, label = jnp.zeros((100, 28, 28, 1)), jnp.zeros((100,), jnp.int32)
    judge_params = jax.eval_shape(
        partial(judge.init_judge, image_shape=(28, 28, 1), num_classes=10), key
    )
    likelihood = partial(
        evaluation.importance_log_likelihood, model=MODEL, num_samples=5000, chunk_size=500
    )
    with jax.default_matmul_precision("highest"):
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 100))
        compile_for(mesh, likelihood, state.params, keys, image, label)
        compile_for(mesh, partial(judge.judge, num_classes=10), judge_params, image)
