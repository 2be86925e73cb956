"""The training step and the scan over many of them: (state, key, batch) -> (state, sums)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cvae_jax import objective
from cvae_jax.batches import binarize, in_turn
from cvae_jax.models import CVAE, init_params
from cvae_jax.types import Batch, Dataset, Gathered, LossSums, Params, TrainState


def init_state(key: jax.Array, model: CVAE, optimizer: optax.GradientTransformation) -> TrainState:
    """Make the state before the first step; `key` fixes the weights."""
    params = init_params(key, model)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def train_step(
    state: TrainState,
    key: jax.Array,
    batch: Batch,
    *,
    model: CVAE,
    optimizer: optax.GradientTransformation,
    binarize_key: jax.Array | None = None,
) -> tuple[TrainState, LossSums]:
    """Take one optimizer step on the loss summed over a batch (BCE plus KL, in nats).

    Pure, and made to be bound and compiled by the caller:
    `jax.jit(partial(train_step, model=model, optimizer=optimizer), donate_argnames="state")`.

    Args:
        state: the state before the step.
        key: one typed key for the whole run; the noise of a step is a function of it and of
            `state.step`.
        batch: image (B, ...), label (B,), mask (B,).
        model: the module that `state.params` belong to.
        optimizer: the transformation that `state.opt_state` belongs to.
        binarize_key: one typed key for the whole run; the images are drawn black and white from
            it and `state.step`. None: their grey levels are used as they are.

    Returns:
        The new state, and the loss of the batch before the step.
    """
    noise_key = jax.random.fold_in(key, state.step)
    if binarize_key is not None:
        image_key = jax.random.fold_in(binarize_key, state.step)
        batch = batch._replace(image=binarize(image_key, batch.image))

    def loss(params: Params) -> tuple[jax.Array, LossSums]:
        sums = objective.batch_loss(model, params, noise_key, batch)
        return sums.loss, sums

    gradient, sums = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), sums


def train_steps(
    state: TrainState,
    key: jax.Array,
    examples: Dataset | Gathered,
    order: jax.Array,
    *,
    model: CVAE,
    optimizer: optax.GradientTransformation,
    binarize_key: jax.Array | None = None,
) -> tuple[TrainState, LossSums]:
    """Take one step for each row of `order` in one `lax.scan`: an epoch, or a part of one.

    Args:
        state: the state before the first step; donate it.
        key: as in `train_step`.
        examples: the training set on the device, or what `order` takes of it.
        order: (S, B) int32 indices into the training set, from `batches.epoch_order`.
        model: as in `train_step`.
        optimizer: as in `train_step`.
        binarize_key: as in `train_step`.

    Returns:
        The state after the last step, and the sums of every step, each (S,).
    """
    entries, make_batch = in_turn(examples, order)
    one_step = partial(train_step, model=model, optimizer=optimizer, binarize_key=binarize_key)

    def step(state: TrainState, entry: Any) -> tuple[TrainState, jax.Array]:
        state, sums = one_step(state, key, make_batch(entry))
        # One array of them: on a GPU three would be three copies, and cut the step's graph in two.
        return state, jnp.stack(sums)

    state, sums = jax.lax.scan(step, state, entries)
    return state, LossSums(*sums.T)


def is_finite(state: TrainState) -> jax.Array:
    """Tell whether every number of a state is finite, () bool."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
