"""From a trained model to pictures and arrays of the classes you ask for."""

import math
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from cvae_jax import figures, trained, workdir
from cvae_jax.config import RunConfig
from cvae_jax.devices import require_memory
from cvae_jax.files import require_writable, user_path, whole_file, write_arrays
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import CVAE
from cvae_jax.options import SampleOptions
from cvae_jax.sampling import sample
from cvae_jax.types import ConfigError, Params, UserError

_MOST_IN_PICTURE = 1000
_BATCH = 1000


def draw(options: SampleOptions) -> None:
    """Draw samples from a checkpoint and write them as a picture, as arrays, or both.

    Raises:
        ConfigError: the class or the step does not exist, a file can't be written where it shall
            be, or the images would be too many for a picture or for the memory.
        CheckpointError: there is no trained model, or it can't be read.
        UserError: a file can't be written, or there is no display to show it on.
    """
    folder = user_path("workdir", options.workdir)
    out = user_path("out", options.out) if options.out else None
    npz = user_path("npz", options.npz) if options.npz else None
    run = workdir.read_config(folder)
    if out is None and (npz is None or options.show):
        name = "digits.png" if options.digit is None else f"digit_{options.digit}.png"
        out = folder / name
    num = options.num or (run.num_classes if options.digit is None else 10)
    if out and num > _MOST_IN_PICTURE:
        raise ConfigError(
            f"--num {num} is too many for a picture; choose up to {_MOST_IN_PICTURE}, or "
            "--npz without --out"
        )
    label_and_image = 4 + 4 * math.prod(run.image_shape)
    require_memory(num * label_and_image, f"--num {num}", on_device=False)
    label = choose_labels(options.digit, num, run)
    if out:
        require_writable("out", out, folder=False)
    if npz:
        require_writable("npz", npz, folder=False)
    found = trained.load(folder, run, options.step)
    print(f"model: {found.checkpoint}", flush=True)
    image = _sample_all(found.params, options.seed, label, found.model)
    if npz:
        _write_arrays(npz, image, label)
    if out:
        of = "every class" if options.digit is None else f"class {options.digit}"
        _write_picture(out, image, label, f"{run.train.dataset}: samples of {of}")
        if options.show:
            _show(out)


def choose_labels(digit: int | None, num: int, run: RunConfig) -> np.ndarray:
    """Give the classes to draw, (N,) int32: all of one, or each in turn.

    Raises:
        ConfigError: the data set has no such class.
    """
    if digit is None:
        return np.arange(num, dtype=np.int32) % run.num_classes
    if not 0 <= digit < run.num_classes:
        raise ConfigError(
            f"--digit {digit} does not exist in {run.train.dataset}; "
            f"choose 0 to {run.num_classes - 1}"
        )
    return np.full(num, digit, np.int32)


def _sample_all(params: Params, seed: int, label: np.ndarray, model: CVAE) -> np.ndarray:
    """Draw in batches of one size, so that memory and compilation don't grow with the number."""

    @jax.jit
    def program(params: Params, seed: jax.Array, index: jax.Array, label: jax.Array) -> jax.Array:
        # The key is made here as well: compiled on its own, that would take longer than the rest.
        key = make_key(seed, Purpose.SAMPLES)
        return sample(params, key, index, label, model=model)

    batch_size = min(len(label), _BATCH)
    image = np.empty((len(label), *model.config.image_shape), np.float32)
    starts = range(0, len(label), batch_size)
    for start in tqdm(starts, desc="drawing", unit="batch", disable=len(starts) == 1):
        index = np.arange(start, start + batch_size, dtype=np.int32)
        piece = slice(start, min(start + batch_size, len(label)))
        padded = np.resize(label[piece], batch_size)
        drawn = np.asarray(program(params, np.uint32(seed), index, padded))
        image[piece] = drawn[: piece.stop - start]
    return image


def _write_arrays(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    write_arrays(path, image=image, label=label)
    print(f"wrote {path}")


def _write_picture(path: Path, image: np.ndarray, label: np.ndarray, title: str) -> None:
    columns = 5 if len(label) <= 10 else 10
    figure = figures.image_grid(image, label, title, num_columns=columns)
    with whole_file(path) as file:
        figure.savefig(file, format="png")
    print(f"wrote {path}")


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
