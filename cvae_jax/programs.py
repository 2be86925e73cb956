"""The functions of one run: bound to its model and its data, compiled at their first use."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvae_jax.batches import binarize_dataset, images_at_a_time, put_on_device
from cvae_jax.config import RunConfig
from cvae_jax.evaluation import evaluate
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import CVAE, count_params
from cvae_jax.sampling import sample
from cvae_jax.training import epoch_order, init_state, is_finite, train_steps
from cvae_jax.types import LossSums, Params, Splits, TrainState

# Most arithmetic in one dispatch, so that the progress bar moves every few seconds: about two
# seconds on a slow laptop, or on a small accelerator.
_DISPATCH_FLOPS_CPU = 6e10
_DISPATCH_FLOPS_ACCELERATOR = 1e13

_Item = TypeVar("_Item")


class Programs(NamedTuple):
    """What a run dispatches to the device. Equal arguments give equal results."""

    init: Callable[[], TrainState]
    order: Callable[[int, int], tuple[jax.Array, ...]]  # epoch and first row, from 0 -> (S, B) each
    train: Callable[[TrainState, jax.Array], tuple[TrainState, LossSums]]  # donates the state
    is_finite: Callable[[TrainState], jax.Array]
    copy: Callable[[TrainState], TrainState]
    test: Callable[[Params], LossSums]
    samples: Callable[[Params, np.ndarray], jax.Array]  # labels (N,) -> images (N, H, W, C)
    steps_per_epoch: int


class Dispatch(NamedTuple):
    """One piece of an epoch, sent to the device; nothing in it has been waited for."""

    step: int  # batches trained on after it
    train: LossSums  # (S,) each
    is_finite: jax.Array  # () bool, of the state after it
    test: LossSums | None  # at the end of an epoch
    # Its arrays are gone with the next dispatch, which takes over their memory, but for a copy
    # at the end of an epoch that is kept.
    state: TrainState


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
    steps = _steps_per_dispatch(steps_per_epoch, 6 * count_params(run.model) * batch_size)

    @partial(jax.jit, static_argnums=1)
    def order(epoch: int, first_row: int) -> tuple[jax.Array, ...]:
        rows = epoch_order(order_key, epoch, num_examples=num_examples, batch_size=batch_size)
        return tuple(rows[i : i + steps] for i in range(first_row, steps_per_epoch, steps))

    binarize_key = None
    if run.train.binarize == "dynamic":
        binarize_key = key(Purpose.BINARIZE)
        test_set = jax.jit(binarize_dataset)(key(Purpose.TEST_BINARIZE), test_set)
    bound = partial(train_steps, model=model, optimizer=optimizer, binarize_key=binarize_key)
    train = jax.jit(bound, donate_argnums=0)
    at_a_time = images_at_a_time(math.prod(run.image_shape))
    test = jax.jit(partial(evaluate, model=model, batch_size=at_a_time))
    samples = jax.jit(partial(sample, model=model))
    return Programs(
        init=init,
        order=order,
        train=lambda state, rows: train(state, noise_key, train_set, rows),
        is_finite=jax.jit(is_finite),
        copy=jax.jit(partial(jax.tree.map, jnp.copy)),
        test=lambda params: test(params, test_key, test_set),
        samples=lambda params, label: samples(params, samples_key, jnp.arange(len(label)), label),
        steps_per_epoch=steps_per_epoch,
    )


def dispatch_epochs(
    programs: Programs,
    state: TrainState,
    num_epochs: int,
    is_kept: Callable[[int], bool],
    is_stopped: Callable[[], object],
) -> Iterator[Dispatch]:
    """Send the rest of a run to the device, without waiting for any of it.

    Args:
        programs: the run's.
        state: where it begins, which may be in the middle of an epoch; its memory is taken over.
        num_epochs: the run ends after so many.
        is_kept: whether the state at the end of an epoch, numbered from 1, is copied.
        is_stopped: asked before each dispatch; no more is sent once it says so.
    """
    num_batches, step = programs.steps_per_epoch, int(state.step)
    while step < num_epochs * num_batches:
        for rows in programs.order(*divmod(step, num_batches)):
            if is_stopped():
                return
            state, sums = programs.train(state, rows)
            step += len(rows)
            epoch, batch = divmod(step, num_batches)
            yield Dispatch(
                step=step,
                train=sums,
                is_finite=programs.is_finite(state),
                test=None if batch else programs.test(state.params),
                state=programs.copy(state) if not batch and is_kept(epoch) else state,
            )


def one_behind(items: Iterable[_Item]) -> Iterator[_Item]:
    """Give each item once the next one is made, so that the device works while it is read."""
    previous: list[_Item] = []
    for item in items:
        yield from previous
        previous = [item]
    yield from previous


def _steps_per_dispatch(steps_per_epoch: int, flops_per_step: float) -> int:
    """Cut an epoch into dispatches, of equal length if there is such a cut: one compilation."""
    on_cpu = jax.default_backend() == "cpu"
    most_flops = _DISPATCH_FLOPS_CPU if on_cpu else _DISPATCH_FLOPS_ACCELERATOR
    fewest = min(math.ceil(steps_per_epoch * flops_per_step / most_flops), steps_per_epoch)
    choices = range(fewest, min(2 * fewest, steps_per_epoch + 1))
    even = [number for number in choices if steps_per_epoch % number == 0]
    return math.ceil(steps_per_epoch / (even[0] if even else fewest))
