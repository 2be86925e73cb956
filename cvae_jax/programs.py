"""The functions of one run: bound to its model and its data, compiled at their first use."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvae_jax.batches import in_rows, put_on_device
from cvae_jax.config import RunConfig
from cvae_jax.evaluation import evaluate
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import CVAE
from cvae_jax.sampling import sample
from cvae_jax.training import epoch_order, init_state, train_steps
from cvae_jax.types import LossSums, Params, Splits, TrainState

_EVALUATION_BATCH = 1000
_EVALUATION_PIXELS = 8_000_000  # at a time, whatever the size of an image

# Most arithmetic in one dispatch, so that the progress bar moves every few seconds: about two
# seconds on a slow laptop, or on a small accelerator.
_DISPATCH_FLOPS_CPU = 6e10
_DISPATCH_FLOPS_ACCELERATOR = 1e13


class Programs(NamedTuple):
    """What a run dispatches to the device. Equal arguments give equal results."""

    init: Callable[[], TrainState]
    order: Callable[[int], jax.Array]  # epoch from 0 -> (dispatches, steps, B) indices
    train: Callable[[TrainState, jax.Array], tuple[TrainState, LossSums]]  # donates the state
    test: Callable[[Params], LossSums]
    samples: Callable[[Params, np.ndarray], jax.Array]  # labels (N,) -> images (N, H, W, C)
    steps_per_epoch: int


def build_programs(run: RunConfig, splits: Splits) -> Programs:
    """Put the data on the device and bind the functions of a run to it."""
    model, optimizer = CVAE(run.model), optax.adam(run.train.learning_rate)
    batch_size, num_examples = run.train.batch_size, len(splits.train.label)
    train_set, test_set = put_on_device(splits.train), put_on_device(splits.test)
    key = partial(make_key, run.train.seed)
    order_key, noise_key = key(Purpose.ORDER), key(Purpose.NOISE)
    test_key, samples_key = key(Purpose.TEST), key(Purpose.SAMPLES)
    init = jax.jit(partial(init_state, key(Purpose.WEIGHTS), model, optimizer))
    steps_per_epoch = math.ceil(num_examples / batch_size)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init).params))
    steps = _steps_per_dispatch(steps_per_epoch, 6 * num_params * batch_size)

    def order(epoch: int) -> jax.Array:
        rows = epoch_order(order_key, epoch, num_examples=num_examples, batch_size=batch_size)
        return in_rows(rows.ravel(), steps * batch_size).reshape(-1, steps, batch_size)

    train = jax.jit(
        partial(
            train_steps,
            model=model,
            optimizer=optimizer,
            skip_empty_rows=steps_per_epoch % steps != 0,
        ),
        donate_argnums=0,
    )
    num_pixels = math.prod(run.image_shape)
    at_a_time = max(1, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // num_pixels))
    test = jax.jit(partial(evaluate, model=model, batch_size=at_a_time))
    samples = jax.jit(partial(sample, model=model))
    return Programs(
        init=init,
        order=jax.jit(order),
        train=lambda state, rows: train(state, noise_key, train_set, rows),
        test=lambda params: test(params, test_key, test_set),
        samples=lambda params, label: samples(params, samples_key, jnp.arange(len(label)), label),
        steps_per_epoch=steps_per_epoch,
    )


def _steps_per_dispatch(steps_per_epoch: int, flops_per_step: float) -> int:
    """Cut an epoch into dispatches of equal length, the last with as few empty steps as can be."""
    on_cpu = jax.default_backend() == "cpu"
    most_flops = _DISPATCH_FLOPS_CPU if on_cpu else _DISPATCH_FLOPS_ACCELERATOR
    fewest = min(math.ceil(steps_per_epoch * flops_per_step / most_flops), steps_per_epoch)
    choices = range(fewest, min(2 * fewest, steps_per_epoch + 1))
    num_dispatches = min(choices, key=lambda number: -steps_per_epoch % number)
    return math.ceil(steps_per_epoch / num_dispatches)
