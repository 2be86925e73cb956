"""The ways to draw of `cvae-jax sample`: from options and a model to a picture."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from cvae_jax.api import TrainedModel
from cvae_jax.commands.sample import SampleOptions, class_of
from cvae_jax.config import ModelConfig, require
from cvae_jax.data.dataset import Dataset
from cvae_jax.data.sources import load_again
from cvae_jax.drawing import figures, modes, photo
from cvae_jax.drawing.paths import circle
from cvae_jax.drawing.pictures import Picture
from cvae_jax.errors import ConfigError, UserError
from cvae_jax.models.sampling import draw_latents
from cvae_jax.runtime.files import user_path
from cvae_jax.storage import workdir

_LONGEST_TEXT, _MOST_ROWS, _MOST_IMAGES = 50, 50, 500
_TRAVERSED = 4  # the class, unless --digit says so


def draw(options: SampleOptions, model: TrainedModel) -> Picture:
    """Draw in the way that the options name.

    Raises:
        ConfigError: an option's value does not fit the model.
        UserError: the data set, the run's grids or the user's picture can't be read or used.
    """
    picture = _DRAW[options.way.name](options, model)
    return dataclasses.replace(picture, title=f"{model.run.train.dataset}: {picture.title}")


def _text(options: SampleOptions, model: TrainedModel) -> Picture:
    written = options.way.text or ""
    is_short = 0 < len(written) <= _LONGEST_TEXT
    require(is_short, "text", repr(written), f"1 to {_LONGEST_TEXT} characters")
    label = classes_of(written, model.run.model)
    latent = _latents(_num(options, 5), options, model)
    return modes.text(model.params, label, latent, model=model.model)


def classes_of(text: str, config: ModelConfig) -> np.ndarray:
    """Return the class of each character of a text, (L,) int32.

    A letter without a class of its own has that of the other case.

    Raises:
        ConfigError: a character is no class.
    """
    label_of = {name: label for label, name in enumerate(config.names) if len(name) == 1}
    for character in text:
        if character.swapcase() in label_of:
            label_of.setdefault(character, label_of[character.swapcase()])
        if character not in label_of:
            names = " ".join(name for name in config.names if len(name) == 1)
            allowed = f"write with {names}" if names else "its classes have no letters; use --class"
            raise ConfigError(f"--text {text} has {character!r}, which is no class; {allowed}")
    return np.array([label_of[character] for character in text], np.int32)


def _same_style(options: SampleOptions, model: TrainedModel) -> Picture:
    num = _num(options, 6)
    if not options.gif:
        latent = _latents(num, options, model)
    else:
        start, through = np.split(_latents(2 * num, options, model), 2)
        latent = circle(start, through, modes.NUM_FRAMES)
    return modes.same_style(model.params, latent, model=model.model)


def _interpolate(options: SampleOptions, model: TrainedModel) -> Picture:
    assert options.way.interpolate
    first, second = (class_of("interpolate", one, model.run) for one in options.way.interpolate)
    num, given = _num(options, 10 if options.gif else 5), None
    if options.from_test:
        wanted = [first] * num + [second] * num
        images = modes.choose(_test_set(options, model), wanted, options.seed)
        latent, _ = modes.encode(model.params, images, model=model.model)
        given = modes.grey_levels(images.image)
        given = given.reshape(2, num, *given.shape[1:])
    else:
        latent = _latents(2 * num, options, model)
    return modes.interpolate(
        model.params,
        latent.reshape(2, num, -1),
        (first, second),
        model=model.model,
        given=given,
        is_moving=options.gif,
    )


def _traverse(options: SampleOptions, model: TrainedModel) -> Picture:
    num = min(_num(options, 8), model.model.latent_dim)
    label = [min(_TRAVERSED, model.run.num_classes - 1) if options.digit is None else options.digit]
    if options.gif and options.digit is None:
        label = list(modes.shown_classes(model.model))
    return modes.traverse(
        model.params,
        _test_set(options, model),
        np.array(label, np.int32),
        num,
        model=model.model,
        is_moving=options.gif,
    )


def _reconstruct(options: SampleOptions, model: TrainedModel) -> Picture:
    test, num = _test_set(options, model), _num(options, 20, most=_MOST_IMAGES)
    classes = np.unique(np.asarray(test.label)) if options.digit is None else [options.digit]
    wanted = np.resize(classes, num).tolist()
    images = modes.choose(test, wanted, options.seed)
    return modes.reconstruct(model.params, images, model=model.model)


def _restyle(options: SampleOptions, model: TrainedModel) -> Picture:
    assert options.way.restyle is not None
    assert options.digit is not None
    if model.run.image_shape[2] != 1:
        raise ConfigError(
            f"--restyle needs a model of grey images; {model.run.train.dataset} is not"
        )
    path = user_path("restyle", options.way.restyle)
    given = photo.read(path)
    try:
        image = photo.prepare(given, model.run.image_shape)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return modes.restyle(model.params, image, options.digit, given, model=model.model)


def _map(options: SampleOptions, model: TrainedModel) -> Picture:
    test = _test_set(options, model)
    return modes.latent_map(model.params, test, options.digit, model=model.model)


def _film(options: SampleOptions, model: TrainedModel) -> Picture:
    if model.step is None:
        raise ConfigError(f"--film needs the workdir of a run, and {model.checkpoint} is none")
    folder = user_path("workdir", options.model_folder) / workdir.SAMPLES
    epochs = {
        int(found[1]): path
        for path in folder.glob("epoch_*.png")
        if (found := re.fullmatch(r"epoch_(\d+)", path.stem))
    }
    shown = modes.choose_epochs(sorted(epochs.keys() & {row.epoch for row in model.history}))
    if len(shown) < 2:
        raise UserError(
            f"a film needs the sample grids of two epochs, and {folder} has {len(shown)}; train "
            "with --sample-every 1 for one in each epoch"
        )
    try:
        grids = [
            figures.read_grid(photo.read_colours(epochs[epoch]), model.run.image_shape)
            for epoch in shown
        ]
        images = np.stack(grids)
    except ValueError as error:
        raise UserError(f"{folder} holds other pictures than grids of samples: {error}") from error
    return modes.film(images, shown, model.history, names=model.run.model.names)


_DRAW: dict[str, Callable[[SampleOptions, TrainedModel], Picture]] = {
    "text": _text,
    "same_style": _same_style,
    "interpolate": _interpolate,
    "traverse": _traverse,
    "reconstruct": _reconstruct,
    "restyle": _restyle,
    "map": _map,
    "film": _film,
}


def _num(options: SampleOptions, default: int, most: int = _MOST_ROWS) -> int:
    if options.num is None:
        return default
    way = options.way.name.replace("_", "-")
    require(options.num <= most, "num", options.num, f"up to {most} with --{way}")
    return options.num


def _latents(num: int, options: SampleOptions, model: TrainedModel) -> np.ndarray:
    """Return the latents of the first samples of the seed, (R, Z)."""
    return np.float32(options.temperature) * draw_latents(num, options.seed, model=model.model)


def _test_set(options: SampleOptions, model: TrainedModel) -> Dataset:
    return load_again(model.run, options.data).test
