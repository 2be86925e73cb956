"""`cvae-jax sample`: draw images of the classes you ask for."""

import dataclasses
import sys
from pathlib import Path

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import LARGEST_SEED, RunConfig, require, require_count
from cvae_jax.errors import ConfigError, UserError

_MOST_IMAGES = 10_000_000
_MOST_IN_PICTURE = 1000


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Draw images from a trained model."""

    digit: int | None = None
    """Class to draw. Default: each class in turn."""
    num: int | None = None
    """Number of images. Default: ten of --digit, or one of each class."""
    seed: int = 0
    """Seed of the latent noise; the same seed gives the same images."""
    workdir: Path = Path("runs/mnist")
    """Folder of the trained model."""
    step: int | None = None
    """Checkpoint to load, by its training step. Default: the newest."""
    out: Path | None = None
    """Picture to write (PNG). Default: digit_<digit>.png or digits.png in the workdir; none where
    --npz is given."""
    npz: Path | None = None
    """Arrays to write (NPZ): image, float32 (N, H, W, C) in [0, 1], and label, int32."""
    show: bool = False
    """Show the picture in a window as well."""

    def __post_init__(self) -> None:
        if self.num is not None:
            require_count("num", self.num, most=_MOST_IMAGES)
        if self.step is not None:
            require_count("step", self.step, least=0)
        require_count("seed", self.seed, least=0, most=LARGEST_SEED)
        for name, path in (("out", self.out), ("npz", self.npz)):
            ending = ".png" if name == "out" else ".npz"
            if path is not None:
                require(path.suffix.lower() == ending, name, path, f"a name that ends in {ending}")


def run(options: SampleOptions) -> None:
    """Draw samples from a checkpoint and write them as a picture, as arrays, or both."""
    with many_imports():
        import numpy as np

        from cvae_jax import api
        from cvae_jax.drawing import modes
        from cvae_jax.runtime import devices
        from cvae_jax.runtime.files import user_path, whole_file, write_arrays

    digit, out = options.digit, options.out and user_path("out", options.out)
    npz = options.npz and user_path("npz", options.npz)
    devices.describe()  # reports in one line where JAX can't start
    model = api.load(options.workdir, options.step)
    if out is None and (npz is None or options.show):
        name = "digits.png" if digit is None else f"digit_{digit}.png"
        out = user_path("workdir", options.workdir) / name
    label = np.array(choose_labels(digit, options.num, model.run, is_picture=bool(out)), np.int32)
    print(f"model: {model.checkpoint}", flush=True)
    of = "every class" if digit is None else f"class {digit}"
    picture = modes.samples(
        model.params,
        label,
        options.seed,
        model=model.model,
        title=f"{model.run.train.dataset}: samples of {of}",
        description="drawing",
    )
    if npz:
        write_arrays(npz, image=picture.image, label=label)
        print(f"wrote {npz}")
    if out:
        with whole_file(out) as file:
            picture.figure().savefig(file, format="png")
        print(f"wrote {out}")
        if options.show:
            _show(out)


def choose_labels(
    digit: int | None, num: int | None, run: RunConfig, *, is_picture: bool
) -> list[int]:
    """Return the classes to draw: `num` times one of them, or each in turn.

    Raises:
        ConfigError: the data set has no such class, or there are too many for a picture.
    """
    if digit is not None and not 0 <= digit < run.num_classes:
        raise ConfigError(
            f"--digit {digit} does not exist in {run.train.dataset}; "
            f"choose 0 to {run.num_classes - 1}"
        )
    num = num or (run.num_classes if digit is None else 10)
    if is_picture and num > _MOST_IN_PICTURE:
        raise ConfigError(
            f"--num {num} is too many for a picture; choose up to {_MOST_IN_PICTURE}, or "
            "--npz without --out"
        )
    return [i % run.num_classes for i in range(num)] if digit is None else [digit] * num


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
