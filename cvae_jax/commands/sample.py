"""`cvae-jax sample`: draw images of the classes you ask for."""

import contextlib
import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import (
    HIGHEST_TEMPERATURE,
    LARGEST_SEED,
    TEMPERATURES,
    DataOptions,
    ModelOptions,
    RunConfig,
    require,
    require_count,
)
from cvae_jax.errors import ConfigError, UserError

if TYPE_CHECKING:
    from cvae_jax.drawing.pictures import Picture

_MOST_IMAGES = 10_000_000
_MOST_IN_PICTURE = 1000
_MOST_NAMED = 100  # classes, in an error

# Options that only some ways to draw know; all know the others. "samples" is none of the ways.
_MOVING = {"same_style", "interpolate", "traverse"}
_FROM_NOISE = {"samples", "text", "same_style", "interpolate"}
_OF_A_CLASS = {"samples", "traverse", "reconstruct", "restyle", "map"}
_KNOWN_BY = {
    "digit": _OF_A_CLASS,
    "class_name": _OF_A_CLASS,
    "num": _FROM_NOISE | {"traverse", "reconstruct"},
    "seed": _FROM_NOISE | {"traverse", "reconstruct", "map"},
    "temperature": _FROM_NOISE,
    "binary": _FROM_NOISE | {"traverse", "map"},
    "from_test": {"interpolate"},
    "gif": _MOVING | {"film"},
    "npz": {"samples"},
}


@dataclasses.dataclass(frozen=True)
class WayOptions:
    """Ways to draw, one at a time. Without one: samples of --digit, or of each class."""

    text: str | None = None
    """Write a text, such as 2026, in --num handwritings (5), a row for each."""
    same_style: bool = False
    """Draw every class in the same handwriting, in --num handwritings (6), a row for each."""
    interpolate: tuple[str, str] | None = None
    """Draw the way from one class to another, such as 3 8, between --num pairs of samples (5; in
    motion 10)."""
    traverse: bool = False
    """Follow the --num directions (8) of the latent that matter most, by up to three standard
    deviations to both sides. --digit is the class (4)."""
    reconstruct: bool = False
    """Draw --num test images (20), of --digit or of each class, over their reconstructions."""
    restyle: Path | None = None
    """Draw every class in the hand of your own picture of a --digit: a photo or a drawing of any
    size, dark on light or light on dark."""
    map: bool = False
    """Draw the encoded test set in two dimensions, and over it images decoded from there: of
    --digit, or of the class of the nearest test image."""
    film: bool = False
    """Show how the samples of a run sharpen from epoch to epoch (GIF), in up to 40 of its sample
    grids; train with --sample-every 1 for one in each epoch."""

    def __post_init__(self) -> None:
        if len(self._given) > 1:
            named = " and ".join(f"--{name.replace('_', '-')}" for name in self._given)
            raise ConfigError(f"{named} can't be drawn at once; choose one of them")

    @property
    def _given(self) -> list[str]:
        names = (field.name for field in dataclasses.fields(self))
        return [name for name in names if getattr(self, name) not in (None, False)]

    @property
    def name(self) -> str:
        """The way that was chosen; "samples" where none was."""
        return next(iter(self._given), "samples")


@dataclasses.dataclass(frozen=True)
class SampleOptions(ModelOptions):
    """Draw images from a trained model."""

    digit: int | None = None
    """Class to draw, by its number. Default: each class in turn."""
    class_name: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Class to draw, by its name or its number, such as A or "Ankle boot"."""
    num: int | None = None
    """Number of images. Default: ten of --digit, or one of each class."""
    seed: int = 0
    """Seed of the latent noise; the same seed gives the same images."""
    temperature: float = 1.0
    """Factor of the latent noise: below 1 for more usual images, above 1 for less usual ones."""
    binary: bool = False
    """Draw black and white pixels, with the model's means as the probabilities of white."""
    from_test: bool = False
    """With --interpolate: between test images; a picture at rest shows them beside their
    reconstructions."""
    gif: bool = False
    """Draw a moving picture (GIF): --same-style, --interpolate or --traverse in time."""
    out: Path | None = None
    """Picture to write (PNG or GIF). Default: digit_<digit>.png, class_<class>.png, digits.png or
    <way>.png in the workdir, or with --pretrained in the current folder; none where --npz is
    given."""
    npz: Path | None = None
    """Arrays to write (NPZ): image, float32 (N, H, W, C) in [0, 1], and label, int32."""
    show: bool = False
    """Show the picture in a window as well."""
    way: WayOptions = dataclasses.field(default_factory=WayOptions)
    data: DataOptions = dataclasses.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num is not None:
            require_count("num", self.num, most=_MOST_IMAGES)
        require_count("seed", self.seed, least=0, most=LARGEST_SEED)
        is_known = 0 <= self.temperature <= HIGHEST_TEMPERATURE  # false for NaN
        require(is_known, "temperature", self.temperature, TEMPERATURES)
        for name, path in (("out", self.out), ("npz", self.npz)):
            ending = self.ending if name == "out" else ".npz"
            if path is not None:
                require(path.suffix.lower() == ending, name, path, f"a name that ends in {ending}")
        default = {field.name: field.default for field in dataclasses.fields(self)}
        for name, ways in _KNOWN_BY.items():
            if getattr(self, name) != default[name] and self.way.name not in ways:
                way = "" if self.way.name == "samples" else f" with --{self.way.name}"
                option = name.removesuffix("_name")
                raise ConfigError(f"--{option} has no meaning{way}; leave it out".replace("_", "-"))
        for name in ("temperature", "binary"):
            if self.from_test and getattr(self, name) != default[name]:
                raise ConfigError(f"--{name} has no meaning with --from-test; leave it out")
        if self.digit is not None and self.class_name is not None:
            raise ConfigError("--digit and --class are the same; leave one of the two out")
        if self.way.name == "restyle" and self.digit is None and self.class_name is None:
            raise ConfigError("--restyle needs --digit or --class, that of your picture")

    @property
    def ending(self) -> str:
        """The ending of the picture's name."""
        return ".gif" if self.gif or self.way.film else ".png"


def run(options: SampleOptions) -> None:
    """Draw from a checkpoint, and write a picture, arrays, or both."""
    with many_imports():
        import numpy as np

        from cvae_jax import api
        from cvae_jax.commands import ways
        from cvae_jax.drawing import modes
        from cvae_jax.drawing.figures import class_captions
        from cvae_jax.runtime import devices
        from cvae_jax.runtime.files import user_path, whole_file, write_arrays

    way = options.way.name
    out = options.out and user_path("out", options.out)
    npz = options.npz and user_path("npz", options.npz)
    devices.describe()  # reports in one line where JAX can't start
    model = api.load(options.model_folder, options.step)
    digit, name = options.digit, "digits"
    if options.class_name is not None:
        digit = class_of("class", options.class_name, model.run)
        name = re.sub(r"\W+", "_", f"class_{model.run.model.names[digit]}")
    elif digit is not None:
        digit = class_of("digit", digit, model.run)
        name = f"digit_{digit}"
    options = dataclasses.replace(options, digit=digit, class_name=None)
    if out is None and (npz is None or options.show):
        stem = name if way == "samples" else way
        out = user_path("workdir", options.results) / f"{stem}{options.ending}"
    print(f"model: {model.checkpoint}", flush=True)
    if way == "samples":
        label = choose_labels(digit, options.num, model.run, is_picture=bool(out))
        of = "every class"
        if digit is not None:
            of = f"class {class_captions([digit], model.run.model.names)[0]}"
        picture: Picture = modes.samples(
            model.params,
            np.array(label, np.int32),
            options.seed,
            model=model.model,
            temperature=options.temperature,
            title=f"{model.run.train.dataset}: samples of {of}",
            description="drawing",
        )
    else:
        picture = ways.draw(options, model)
    if options.binary:
        picture = modes.binarize(picture, options.seed)
    if npz:
        write_arrays(npz, image=picture.image, label=np.array(label, np.int32))
        print(f"wrote {npz}")
    if out:
        with whole_file(out) as file:
            picture.write(file)
        print(f"wrote {out}")
        if options.show:
            _show(out)


def choose_labels(
    digit: int | None, num: int | None, run: RunConfig, *, is_picture: bool
) -> list[int]:
    """Return the classes to draw: `num` times one of them, or each in turn.

    Raises:
        ConfigError: there are too many for a picture.
    """
    num = num or (run.num_classes if digit is None else 10)
    if is_picture and num > _MOST_IN_PICTURE:
        raise ConfigError(
            f"--num {num} is too many for a picture; choose up to {_MOST_IN_PICTURE}, or "
            "--npz without --out"
        )
    return [i % run.num_classes for i in range(num)] if digit is None else [digit] * num


def class_of(option: str, named: str | int, run: RunConfig) -> int:
    """Return the class of a name, whatever the case of its letters, or of a number.

    Raises:
        ConfigError: the data set has no such class.
    """
    names = run.class_names
    for same in (lambda name: name == named, lambda name: name.lower() == str(named).lower()):
        if found := [label for label, name in enumerate(names) if same(name)]:
            return found[0]
    with contextlib.suppress(ValueError):
        if 0 <= int(named) < run.num_classes:
            return int(named)
    allowed = f"0 to {run.num_classes - 1}"
    if names:
        more = ", …" if len(names) > _MOST_NAMED else ""
        allowed += f", or one of {', '.join(names[:_MOST_NAMED])}{more}"
    raise ConfigError(f"--{option} {named} does not exist in {run.train.dataset}; choose {allowed}")


def _show(path: Path) -> None:
    import matplotlib.pyplot as plt

    backend = plt.get_backend().lower()
    outside_notebook = backend.startswith("module:") and "ipykernel" not in sys.modules
    if backend == "agg" or outside_notebook:
        raise UserError(f"there is no display to show the picture on; it is in {path}")
    plt.figure(frameon=False)
    plt.axis("off")
    plt.imshow(plt.imread(path))
    plt.show()
