"""The training step and the scan over many of them: (state, batch, key) -> (state, sums)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cvae_jax.data.batches import Batch, Gathered, binarize, in_turn
from cvae_jax.data.dataset import Dataset
from cvae_jax.models.family import Model, Params
from cvae_jax.models.objective import elbo_terms
from cvae_jax.noise import batch_noise
from cvae_jax.storage.history import LossSums


class TrainState(NamedTuple):
    """Everything that training changes. Keys and batches are functions of (seed, step) alone."""

    step: jax.Array  # () int32, batches trained on so far
    params: Params
    opt_state: Any
    average: Params | None = None  # the moving average of `params`, in a run that keeps one

    @property
    def tested(self) -> Params:
        """The parameters that are tested and sampled: the average where there is one."""
        return self.params if self.average is None else self.average


def init_state(
    key: jax.Array,
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    has_average: bool = False,
) -> TrainState:
    """Return the state before the first step; `key` fixes the weights."""
    params = model.init(key)
    average = jax.tree.map(jnp.copy, params) if has_average else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def batch_loss(params: Params, batch: Batch, noise: jax.Array, *, model: Model) -> LossSums:
    """Return the loss of a batch, BCE plus KL, summed over its real examples, in nats.

    Args:
        params: the model's parameters.
        batch: image (B, ...), label (B,), mask (B,).
        noise: (B, Z) standard normal.
        model: the model that `params` belong to.
    """
    terms = elbo_terms(params, batch.image, batch.label, noise, model=model)
    return LossSums(
        reconstruction=-(terms.log_likelihood * batch.mask).sum(),
        kl=(terms.kl.sum(axis=-1) * batch.mask).sum(),
        num_examples=batch.mask.sum(),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    binarize_key: jax.Array | None = None,
    ema: float = 0.0,
) -> tuple[TrainState, LossSums]:
    """Take one optimizer step on the loss summed over a batch (BCE plus KL, in nats).

    It is pure, to be bound and compiled by the caller:
    `jax.jit(partial(train_step, model=model, optimizer=optimizer), donate_argnames="state")`.

    Args:
        state: the state before the step.
        batch: image (B, ...), label (B,), mask (B,).
        key: one typed key for the whole run; the noise of a step is a function of it and of
            `state.step`.
        model: the model that `state.params` belong to.
        optimizer: the transformation that `state.opt_state` belongs to.
        binarize_key: one typed key for the whole run; the images are drawn black and white from
            it and `state.step`. None: their grey levels are used as they are.
        ema: decay of the moving average of the parameters, in a state that has one.

    Returns:
        The new state, and the loss of the batch before the step.

    Example:
        >>> from functools import partial
        >>> import jax, numpy as np, optax
        >>> import cvae_jax
        >>> from cvae_jax.config import ModelConfig
        >>> from cvae_jax.data.batches import Batch
        >>> from cvae_jax.training.step import init_state
        >>> model = cvae_jax.build_model(ModelConfig(image_shape=(28, 28, 1), num_classes=10))
        >>> optimizer = optax.adam(1e-3)
        >>> state = init_state(jax.random.key(0), model, optimizer)
        >>> image, label = cvae_jax.load_dataset("mnist", source="bundled").train
        >>> batch = Batch(image[:100] / np.float32(255), label[:100], np.ones(100, np.float32))
        >>> step = jax.jit(partial(cvae_jax.train_step, model=model, optimizer=optimizer))
        >>> losses = []
        >>> for _ in range(5):
        ...     state, sums = step(state, batch, jax.random.key(1))
        ...     losses.append(float(sums.loss / sums.num_examples))  # nats per image
        >>> int(state.step), losses[4] < losses[0]
        (5, True)
    """
    noise_key = jax.random.fold_in(key, state.step)
    noise = batch_noise(noise_key, len(batch.label), model.latent_dim)
    if binarize_key is not None:
        image_key = jax.random.fold_in(binarize_key, state.step)
        batch = batch._replace(image=binarize(batch.image, image_key))

    def loss(params: Params) -> tuple[jax.Array, LossSums]:
        sums = batch_loss(params, batch, noise, model=model)
        return sums.loss, sums

    gradient, sums = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        # A short memory at first, so that the average forgets the initial weights.
        decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, params)
    return TrainState(state.step + 1, params, opt_state, average), sums


def train_steps(
    state: TrainState,
    examples: Dataset | Gathered,
    order: jax.Array,
    key: jax.Array,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    binarize_key: jax.Array | None = None,
    ema: float = 0.0,
) -> tuple[TrainState, LossSums]:
    """Take one step for each row of `order` in one `lax.scan`: an epoch, or a part of one.

    Args:
        state: the state before the first step; donate it.
        examples: the training set on the device, or the batches of `order`, gathered by the host.
        order: (S, B) int32 indices into the training set, from `batches.epoch_order`.
        key: as in `train_step`.
        model: as in `train_step`.
        optimizer: as in `train_step`.
        binarize_key: as in `train_step`.
        ema: as in `train_step`.

    Returns:
        The state after the last step, and the sums of every step, each (S,).
    """
    entries, make_batch = in_turn(examples, order)
    one_step = partial(
        train_step, model=model, optimizer=optimizer, binarize_key=binarize_key, ema=ema
    )

    def step(state: TrainState, entry: Any) -> tuple[TrainState, jax.Array]:
        state, sums = one_step(state, make_batch(entry), key)
        # One array, because on a GPU three would be three copies and cut the step's graph in two.
        return state, jnp.stack(sums)

    state, sums = jax.lax.scan(step, state, entries)
    return state, LossSums(*sums.T)


def is_finite(state: TrainState) -> jax.Array:
    """Return whether every number of a state is finite, () bool."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
