"""Judges of data sets: MNIST's ships with the package, any other is trained once and kept."""

import logging
import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from cvae_jax import devices
from cvae_jax.batches import put_on_device
from cvae_jax.data import load_dataset
from cvae_jax.files import cache_folder, reason, require_writable, user_path, write_arrays
from cvae_jax.judge import init_judge, judge_all, train_judge
from cvae_jax.keys import Purpose, make_key
from cvae_jax.options import JudgeOptions
from cvae_jax.types import Params, Splits, Track, UserError

BUNDLED = Path(__file__).parent / "mnist" / "judge.npz"
"""The judge of MNIST, which `scripts/train_judge.py` made."""

_RECIPE = 1  # changes with the network or its training, so that nothing older is taken
_SEED = 0
_DATA = "data_sha256"

_log = logging.getLogger(__name__)


def train(options: JudgeOptions) -> None:
    """Train the judge of a data set, write it, and say how well it does on the test set.

    Raises:
        ConfigError: there is no such data set, or the file can't be written there.
        DataError: the data can't be read.
        UserError: the file can't be written.
    """
    out = user_path("out", options.out)
    require_writable("out", out, folder=False)
    print(f"devices: {devices.describe()}", flush=True)
    splits = load_dataset(options.dataset, source=options.source, data_dir=options.data_dir)
    judge = make_judge(splits, partial(tqdm, desc="training the judge", unit="step"))
    write(out, judge, splits.fingerprint())
    label = np.asarray(splits.test.label)
    verdict = judge_all(judge, put_on_device(splits.test), splits.image_shape, splits.num_classes)
    num_wrong = int((np.argmax(verdict.logits, axis=-1) != label).sum())
    print(f"wrote {out}; {num_wrong} of {len(label):,} test images are judged wrongly")


def find_judge(splits: Splits, fingerprint: str, track: Track) -> Params:
    """Give the judge of a data set; where there is none yet, train one and keep it.

    Args:
        splits: the data set.
        fingerprint: its `Splits.fingerprint`, which takes a while for a large one.
        track: goes through the steps of a training.
    """
    folder = cache_folder() or Path(tempfile.gettempdir()) / "cvae_jax"
    kept = folder / f"judge-{_RECIPE}-{fingerprint[:32]}.npz"
    for path in (BUNDLED, kept):
        params = read(path, splits, fingerprint)
        if params is not None:
            return params
    params = make_judge(splits, track)
    try:
        write(kept, params, fingerprint)
    except UserError as error:
        _log.warning("%s; the next evaluation has to train the judge again", error)
    return params


def make_judge(splits: Splits, track: Track) -> Params:
    """Train the judge of a data set, always from the same seed."""
    return train_judge(
        make_key(_SEED, Purpose.JUDGE),
        put_on_device(splits.train),
        image_shape=splits.image_shape,
        num_classes=splits.num_classes,
        track=track,
    )


def write(path: Path, params: Params, fingerprint: str) -> None:
    """Write a judge and the fingerprint of its data set as arrays (NPZ).

    Raises:
        UserError: the file can't be written.
    """
    arrays = flatten_dict(jax.device_get(params), sep=".")
    write_arrays(path, **arrays, **{_DATA: np.array(fingerprint)})


def read(path: Path, splits: Splits, fingerprint: str) -> Params | None:
    """Read a judge as arrays; None where it is damaged, or is not there or of other data."""
    init = partial(init_judge, image_shape=splits.image_shape)
    like = jax.eval_shape(partial(init, num_classes=splits.num_classes), jax.random.key(0))
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
