"""Lower bounds of any implementation, in seconds an epoch: parts of the work, alone.

A step of the original model has eleven matrix products: four layers forward, four gradients of
weights, three of inputs. Each floor here is a contestant of `training_speed.py`.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks import environment
from benchmarks.contest import Timed, Work, timed
from benchmarks.torch_original import default_device
from cvae_jax.config import ModelConfig
from cvae_jax.models import build_model

_BATCH_SIZE, _NUM_STEPS = 128, 469
_LAYERS = ((794, 600), (600, 100), (60, 600), (600, 784))  # inputs and outputs of each
_REPEATS = 200


def prepare_products() -> Work:
    """Time each product by PyTorch, NumPy and JAX, and count the fastest of all repeats.

    Its operands are in the cache and nothing waits for its result.
    """
    torch.set_num_threads(environment.num_threads())
    rng = np.random.default_rng(0)
    calls = []
    for number, (inputs, outputs) in enumerate(_LAYERS):
        x, gradient, weight = (
            rng.standard_normal(shape, np.float32)
            for shape in ((_BATCH_SIZE, inputs), (_BATCH_SIZE, outputs), (inputs, outputs))
        )
        calls += [_ways(x, weight), _ways(x.T, gradient)]
        if number:  # the images need no gradient
            calls.append(_ways(gradient, weight.T))

    def measure() -> Timed:
        step = sum(min(_least_seconds(call) for call in ways) for ways in calls)
        return Timed(_NUM_STEPS * step, None)

    return measure


def _ways(left: np.ndarray, right: np.ndarray) -> list[Callable[[], object]]:
    """Return functions that multiply two matrices, each by another library."""
    device = default_device()
    tensors = [torch.from_numpy(array).to(device) for array in (left, right)]
    product = torch.empty(len(left), right.shape[1], device=device)
    transposed = [not array.flags.c_contiguous for array in (left, right)]
    arrays = [
        jnp.asarray(array.T if is_transposed else array)
        for array, is_transposed in zip((left, right), transposed, strict=True)
    ]

    @jax.jit
    def multiply(one: jax.Array, other: jax.Array) -> jax.Array:
        return (one.T if transposed[0] else one) @ (other.T if transposed[1] else other)

    ways: list[Callable[[], object]] = [
        lambda: torch.mm(*tensors, out=product),
        lambda: multiply(*arrays),
    ]
    if device.type == "cpu":
        out = np.empty(product.shape, np.float32)
        ways.append(lambda: np.matmul(left, right, out=out))
    return ways


def _least_seconds(call: Callable[[], object]) -> float:
    def seconds() -> float:
        started = time.perf_counter()
        result = jax.block_until_ready(call())
        if isinstance(result, torch.Tensor) and result.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return min(seconds() for _ in range(_REPEATS))


def prepare_scan_of_products() -> Work:
    """Time the same products in one compiled scan, each of the result of the one before it."""
    keys = jax.random.split(jax.random.key(0), len(_LAYERS) + 1)
    weights = [
        jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, shape in zip(keys[1:], _LAYERS, strict=True)
    ]
    # Eight batches in turn: XLA would move what is the same in all steps out of the scan.
    batches = jax.random.uniform(keys[0], (8, _BATCH_SIZE, _LAYERS[0][0]))

    def step(_: Any, index: jax.Array) -> tuple[list[jax.Array], None]:
        inputs = [batches[index % len(batches)]]
        for weight, (width, _) in zip(weights, [*_LAYERS[1:], (_LAYERS[-1][1], 0)], strict=True):
            inputs.append((inputs[-1] @ weight)[:, :width])
        gradient, gradients = inputs.pop(), []
        for number in reversed(range(len(_LAYERS))):
            gradients.append(inputs[number].T @ gradient)
            if number:
                gradient = gradient @ weights[number].T
                missing = _LAYERS[number - 1][1] - gradient.shape[1]
                gradient = jnp.pad(gradient, ((0, 0), (0, missing)))
        return gradients[::-1], None

    start = [jnp.zeros(shape) for shape in _LAYERS]
    scan = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(_NUM_STEPS))[0])
    return _timed(scan)


def prepare_scan_of_adam() -> Work:
    """Time Adam's steps alone in one compiled scan, with a constant gradient."""
    optimizer = optax.adam(1e-3)
    model = build_model(ModelConfig(image_shape=(28, 28, 1), num_classes=10))
    gradient = model.init(jax.random.key(0))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    carry = (gradient, optimizer.init(gradient))
    return _timed(jax.jit(lambda: jax.lax.scan(step, carry, None, length=_NUM_STEPS)[0]))


def _timed(compiled: Callable[[], Any]) -> Work:
    def work() -> None:
        jax.block_until_ready(compiled())

    return timed(work)
