"""Many devices, here eight of the CPU: the results of one, and divided work."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from cvae_jax.config import ModelConfig, ModelName, Precision
from cvae_jax.data.batches import epoch_order, put_on_device
from cvae_jax.data.dataset import Splits
from cvae_jax.models import build_model
from cvae_jax.models.family import Model
from cvae_jax.runtime import devices
from cvae_jax.training.loop import Programs, build_programs
from cvae_jax.training.step import init_state, train_steps
from tests.helpers import CONV_SETTINGS, NUM_DEVICES, SMALL_CONFIG, epoch_shapes, run_config

COLLECTIVES = ("all-gather", "all-to-all", "collective-permute")


def train_epoch(programs: Programs) -> Any:
    """Return the losses of an epoch's steps, the state after it, its test losses and samples."""
    state, sums = programs.init(), []
    for piece in programs.pieces(0, 0):
        state, part = programs.train(state, piece)
        sums.append(part)
    losses = jax.tree.map(lambda *parts: jnp.concatenate(parts), *sums)
    label = np.arange(10, dtype=np.int32)
    return losses, state, programs.test(state.params), programs.samples(state.params, label)


# Whatever is drawn at random in training does not depend on the devices.
@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 2),
        ({"binarize": "dynamic"}, NUM_DEVICES),
        (CONV_SETTINGS, 2),
    ],
    ids=["grey", "binarised", "conv"],
)
@pytest.mark.usefixtures("shallow")
def test_many_devices_give_the_results_of_one(
    settings: dict[str, Any], number: int, small_splits: Splits
) -> None:
    run = run_config(small_splits, dataclasses.replace(SMALL_CONFIG, **settings))
    one = train_epoch(build_programs(run, small_splits))
    many = train_epoch(build_programs(run, small_splits, devices.make_mesh(number)))
    for found, expected in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        assert found.sharding.num_devices == number
        assert found.is_fully_replicated
        # Rounding alone, though Adam divides a gradient near zero by its own size.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
    # Before the first step there was no such division.
    np.testing.assert_allclose(many[0].loss[0], one[0].loss[0], rtol=1e-6)


def test_each_device_computes_its_part_and_a_step_has_one_all_reduce(
    model: Model, small_splits: Splits
) -> None:
    mesh, key, optimizer = devices.make_mesh(NUM_DEVICES), jax.random.key(0), optax.adam(1e-3)
    on_all, divided = devices.on_all(mesh), devices.divided(mesh)
    program = jax.jit(partial(train_steps, model=model, optimizer=optimizer), out_shardings=on_all)
    state, key = jax.device_put((init_state(key, model, optimizer), key), on_all)
    examples = put_on_device(small_splits.train, on_all)
    rows = epoch_order(key=jax.random.key(0), epoch=0, num_examples=1000, batch_size=128)
    order = devices.put(rows, divided)
    text = program.lower(state, examples, order, key).compile().as_text()
    assert text is not None
    assert text.count(" all-reduce(") == 1
    assert not [word for word in COLLECTIVES if word in text]
    assert "f32[16,32]" in text  # 128 / 8 images by the hidden units
    assert "f32[128,32]" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    ("name", "precision"), [("mlp", "float32"), ("mlp", "bfloat16"), ("conv", "bfloat16")]
)
def test_an_epoch_on_eight_devices_lowers_for_accelerators(
    platform: str, name: ModelName, precision: Precision
) -> None:
    config = ModelConfig(image_shape=(28, 28, 1), num_classes=10, name=name)
    model = build_model(config, precision)
    optimizer, mesh = optax.adam(1e-3), devices.make_mesh(NUM_DEVICES)
    on_all, divided = devices.on_all(mesh), devices.divided(mesh)
    program = jax.jit(
        partial(train_steps, model=model, optimizer=optimizer),
        in_shardings=(on_all, on_all, divided, on_all),
        out_shardings=on_all,
    )
    exported = export.export(program, platforms=[platform])(*epoch_shapes(model, optimizer, 128))
    assert exported.platforms == (platform,)
    assert exported.nr_devices == NUM_DEVICES
    module = exported.mlir_module()
    assert "stablehlo.while" in module
    kinds = ("stablehlo.dot_general", "stablehlo.convolution")
    products = [line for line in module.splitlines() if any(kind in line for kind in kinds)]
    assert len(products) >= 11  # four layers forward, and back to weights and activations
    assert all(("bf16" in line) == (precision == "bfloat16") for line in products)
