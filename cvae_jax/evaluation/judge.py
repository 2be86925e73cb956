"""The judge: a small classifier of real images, used to measure samples.

Its predicted class gives the accuracy of conditional samples. Its penultimate features replace
those of an Inception network, which was never trained on digits. The judge of MNIST ships with the
package; that of another data set is trained once and kept in the user's cache folder.
"""

import io
import logging
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm.auto import tqdm

from cvae_jax.data.batches import (
    epoch_order,
    images_at_a_time,
    map_rows,
    put_on_device,
    take_batch,
)
from cvae_jax.data.dataset import ArrayLike, Dataset, Splits
from cvae_jax.errors import UserError
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models.family import Params
from cvae_jax.runtime.files import cache_folder, reason, whole_file

NUM_FEATURES = 128
BUNDLED = Path(__file__).parents[1] / "data" / "mnist" / "judge.npz"
"""The judge of MNIST, made by `cvae-jax train-judge`."""

_EPOCHS, _FEWEST_STEPS = 12, 2000  # whichever is more
_BATCH = 128
_LEARNING_RATE, _WEIGHT_DECAY, _LABEL_SMOOTHING, _DROPOUT = 2e-3, 1e-2, 0.1, 0.3
_PIXELS_PER_SHIFT = 14  # images of 28 pixels are shifted by up to two
_RECIPE = 1  # of the network and its training; a change makes cached judges invalid
_SEED = 0
_DATA = "data_sha256"

_log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """The output of the judge for each image."""

    features: ArrayLike  # (N, NUM_FEATURES) float32, of the layer before the last
    logits: ArrayLike  # (N, Y)


class Judge(nn.Module):
    """Four convolutions and two dense layers, for images of any size."""

    num_classes: int

    @nn.compact
    def __call__(self, image: jax.Array, dropout_key: jax.Array | None = None) -> Verdict:
        """Classify images, (B, H, W, C) float32 in [0, 1]; a key drops features, for training."""
        hidden = nn.relu(nn.Conv(24, (5, 5), strides=2)(image))
        hidden = nn.relu(nn.Conv(48, (3, 3))(hidden))
        hidden = nn.relu(nn.Conv(64, (3, 3), strides=2)(hidden))
        hidden = nn.relu(nn.Conv(64, (3, 3))(hidden))
        hidden = hidden.reshape(hidden.shape[0], -1)
        features = nn.relu(nn.Dense(NUM_FEATURES)(hidden))
        dropout = nn.Dropout(_DROPOUT, deterministic=dropout_key is None)
        return Verdict(features, nn.Dense(self.num_classes)(dropout(features, rng=dropout_key)))


def init_judge(key: jax.Array, image_shape: tuple[int, int, int], num_classes: int) -> Params:
    """Return the parameters that training a judge starts from."""
    return Judge(num_classes).init(key, jnp.zeros((1, *image_shape)))["params"]


def judge(
    params: Params, image: jax.Array, num_classes: int, dropout_key: jax.Array | None = None
) -> Verdict:
    """Apply `Judge` as a function of its parameters."""
    return cast(Verdict, Judge(num_classes).apply({"params": params}, image, dropout_key))


def shift(image: jax.Array, key: jax.Array) -> jax.Array:
    """Shift each image, (B, H, W, C), by a few pixels at random, and fill up with black."""
    height, width = image.shape[1:3]
    most = (round(height / _PIXELS_PER_SHIFT), round(width / _PIXELS_PER_SHIFT))
    padded = jnp.pad(image, ((0, 0), (most[0], most[0]), (most[1], most[1]), (0, 0)))
    limits = 2 * jnp.array(most, jnp.int32)[jnp.newaxis] + 1
    starts = jax.random.randint(key, (image.shape[0], 2), 0, limits)

    def cut(one: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(one, (*start, 0), image.shape[1:])

    return jax.vmap(cut)(padded, starts)


def train_judge(
    dataset: Dataset,
    key: jax.Array,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_steps: int | None = None,
    description: str = "",
) -> Params:
    """Train a judge: AdamW, a cosine schedule, shifted images, smoothed labels, dropout.

    Products are in JAX's default precision, which on accelerators is not all of float32. Equal
    keys and data give equal weights.

    Args:
        dataset: the training set on the device, flat.
        key: one typed key.
        image_shape: (H, W, C).
        num_classes: Y.
        num_steps: None for 12 epochs or 2,000 steps, whichever is more.
        description: the name of the progress bar; empty for no bar.
    """
    init_key, order_key, step_key = (jax.random.fold_in(key, i) for i in range(3))
    num_examples = len(dataset.label)
    batch_size = min(_BATCH, num_examples)
    steps_per_epoch = math.ceil(num_examples / batch_size)
    num_steps = num_steps or max(_EPOCHS * steps_per_epoch, _FEWEST_STEPS)
    schedule = optax.cosine_decay_schedule(_LEARNING_RATE, num_steps)
    optimizer = optax.adamw(schedule, weight_decay=_WEIGHT_DECAY)

    order = jax.jit(
        partial(epoch_order, key=order_key, num_examples=num_examples, batch_size=batch_size)
    )

    # One step a dispatch: inside a scan XLA's convolutions on a CPU took twenty times as long.
    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(
        params: Params, opt_state: Any, dataset: Dataset, rows: jax.Array, step: jax.Array
    ) -> tuple[Params, Any]:
        batch = take_batch(dataset, rows[step % steps_per_epoch])
        shift_key, dropout_key = jax.random.split(jax.random.fold_in(step_key, step))
        image = shift(batch.image.reshape(-1, *image_shape), shift_key)
        target = optax.smooth_labels(jax.nn.one_hot(batch.label, num_classes), _LABEL_SMOOTHING)

        def loss(params: Params) -> jax.Array:
            _, logits = judge(params, image, num_classes, dropout_key)
            cross_entropy = optax.softmax_cross_entropy(logits, target)
            return (cross_entropy * batch.mask).sum() / batch.mask.sum()

        # In full float32 a TPU's compiler takes minutes for the gradients of the convolutions.
        with jax.default_matmul_precision("default"):
            gradient = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    init = jax.jit(partial(init_judge, image_shape=image_shape, num_classes=num_classes))
    params = init(init_key)
    opt_state = optimizer.init(params)
    for step in tqdm(range(num_steps), desc=description, unit="step", disable=not description):
        if step % steps_per_epoch == 0:
            rows = order(step // steps_per_epoch)
        params, opt_state = train_step(params, opt_state, dataset, rows, np.int32(step))
    return params


def judge_all(
    params: Params, dataset: Dataset, *, image_shape: tuple[int, int, int], num_classes: int
) -> Verdict:
    """Judge every image of a data set on the device, (N, D) uint8; return NumPy arrays."""

    @jax.jit
    def judge_row(params: Params, dataset: Dataset, row: jax.Array) -> Verdict:
        image = take_batch(dataset, row).image.reshape(-1, *image_shape)
        return judge(params, image, num_classes)

    num_examples = len(dataset.label)
    batch_size = min(num_examples, images_at_a_time(math.prod(image_shape)))
    return cast(Verdict, map_rows(partial(judge_row, params, dataset), num_examples, batch_size))


def find_judge(splits: Splits, fingerprint: str) -> Params:
    """Return the judge of a data set; if there is none yet, train one and keep it.

    Args:
        splits: the data set.
        fingerprint: its `Splits.fingerprint`, which takes a while for a large one.
    """
    folder = cache_folder() or Path(tempfile.gettempdir()) / "cvae_jax"
    kept = folder / f"judge-{_RECIPE}-{fingerprint[:32]}.npz"
    for path in (BUNDLED, kept):
        params = read(path, splits, fingerprint)
        if params is not None:
            return params
    params = make_judge(splits)
    try:
        with whole_file(kept) as file:
            file.write(encode(params, fingerprint))
    except UserError as error:
        _log.warning("%s; the next evaluation has to train the judge again", error)
    return params


def make_judge(splits: Splits) -> Params:
    """Train the judge of a data set, always from the same seed."""
    return train_judge(
        put_on_device(splits.train),
        make_key(_SEED, Purpose.JUDGE),
        image_shape=splits.image_shape,
        num_classes=splits.num_classes,
        description="training the judge",
    )


def encode(params: Params, fingerprint: str) -> bytes:
    """Return a judge and the fingerprint of its data set as the contents of an NPZ file."""
    arrays = flatten_dict(jax.device_get(params), sep=".") | {_DATA: np.array(fingerprint)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def read(path: Path, splits: Splits, fingerprint: str) -> Params | None:
    """Read a judge; return None if the file is missing, damaged or of other data."""
    init = partial(init_judge, image_shape=splits.image_shape, num_classes=splits.num_classes)
    like = jax.eval_shape(init, jax.random.key(0))
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays[_DATA]) != fingerprint:
                return None
            found = {name: arrays[name] for name in arrays.files if name != _DATA}
        for name, wanted in flatten_dict(like, sep=".").items():
            if found[name].shape != wanted.shape or found[name].dtype != wanted.dtype:
                raise ValueError(f"{name} is {found[name].dtype}{found[name].shape}")
            if not np.isfinite(found[name]).all():
                raise ValueError(f"{name} is not finite")
    except FileNotFoundError:
        return None
    except Exception as error:  # on a damaged file zipfile and NumPy raise a dozen types
        _log.warning("the judge %s is damaged (%s); training another one", path, reason(error))
        return None
    return unflatten_dict(found, sep=".")
