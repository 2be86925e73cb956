"""Many devices, here eight of the CPU: the same results, divided work, and clear refusals."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from cvae_jax import sharding, training
from cvae_jax.batches import epoch_order, put_on_device
from cvae_jax.config import Binarize, ModelConfig, RunConfig
from cvae_jax.models import CVAE
from cvae_jax.programs import Programs, build_programs
from cvae_jax.types import ConfigError, LossSums, Splits, TrainState
from tests.conftest import NUM_DEVICES, epoch_shapes


def train_epoch(programs: Programs) -> tuple[TrainState, LossSums, list[LossSums], jax.Array]:
    state = programs.init()
    sums = []
    for piece in programs.pieces(0, 0):
        state, part = programs.train(state, piece)
        sums.append(part)
    train = jax.tree.map(lambda *parts: jnp.concatenate(parts), *sums)
    label = np.arange(10, dtype=np.int32)
    return state, train, programs.test(state.params), programs.samples(state.params, label)


# Whatever is drawn at random in training, none of it may depend on the devices.
@pytest.mark.parametrize(("binarize", "number"), [("none", 2), ("dynamic", NUM_DEVICES)])
def test_more_devices_give_what_one_gives(
    binarize: Binarize, number: int, small_run: RunConfig, small_splits: Splits
) -> None:
    run = dataclasses.replace(
        small_run, train=dataclasses.replace(small_run.train, binarize=binarize)
    )
    one = train_epoch(build_programs(run, small_splits))
    many = train_epoch(build_programs(run, small_splits, sharding.make_mesh(number)))
    for found, expected in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        assert found.sharding.num_devices == number
        assert found.is_fully_replicated
        # Rounding alone, though Adam divides a gradient near zero by its own size.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
    # The first step has met no such division: the same images and noise, to the last digits.
    np.testing.assert_allclose(many[1].loss[0], one[1].loss[0], rtol=1e-6)


def test_each_device_works_on_its_part_and_they_speak_once_a_step(
    small_run: RunConfig, small_splits: Splits
) -> None:
    mesh = sharding.make_mesh(NUM_DEVICES)
    model, optimizer = CVAE(small_run.model), optax.adam(1e-3)
    program = jax.jit(
        partial(training.train_steps, model=model, optimizer=optimizer),
        out_shardings=sharding.on_all(mesh),
    )
    key = jax.device_put(jax.random.key(0), sharding.on_all(mesh))
    state = jax.device_put(
        training.init_state(jax.random.key(0), model, optimizer), sharding.on_all(mesh)
    )
    train_set = put_on_device(small_splits.train, sharding.on_all(mesh))
    rows = epoch_order(jax.random.key(0), 0, num_examples=1000, batch_size=128)
    order = sharding.put(rows, sharding.divided(mesh))
    text = program.lower(state, key, train_set, order).compile().as_text()
    assert text is not None
    assert text.count(" all-reduce(") == 1
    for other in ("all-gather", "all-to-all", "collective-permute"):
        assert other not in text
    assert "f32[16,32]" in text  # 128 / 8 images by the hidden units
    assert "f32[128,32]" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_epoch_on_eight_devices_lowers_for_accelerators(platform: str, precision: Any) -> None:
    model = CVAE(ModelConfig((28, 28, 1), 10), precision=precision)
    optimizer = optax.adam(1e-3)
    mesh = sharding.make_mesh(NUM_DEVICES)
    on_all, divided = sharding.on_all(mesh), sharding.divided(mesh)
    program = jax.jit(
        partial(training.train_steps, model=model, optimizer=optimizer),
        in_shardings=(on_all, on_all, on_all, divided),
        out_shardings=on_all,
    )
    exported = export.export(program, platforms=[platform])(*epoch_shapes(model, optimizer, 128))
    assert exported.platforms == (platform,)
    assert exported.nr_devices == NUM_DEVICES
    module = exported.mlir_module()
    assert "stablehlo.while" in module
    products = [line for line in module.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) >= 11  # four layers forward, and back to weights and activations
    assert all(("bf16" in line) == (precision == "bfloat16") for line in products)


def test_a_batch_that_does_not_divide_is_refused_with_both_numbers() -> None:
    mesh = sharding.make_mesh(NUM_DEVICES)
    sharding.require_divisible(128, mesh)
    expected = r"--batch-size 100 can't be divided among 8 devices; choose a multiple of 8, or "
    with pytest.raises(ConfigError, match=rf"^{expected}--num-devices 5$"):
        sharding.require_divisible(100, mesh)


def test_more_devices_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--num-devices 9 .* JAX sees 8, choose 1 to 8"):
        sharding.make_mesh(9)
    assert sharding.make_mesh().size == NUM_DEVICES
