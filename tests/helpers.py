"""What several test modules share."""

import csv
import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvae_jax.config import ModelConfig, RunConfig, TrainConfig
from cvae_jax.data.batches import epoch_order
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.models.family import Autoencoding, Model, Params
from cvae_jax.storage import checkpoints
from cvae_jax.training.loop import build_programs
from cvae_jax.training.step import TrainState, init_state

NUM_DEVICES = 8
"""Of the CPU. A test uses the first one alone, unless it says otherwise."""

SMALL = ModelConfig(image_shape=(28, 28, 1), num_classes=10, hidden_dim=32, latent_dim=5)
SMALL_CONFIG = TrainConfig(hidden_dim=32, latent_dim=5)
CONV_SETTINGS = {
    "model": "conv",
    "prior": "flow",
    "channels": 4,
    "schedule": "cosine",
    "decay_epochs": 4,
    "warmup_steps": 5,
    "clip_norm": 50.0,
    "ema": 0.99,
}
"""Of a small model like `best`. Its programs take long to compile, so tests share them."""


def assert_trees_equal(left: object, right: object) -> None:
    """Compare two pytrees to the bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)  # type: ignore[operator]
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def run_config(splits: Splits, config: TrainConfig = SMALL_CONFIG) -> RunConfig:
    """Return the settings of a run on a data set."""
    return splits.run(config)


def read_metrics(workdir: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without their seconds."""
    with (workdir / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(file)
        ]


def final_state(workdir: Path, splits: Splits, config: TrainConfig = SMALL_CONFIG) -> TrainState:
    """Return the state in the newest checkpoint of a workdir."""
    run = run_config(splits, config)
    like = jax.eval_shape(build_programs(run, splits).init)
    newest = checkpoints.find_newest(workdir / "checkpoints")
    assert newest is not None
    parts = {name: part for name, part in like._asdict().items() if part is not None}
    return TrainState(**checkpoints.restore(newest, parts, run)[0])


def random_params(model: Model) -> Params:
    """Return weights that are not those of the start; those of `init` take long to compile."""
    random = np.random.default_rng(0)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        is_wild = "flow" in jax.tree_util.keystr(path)  # a wild prior has weights of wild variance
        scale = 0.05 if is_wild or shape.ndim == 1 else 0.5 / math.prod(shape.shape[:-1]) ** 0.5
        return jnp.asarray(scale * random.standard_normal(shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def epoch_shapes(model: Model, optimizer: optax.GradientTransformation, batch_size: int) -> Any:
    """Return the shapes of the arguments of `train_steps` for an epoch of all MNIST."""
    key = jax.random.key(0)
    order = partial(epoch_order, num_examples=60_000, batch_size=batch_size)
    return (
        jax.eval_shape(partial(init_state, model=model, optimizer=optimizer), key),
        jax.eval_shape(
            lambda: Dataset(jnp.zeros((60_000, 784), jnp.uint8), jnp.zeros((60_000,), jnp.int32))
        ),
        jax.eval_shape(lambda: order(key=key, epoch=0)),
        jax.eval_shape(lambda: key),
    )


CLASSES = [5, 6, 7, 8]  # of eight to nine; the test set has two of them


def write_data(folder: Path, num_train: int = 40, num_test: int = 8) -> Path:
    """Write a tiny data set as IDX files."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, number, classes in (("train", num_train, CLASSES), ("t10k", num_test, [6, 8])):
        image = random.integers(0, 256, (number, 5, 4), np.uint8)
        label = np.resize(classes, number).astype(np.uint8)
        for kind, array in (("images-idx3", image), ("labels-idx1", label)):
            head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(
                f">{array.ndim}I", *array.shape
            )
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return folder


# A model whose log p(x | y) is known: logits linear in a latent of one dimension, so that
# p(x | y) is an integral over the real line, which Gauss-Hermite quadrature gives exactly.

TOY = ModelConfig(image_shape=(2, 3, 1), num_classes=3, hidden_dim=1, latent_dim=1)


def toy_model() -> Model:
    """Return the model; its q(z | x, y) is a normal distribution that depends on both."""

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 4)
        return {
            "slope": jax.random.normal(keys[0], (3, 6)),
            "offset": jax.random.normal(keys[1], (3, 6)),
            "encoder": 0.3 * jax.random.normal(keys[2], (3, 6)),
            "logvar": -0.5 + 0.1 * jax.random.normal(keys[3], (3,)),
        }

    def decode(params: Params, latent: jax.Array, label: jax.Array) -> jax.Array:
        logits = params["slope"][label] * latent + params["offset"][label]
        return logits.reshape(-1, *TOY.image_shape)

    def autoencode(
        params: Params, image: jax.Array, label: jax.Array, noise: jax.Array
    ) -> Autoencoding:
        flat = image.reshape(len(label), -1)
        mean = (params["encoder"][label] * flat).sum(axis=-1, keepdims=True)
        logvar = params["logvar"][label][:, jnp.newaxis]
        latent = mean + jnp.exp(0.5 * logvar) * noise
        log_ratio = 0.5 * (latent**2 - noise**2 - logvar).sum(axis=-1)
        kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar)
        return Autoencoding(latent, decode(params, latent, label), log_ratio, kl)

    return Model(TOY, 1, init, autoencode, decode)


def toy_log_likelihood(params: Params, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return log p(x | y) of the toy model for images (N, 6) and labels (N,), in nats."""
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    slope, offset = (
        np.asarray(params[name], np.float64)[label][:, np.newaxis] for name in ("slope", "offset")
    )
    logits = slope * node[np.newaxis, :, np.newaxis] + offset  # (N, nodes, D)
    log_p = (image[:, np.newaxis] * logits - np.logaddexp(0, logits)).sum(axis=-1)
    return np.asarray(np.log((weight / weight.sum() * np.exp(log_p)).sum(axis=-1)))


# A model that draws real images: its parameters are some of each class, and its latent chooses.

NUM_REAL = 200


def drawing_from(dataset: Dataset, swapped: dict[int, int] | None = None) -> tuple[Model, Params]:
    """Return a model that draws images of a data set, of other classes where `swapped` says so."""
    label, given = np.asarray(dataset.label), swapped or {}
    chosen = [np.flatnonzero(label == given.get(i, i))[:NUM_REAL] for i in range(10)]
    image = np.asarray(dataset.image)[np.array(chosen)] / np.float32(255)
    config = ModelConfig((28, 28, 1), 10, latent_dim=1)

    def decode(params: Params, latent: jax.Array, label: jax.Array) -> jax.Array:
        which = (NUM_REAL * jax.scipy.stats.norm.cdf(latent[:, 0])).astype(jnp.int32)
        return jax.scipy.special.logit(params[label, which].clip(1e-4, 1 - 1e-4))

    def autoencode(
        params: Params, image: jax.Array, label: jax.Array, noise: jax.Array
    ) -> Autoencoding:
        nothing = jnp.zeros(len(label))
        return Autoencoding(noise, decode(params, noise, label), nothing, nothing[:, jnp.newaxis])

    return Model(config, 1, lambda _: jnp.asarray(image), autoencode, decode), image


# A model whose images show its latent and its class, and which reads an image's latent from it.


def glass_model(latent_dim: int = 3, num_classes: int = 4, num_groups: int | None = None) -> Model:
    """Return the model; its logits are the latent, and the class.

    Args:
        latent_dim: Z; an image is (1, Z + 1, 1).
        num_classes: Y.
        num_groups: G of `kl`, which rises from dimension to dimension; None for Z.
    """
    config = ModelConfig((1, latent_dim + 1, 1), num_classes, latent_dim=latent_dim)

    def decode(params: Params, latent: jax.Array, label: jax.Array) -> jax.Array:
        logits = jnp.concatenate([latent, label[:, jnp.newaxis].astype(jnp.float32)], axis=1)
        return logits.reshape(-1, *config.image_shape)

    def autoencode(
        params: Params, image: jax.Array, label: jax.Array, noise: jax.Array
    ) -> Autoencoding:
        latent = jax.scipy.special.logit(image.reshape(-1, latent_dim + 1)[:, :-1]) + noise
        kl = jnp.arange(num_groups or latent_dim, dtype=jnp.float32)
        kl = jnp.broadcast_to(kl, (len(label), len(kl)))
        return Autoencoding(latent, decode(params, latent, label), kl.sum(axis=-1), kl)

    return Model(config, latent_dim, lambda _: {}, autoencode, decode)


def behind_glass(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents, (..., Z), and the classes, (...), that images of a glass model show."""
    image = image.reshape(*image.shape[:-3], -1).astype(np.float64)
    logits = np.log(image / (1 - image))
    return logits[..., :-1], logits[..., -1]
