"""The Python API: train a model, load it, and use it."""

from __future__ import annotations  # so that the pages of the API show ArrayLike by its name

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from cvae_jax.config import (
    HIGHEST_TEMPERATURE,
    LARGEST_COUNT,
    LARGEST_SEED,
    PRESETS,
    PRETRAINED,
    TEMPERATURES,
    DataOptions,
    DeviceOptions,
    Pretrained,
    RunConfig,
    RunOptions,
    TrainConfig,
)
from cvae_jax.data.batches import map_rows
from cvae_jax.data.dataset import Splits
from cvae_jax.errors import CheckpointError, ConfigError
from cvae_jax.evaluation.likelihood import importance_log_likelihood
from cvae_jax.keys import Purpose, fold_in_each, make_key
from cvae_jax.models import build_model
from cvae_jax.models.family import Model, Params
from cvae_jax.models.sampling import draw_images
from cvae_jax.runtime.files import user_path
from cvae_jax.storage import checkpoints, weights, workdir
from cvae_jax.storage.history import EpochMetrics

_IMAGES_AT_A_TIME, _LATENTS_AT_A_TIME = 100, 100


def train(data: str | Splits = "mnist", *, verbose: bool = False, **settings: Any) -> TrainedModel:
    """Train a model, or resume its run, and return it as `load` does.

    Args:
        data: the name of a data set, or its arrays.
        verbose: whether to print and to show a progress bar; warnings are always printed.
        **settings: any option of `cvae-jax train` under its Python name, for example epochs=3,
            preset="best", workdir="runs/mine" or latent_dim=20 (`config.py` has all of them).

    Raises:
        TypeError: a setting does not exist.
        ConfigError: a setting is out of bounds.
        UserError: the run failed, as in `training.loop.train`.

    Example:
        >>> import cvae_jax
        >>> small = {"hidden_dim": 64, "latent_dim": 10, "workdir": "runs/small"}
        >>> model = cvae_jax.train("mnist", epochs=1, num_devices=1, **small)
        >>> 100 < model.history[0].test_loss < 250  # nats per image
        True
    """
    from cvae_jax.training import loop  # late, so that `load` starts without it

    if not isinstance(data, str | Splits):
        raise TypeError(f"data must be a name or Splits, not {type(data).__name__}")
    settings |= {"quiet": not verbose}
    if isinstance(data, str):
        settings["dataset"] = data
    else:
        settings.setdefault("dataset", "arrays")
    for name in ("workdir", "data_dir"):
        if settings.get(name) == "":
            raise ConfigError(f"{name} '' is empty; name a folder, or leave it out")
        if settings.get(name) is not None:
            settings[name] = Path(settings[name])
    settings = PRESETS.get(str(settings.get("preset")), {}) | settings
    groups: list[Any] = []
    for kind in (TrainConfig, RunOptions, DataOptions, DeviceOptions):
        hints = get_type_hints(kind)
        names = [name for name in hints if name in settings]
        values = {name: _checked(name, settings.pop(name), hints[name]) for name in names}
        groups.append(kind(**values))
    config, options, source, spread = groups
    if settings:
        raise TypeError(f"there is no setting {', '.join(settings)}; config.py lists all of them")
    splits = None if isinstance(data, str) else data
    return load(loop.train(config, options, source, spread, splits))


def load(folder: str | Path, step: int | None = None) -> TrainedModel:
    """Load a trained model.

    Args:
        folder: the workdir of a run; or a folder of exported weights; or "original" or "best", the
            models of MNIST in this package, where there is no folder of that name.
        step: the step of the checkpoint; None for the newest whole one, or for weights.

    Raises:
        ConfigError: there is no such folder or step.
        CheckpointError: there is no checkpoint, or it is damaged or can't be read.

    Example:
        >>> import cvae_jax
        >>> model = cvae_jax.load("original")
        >>> model.run.train.dataset, model.run.image_shape, model.run.train.latent_dim
        ('mnist', (28, 28, 1), 50)
    """
    if folder in get_args(Pretrained) and not Path(folder).exists():
        folder = PRETRAINED / folder
    folder = user_path("workdir", Path(folder))
    if (folder / weights.WEIGHTS).exists() and not (folder / workdir.CHECKPOINTS).exists():
        if step is not None:
            raise ConfigError(f"--step {step} is not in {folder}, which has weights alone")
        run, params = weights.read(folder)
        return TrainedModel(folder / weights.WEIGHTS, run, build_model(run.model), params, ())
    run = workdir.read_config(folder)
    checkpoint = _choose(folder, step)
    model = build_model(run.model)
    # The key is made inside: outside, it would be computed.
    part = "average" if run.train.ema else "params"
    like = {part: jax.eval_shape(lambda: model.init(jax.random.key(0)))}
    restored, progress = checkpoints.restore(checkpoint, like, run)
    params = jax.device_put(jax.device_get(restored[part]))  # bound to no device, for `map_rows`
    return TrainedModel(checkpoint, run, model, params, progress.history)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return the value of a setting; raise `ConfigError` where its type is not the setting's."""
    value = value.item() if isinstance(value, np.generic) else value
    kinds = get_args(hint) or (hint,)  # of `int | None` both, of a Literal its values
    if float in kinds and type(value) is int:
        return float(value)
    own = [bool] if type(value) is bool else type(value).__mro__  # a bool is no int here
    if value in kinds or any(kind in kinds for kind in own):
        return value
    allowed = " or ".join(getattr(kind, "__name__", repr(kind)) for kind in kinds)
    raise ConfigError(f"{name} {value!r} can't be used; it must be {allowed}")


def _choose(folder: Path, step: int | None) -> Path:
    directory = folder / workdir.CHECKPOINTS
    if step is None:
        newest = checkpoints.find_newest(directory)
        if newest is None:
            raise CheckpointError(
                f"no checkpoint in {directory}; make one with: {workdir.train_command(folder)}"
            )
        return newest
    steps = checkpoints.list_steps(directory)
    if type(step) is not int or step not in steps:
        raise ConfigError(f"--step {step} is not in {directory}; choose one of {steps}")
    checkpoint = directory / str(step)
    if damage := checkpoints.find_damage(checkpoint):
        raise CheckpointError(f"{checkpoint} is damaged ({damage}); choose another of {steps}")
    return checkpoint


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model. Its methods take and return NumPy arrays and compile once for each size.

    An image is (H, W, C) or (H, W), float in [0, 1] or uint8; several images have one more axis,
    the first. A label is a class from 0 to Y - 1: one for all images, or one for each. The result
    for a single image has no first axis. Images or labels that don't fit the model raise
    ValueError.

    Attributes:
        checkpoint: the folder of the checkpoint, or the file of the weights.
        run: the settings.
        model: its pure functions, from `build_model`.
        params: their parameters.
        history: the losses of each epoch; empty for weights alone.

    Example:
        >>> import cvae_jax
        >>> model = cvae_jax.load("original")
        >>> image = cvae_jax.load_dataset("mnist", source="bundled").test.image[0]  # of a 7
        >>> latent = model.encode(image, 7)  # its handwriting ...
        >>> model.decode(latent, 3).shape  # ... in a 3
        (28, 28, 1)
    """

    checkpoint: Path
    run: RunConfig
    model: Model
    params: Params = dataclasses.field(repr=False)
    history: tuple[EpochMetrics, ...] = dataclasses.field(repr=False)

    @property
    def step(self) -> int | None:
        """Steps of training of a checkpoint; None for weights alone.

        Example:
            >>> import cvae_jax
            >>> cvae_jax.load("original").step is None
            True
        """
        return int(name) if (name := self.checkpoint.name).isdecimal() else None

    def sample(
        self, label: npt.ArrayLike, num: int = 10, seed: int = 0, temperature: float = 1.0
    ) -> np.ndarray:
        """Draw samples of p(x | y); return pixel means, (N, H, W, C) float32 in [0, 1].

        Args:
            label: a class, drawn `num` times, or a list of N classes, each drawn once.
            num: number of images of one class.
            seed: from 0 to 2**32 - 1; equal seeds give equal images.
            temperature: what the latents are multiplied by: below 1 for more usual images.

        Example:
            >>> import cvae_jax
            >>> model = cvae_jax.load("original")
            >>> sixes = model.sample(6, num=4, seed=1)
            >>> sixes.shape, sixes.dtype.name, bool((sixes == model.sample(6, 4, seed=1)).all())
            ((4, 28, 28, 1), 'float32', True)
            >>> model.sample([2, 0, 2, 6], temperature=0.7).shape  # each once
            (4, 28, 28, 1)
        """
        _require_count("num", num, 1)
        _require_count("seed", seed, 0, LARGEST_SEED)
        if not 0 <= temperature <= HIGHEST_TEMPERATURE:
            raise ValueError(f"temperature is {temperature}; it must be {TEMPERATURES}")
        shape = np.shape(label) or (num,)
        labels = self._labels(label, shape)
        return draw_images(self.params, labels, seed, model=self.model, temperature=temperature)

    def encode(self, image: npt.ArrayLike, label: npt.ArrayLike) -> np.ndarray:
        """Return the centre of q(z | x, y), (Z,) or (N, Z), where the prior is N(0, I).

        Args:
            image: one image or several.
            label: a class, or one for each image.

        Example:
            >>> import cvae_jax
            >>> model = cvae_jax.load("original")
            >>> test = cvae_jax.load_dataset("mnist", source="bundled").test
            >>> model.encode(test.image[0], test.label[0]).shape
            (50,)
            >>> model.encode(test.image[:20], test.label[:20]).shape
            (20, 50)
        """
        images, is_one = self._images(image)
        latent = self._encode(self.params, images, self._labels(label, (len(images),)))
        return np.asarray(latent)[0] if is_one else np.asarray(latent)

    def decode(self, latent: npt.ArrayLike, label: npt.ArrayLike) -> np.ndarray:
        """Return the pixel means of p(x | z, y), (H, W, C) or (N, H, W, C), in [0, 1].

        Args:
            latent: (Z,) or (N, Z), for example from `encode`.
            label: a class, or one for each latent.

        Example:
            >>> import cvae_jax
            >>> import numpy as np
            >>> model = cvae_jax.load("original")
            >>> test = cvae_jax.load_dataset("mnist", source="bundled").test
            >>> latent = model.encode(test.image[0], test.label[0])
            >>> again = model.decode(latent, test.label[0])
            >>> bool(np.abs(again - test.image[0] / 255).mean() < 0.05)
            True
            >>> digits = np.arange(10)
            >>> model.decode(np.tile(latent, (10, 1)), digits).shape  # all in one handwriting
            (10, 28, 28, 1)
        """
        latents = np.asarray(latent, np.float32)
        is_one, size = latents.ndim == 1, self.model.latent_dim
        if latents.ndim not in (1, 2) or latents.shape[-1] != size or not len(latents):
            raise ValueError(f"latents of shape {latents.shape} don't fit the model's, ({size},)")
        latents = latents.reshape(-1, size)
        image = self._decode(self.params, latents, self._labels(label, (len(latents),)))
        return np.asarray(image)[0] if is_one else np.asarray(image)

    def log_likelihood(
        self, image: npt.ArrayLike, label: npt.ArrayLike, num_samples: int = 100, seed: int = 0
    ) -> np.ndarray:
        """Estimate log p(x | y) by importance sampling, in nats per image, () or (N,).

        In expectation it is a lower bound, which rises with `num_samples` (Burda et al. 2016). It
        is the logarithm of a probability for black and white images only.

        Args:
            image: one image or several.
            label: a class, or one for each image.
            num_samples: latents of each image.
            seed: from 0 to 2**32 - 1; fixes the latents.

        Example:
            >>> import cvae_jax
            >>> model = cvae_jax.load("original")
            >>> image = cvae_jax.load_dataset("mnist", source="bundled").test.image[0] > 127
            >>> as_seven, as_one = (model.log_likelihood(image, label) for label in (7, 1))
            >>> bool(as_one < as_seven < 0)
            True
        """
        _require_count("num_samples", num_samples, 1)
        _require_count("seed", seed, 0, LARGEST_SEED)
        images, is_one = self._images(image)
        labels = self._labels(label, (len(images),))

        def estimate(row: jax.Array) -> jax.Array:
            chosen = images[row], labels[row], row
            return self._likelihood(self.params, *chosen, np.uint32(seed), num_samples)

        batch_size = min(len(images), _IMAGES_AT_A_TIME)
        with jax.default_matmul_precision("highest"):  # as in an evaluation, on any device
            found: np.ndarray = map_rows(estimate, len(images), batch_size)
        return found[0] if is_one else found

    @cached_property
    def _encode(self) -> Any:
        def centre(params: Params, image: jax.Array, label: jax.Array) -> jax.Array:
            noise = jnp.zeros((len(label), self.model.latent_dim))
            return self.model.autoencode(params, image, label, noise).latent

        return jax.jit(centre)

    @cached_property
    def _decode(self) -> Any:
        return jax.jit(lambda *args: jax.nn.sigmoid(self.model.decode(*args)))

    @cached_property
    def _likelihood(self) -> Any:
        def estimate(
            params: Params,
            image: jax.Array,
            label: jax.Array,
            index: jax.Array,
            seed: jax.Array,
            num_samples: int,
        ) -> jax.Array:
            return importance_log_likelihood(
                params,
                image,
                label,
                fold_in_each(make_key(seed, Purpose.LIKELIHOOD), index),
                model=self.model,
                num_samples=num_samples,
                chunk_size=min(num_samples, _LATENTS_AT_A_TIME),
            ).log_likelihood

        return jax.jit(estimate, static_argnums=5)

    def _images(self, image: npt.ArrayLike) -> tuple[np.ndarray, bool]:
        """Return images as (N, H, W, C) float32 in [0, 1], and whether one was given alone."""
        array, shape = np.asarray(image), self.run.image_shape
        shapes = [shape, shape[:2]] if shape[2] == 1 else [shape]
        is_one = array.shape in shapes
        if not is_one and (array.shape[1:] not in shapes or not len(array)):
            raise ValueError(f"images of shape {array.shape} don't fit the model's, {shape}")
        if array.dtype == np.uint8:
            array = array / np.float32(255)
        array = array.astype(np.float32).reshape(-1, *shape)
        if not (array.min(initial=0) >= 0 and array.max(initial=1) <= 1):
            raise ValueError("float images must lie in [0, 1]; whole grey levels must be uint8")
        return array, is_one

    def _labels(self, label: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
        """Return labels as (N,) int32."""
        labels = np.asarray(label)
        if not np.issubdtype(labels.dtype, np.integer) or (
            labels.size and not 0 <= labels.min() <= labels.max() < self.run.num_classes
        ):
            raise ValueError(f"there is no class {label!r}; choose 0 to {self.run.num_classes - 1}")
        if labels.shape not in ((), shape) or 0 in shape:
            raise ValueError(f"labels of shape {labels.shape} don't fit {shape[0]} images")
        return np.broadcast_to(labels, shape).astype(np.int32)


def _require_count(name: str, value: int, least: int, most: int = LARGEST_COUNT) -> None:
    if not (isinstance(value, int | np.integer) and least <= value <= most):
        raise ValueError(f"{name} {value!r} can't be used; choose an int from {least} to {most}")
