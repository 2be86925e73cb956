"""Data sets by name, from the first place that has them: `load_dataset`.

What TFDS has prepared is decoded once, and then kept as packed arrays beside it.
"""

import logging
import os
from pathlib import Path

import numpy as np

from cvae_jax import idx, tfds_source
from cvae_jax.files import reason, write_arrays
from cvae_jax.options import Source
from cvae_jax.types import ConfigError, DataError, Dataset, Splits, UserError

_BUNDLED = Path(__file__).parent / "mnist"
_BUNDLED_DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_CACHE = "cvae_jax.npz"

_log = logging.getLogger(__name__)


def load_dataset(
    name: str = "mnist", *, source: Source = "auto", data_dir: Path | None = None
) -> Splits:
    """Load a data set whole, as NumPy arrays, in the order of its original files.

    Args:
        name: mnist, fashion_mnist or kmnist; with the source "idx", a name of your own.
        source: "auto" takes what TFDS has prepared in `data_dir`, else the copy of MNIST in
            this package, else TFDS's download; "bundled", "tfds" and "idx" take that alone.
        data_dir: the folder of the TFDS data sets, or of the four IDX files. None is
            $TFDS_DATA_DIR, else TFDS's own default.

    Raises:
        ConfigError: there is no such data set at that source, or `data_dir` is no folder.
        DataError: it can't be fetched or read.
    """
    if source == "idx":
        if data_dir is None:
            raise ConfigError("the source 'idx' needs the folder of the four IDX files")
        data_dir = _folder(data_dir)
        if not data_dir.exists():
            raise ConfigError(f"the --data-dir {data_dir} does not exist; it must hold IDX files")
        return idx.load_directory(data_dir)
    if source == "bundled" and name != "mnist":
        raise ConfigError(f"only mnist comes with the package, not {name!r}; try --source tfds")
    if name not in tfds_source.NAMES:
        raise ConfigError(
            f"unknown dataset {name!r}; expected one of {sorted(tfds_source.NAMES)}, "
            "or --source idx with the --data-dir of your own files"
        )
    if data_dir is not None and any(_folder(data_dir).glob("*train-images*")):
        raise ConfigError(f"{data_dir} holds IDX files; to train on them, add --source idx")
    if source == "bundled":
        return idx.load_directory(_BUNDLED, _BUNDLED_DIGESTS)
    if data_dir is None:
        data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    data_dir = _folder(data_dir)
    if source == "auto" and name == "mnist" and not tfds_source.find_prepared(name, data_dir):
        return idx.load_directory(_BUNDLED, _BUNDLED_DIGESTS)
    return _load_prepared(name, data_dir)


def _folder(data_dir: Path) -> Path:
    """Expand ~ in the path of a folder that may yet have to be made."""
    try:
        expanded = data_dir.expanduser()
        if expanded.is_dir() or not expanded.exists():
            return expanded
        problem = "is not a folder"
    except (OSError, RuntimeError) as error:  # no such user, a name too long, no permission
        problem = f"can't be used: {getattr(error, 'strerror', None) or error}"
    raise ConfigError(f"the --data-dir {data_dir} {problem}; name the folder of the data sets")


def _load_prepared(name: str, data_dir: Path) -> Splits:
    """Load a data set that TFDS has prepared, or fetch and prepare it first."""
    directory = tfds_source.find_prepared(name, data_dir)
    directory = directory or tfds_source.prepare(name, data_dir)
    cache = directory / _CACHE
    cached = _read_cache(cache)
    if cached is not None:
        return cached
    splits = tfds_source.decode(directory)
    if problem := _problem(splits):
        raise DataError(f"the data set in {directory} can't be used: {problem}; delete that folder")
    try:
        _write_cache(cache, splits)
    except UserError as error:  # the folder may be shared and read-only
        _log.warning("%s; the next start has to decode the images again", error)
    return splits


def _problem(splits: Splits) -> str:
    """Say what keeps arrays from being a data set: types, shapes or labels; "" for nothing."""
    for split, (image, label) in (("training", splits.train), ("test", splits.test)):
        if image.dtype != np.uint8 or label.dtype != np.int32 or label.shape != image.shape[:1]:
            return f"its {split} images and labels are not uint8 and int32, one for one"
        if image.ndim != 4 or image.size == 0 or image.shape[1:] != splits.train.image.shape[1:]:
            return f"its {split} images have the shape {image.shape}"
        if label.min() < 0 or label.max() >= splits.num_classes:
            return (
                f"its {split} labels run from {label.min()} to {label.max()}, outside the classes, "
                f"0 to {splits.num_classes - 1}"
            )
    return ""


def _write_cache(path: Path, splits: Splits) -> None:
    write_arrays(
        path,
        train_image=splits.train.image,
        train_label=splits.train.label,
        test_image=splits.test.image,
        test_label=splits.test.label,
        num_classes=np.array(splits.num_classes),
        fingerprint=np.array(splits.fingerprint()),
    )


def _read_cache(path: Path) -> Splits | None:
    """Read the packed arrays; None, with a warning where they are damaged, to decode again."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if any(part.file_size > part.compress_size for part in arrays.zip.infolist()):
                raise ValueError("it is compressed, which ours never is")
            splits = Splits(
                train=Dataset(arrays["train_image"], arrays["train_label"]),
                test=Dataset(arrays["test_image"], arrays["test_label"]),
                num_classes=int(arrays["num_classes"]),
            )
            if splits.fingerprint() != str(arrays["fingerprint"]):
                raise ValueError("its arrays don't match its fingerprint")
            if problem := _problem(splits):
                raise ValueError(problem)
    except Exception as error:  # on a damaged file zipfile and NumPy raise a dozen types
        _log.warning("%s is damaged (%s); decoding the images again", path, reason(error))
        return None
    return splits
