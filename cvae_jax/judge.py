"""A small convolutional classifier, which judges what a model draws.

Its classes give the accuracy of conditional samples; its penultimate features stand in for those
of an Inception network, which knows nothing of digits.
"""

import math
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from cvae_jax.batches import images_at_a_time, in_rows, take_batch
from cvae_jax.types import ArrayLike, Dataset, Params, Track, TrainState

NUM_FEATURES = 128

_EPOCHS = 12  # at least
_FEWEST_STEPS = 2000
_BATCH = 128
_LEARNING_RATE, _WEIGHT_DECAY, _LABEL_SMOOTHING, _DROPOUT = 2e-3, 1e-2, 0.1, 0.3
_PIXELS_PER_SHIFT = 14  # images of 28 pixels are shifted by up to two


class Verdict(NamedTuple):
    """What the judge says of each image."""

    features: ArrayLike  # (N, NUM_FEATURES) float32, of the layer before the last
    logits: ArrayLike  # (N, Y)


class Judge(nn.Module):
    """Four convolutions and two dense layers, for images of any size."""

    num_classes: int

    @nn.compact
    def __call__(self, image: jax.Array, dropout_key: jax.Array | None = None) -> Verdict:
        """Classify images, (B, H, W, C) float32 in [0, 1].

        Args:
            image: what to classify.
            dropout_key: one typed key in training; nothing is dropped without it.
        """
        hidden = nn.relu(nn.Conv(24, (5, 5), strides=2)(image))
        hidden = nn.relu(nn.Conv(48, (3, 3))(hidden))
        hidden = nn.relu(nn.Conv(64, (3, 3), strides=2)(hidden))
        hidden = nn.relu(nn.Conv(64, (3, 3))(hidden))
        hidden = hidden.reshape(hidden.shape[0], -1)
        features = nn.relu(nn.Dense(NUM_FEATURES)(hidden))
        dropout = nn.Dropout(_DROPOUT, deterministic=dropout_key is None)
        return Verdict(features, nn.Dense(self.num_classes)(dropout(features, rng=dropout_key)))


def judge(
    params: Params, image: jax.Array, num_classes: int, dropout_key: jax.Array | None = None
) -> Verdict:
    """Apply `Judge` as a function of its parameters."""
    return cast(Verdict, Judge(num_classes).apply({"params": params}, image, dropout_key))


def shift(key: jax.Array, image: jax.Array) -> jax.Array:
    """Shift each image, (B, H, W, C), by a few pixels of its own; black comes in."""
    height, width = image.shape[1:3]
    most = (round(height / _PIXELS_PER_SHIFT), round(width / _PIXELS_PER_SHIFT))
    padded = jnp.pad(image, ((0, 0), (most[0], most[0]), (most[1], most[1]), (0, 0)))
    limits = 2 * jnp.array(most, jnp.int32)[jnp.newaxis] + 1
    starts = jax.random.randint(key, (image.shape[0], 2), 0, limits)

    def cut(one: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(one, (*start, 0), image.shape[1:])

    return jax.vmap(cut)(padded, starts)


def init_judge(key: jax.Array, image_shape: tuple[int, int, int], num_classes: int) -> Params:
    """Make the parameters that training the judge starts from."""
    return Judge(num_classes).init(key, jnp.zeros((1, *image_shape)))["params"]


def train_judge(
    key: jax.Array,
    dataset: Dataset,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    track: Track = iter,
) -> Params:
    """Train a judge: AdamW, a cosine schedule, shifted images, smoothed labels, dropout.

    Products are in JAX's default precision, which on accelerators is not all of float32.

    Args:
        key: one typed key; with equal data it gives equal weights.
        dataset: the training set on the device, flat.
        image_shape: (H, W, C).
        num_classes: Y.
        track: goes through the steps.
    """
    init_key, order_key, step_key = (jax.random.fold_in(key, i) for i in range(3))
    num_examples = len(dataset.label)
    batch_size = min(_BATCH, num_examples)
    steps_per_epoch = math.ceil(num_examples / batch_size)
    num_steps = max(_EPOCHS * steps_per_epoch, _FEWEST_STEPS)
    schedule = optax.cosine_decay_schedule(_LEARNING_RATE, num_steps)
    optimizer = optax.adamw(schedule, weight_decay=_WEIGHT_DECAY)

    @jax.jit
    def order(epoch: int) -> jax.Array:
        shuffled = jax.random.permutation(jax.random.fold_in(order_key, epoch), num_examples)
        return in_rows(shuffled, batch_size)

    # One step a dispatch: inside a scan XLA's convolutions on a CPU took twenty times as long.
    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, dataset: Dataset, rows: jax.Array) -> TrainState:
        batch = take_batch(dataset, rows[state.step % steps_per_epoch])
        shift_key, dropout_key = jax.random.split(jax.random.fold_in(step_key, state.step))
        image = shift(shift_key, batch.image.reshape(-1, *image_shape))
        target = optax.smooth_labels(jax.nn.one_hot(batch.label, num_classes), _LABEL_SMOOTHING)

        def loss(params: Params) -> jax.Array:
            _, logits = judge(params, image, num_classes, dropout_key)
            cross_entropy = optax.softmax_cross_entropy(logits, target)
            return (cross_entropy * batch.mask).sum() / batch.mask.sum()

        # In full float32 a TPU's compiler takes minutes for the gradients of the convolutions.
        with jax.default_matmul_precision("default"):
            gradient = jax.grad(loss)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)

    params = jax.jit(partial(init_judge, image_shape=image_shape, num_classes=num_classes))(
        init_key
    )
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    for number in track(range(num_steps)):
        if number % steps_per_epoch == 0:
            rows = order(number // steps_per_epoch)
        state = step(state, dataset, rows)
    return state.params


def judge_all(
    params: Params, dataset: Dataset, image_shape: tuple[int, int, int], num_classes: int
) -> Verdict:
    """Judge every image of a data set on the device; the verdicts lie on the host.

    Args:
        params: the judge's.
        dataset: images (N, D) uint8; its labels are not looked at.
        image_shape: (H, W, C).
        num_classes: Y.
    """

    @jax.jit
    def program(params: Params, dataset: Dataset, row: jax.Array) -> Verdict:
        image = take_batch(dataset, row).image.reshape(-1, *image_shape)
        return judge(params, image, num_classes)

    num_examples = len(dataset.label)
    at_a_time = min(num_examples, images_at_a_time(math.prod(image_shape)))
    rows = in_rows(jnp.arange(num_examples), at_a_time)
    verdicts = [jax.device_get(program(params, dataset, row)) for row in rows]
    return Verdict(*(np.concatenate(parts)[:num_examples] for parts in zip(*verdicts, strict=True)))
