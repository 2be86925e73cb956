"""Data sets by name, from the source that the user asks for.

A new source is a file here with `load(name, options) -> Splits`, a line in `SOURCES` and a name in
`config.Source`. Where it decodes images, `packed.keep` keeps their arrays.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cvae_jax.config import DataOptions, RunConfig, Source, require
from cvae_jax.data import emnist, folder, idx, tfds
from cvae_jax.data.dataset import Splits
from cvae_jax.errors import ConfigError, DataError
from cvae_jax.runtime.files import reason, user_path

_BUNDLED = Path(__file__).parent / "mnist"
_BUNDLED_DIGESTS = {
    "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class Known(NamedTuple):
    """What is known of a data set before it is here; all have grey images of 28 x 28 pixels."""

    num_train: int
    num_test: int
    num_classes: int
    class_names: tuple[str, ...] = ()


_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_KUZUSHIJI = "o,ki,su,tsu,na,ha,ma,ya,re,wo"  # in Hiragana, which few fonts have
KNOWN = {
    "mnist": Known(60_000, 10_000, 10),
    "fashion_mnist": Known(60_000, 10_000, 10, tuple(_FASHION.split(","))),
    "kmnist": Known(60_000, 10_000, 10, tuple(_KUZUSHIJI.split(","))),
    "emnist/balanced": Known(112_800, 18_800, 47),
    "emnist/letters": Known(124_800, 20_800, 26),
    "emnist/digits": Known(240_000, 40_000, 10),
    "emnist/byclass": Known(697_932, 116_323, 62),
    "emnist/bymerge": Known(697_932, 116_323, 47),
    "emnist/mnist": Known(60_000, 10_000, 10),
}
"""The data sets that need no file of the user's. EMNIST's archive has the names of its classes."""


def load_bundled(name: str, _: DataOptions) -> Splits:
    """Load the MNIST that comes with this package."""
    require(name == "mnist", "dataset", repr(name), "mnist, which is bundled, or --source tfds")
    return idx.load_directory(_BUNDLED, _BUNDLED_DIGESTS)


def load_nearest(name: str, options: DataOptions) -> Splits:
    """Load what TFDS has prepared, else the bundled MNIST, else what can be downloaded."""
    data_dir = options.data_dir
    if data_dir is not None and any(data_dir.glob("*train-images*")):
        raise ConfigError(f"{data_dir} holds IDX files; to train on them, add --source idx")
    if name.startswith("emnist/"):
        return emnist.load(name, options)
    require(name in KNOWN, "dataset", repr(name), f"{', '.join(KNOWN)}, or --source idx or folder")
    if name == "mnist" and not tfds.find_prepared(name, data_dir or tfds.default_folder()):
        return load_bundled(name, options)
    return tfds.load(name, options)


SOURCES: dict[Source, Callable[[str, DataOptions], Splits]] = {
    "auto": load_nearest,
    "bundled": load_bundled,
    "tfds": tfds.load,
    "emnist": emnist.load,
    "idx": idx.load,
    "folder": folder.load,
}


def load_dataset(
    name: str = "mnist",
    *,
    source: Source = "auto",
    data_dir: Path | str | None = None,
    image_size: int = DataOptions.image_size,
    grey: bool = DataOptions.grey,
    skip_broken: bool = DataOptions.skip_broken,
) -> Splits:
    """Load a whole data set as NumPy arrays, in the order of its original files.

    Args:
        name: mnist, fashion_mnist, kmnist or a part of EMNIST, such as emnist/letters; with the
            sources "idx" and "folder", a name of your own.
        source: "auto" takes what TFDS has prepared in `data_dir`, else the copy of MNIST in
            this package, else a download; the others are used alone.
        data_dir: the folder of the TFDS data sets, of the four IDX files, or of a folder of images
            for each class. None is $TFDS_DATA_DIR, else TFDS's own default.
        image_size: of the source "folder": pixels of a side to which images are scaled.
        grey: of the source "folder": whether coloured images become grey.
        skip_broken: of the source "folder": whether files that can't be read are left out.

    Returns:
        Training and test set, each image (N, H, W, C) uint8 and label (N,) int32.

    Raises:
        ConfigError: there is no such data set at that source, or an option can't be used.
        DataError: it can't be downloaded or read.
    """
    require(source in SOURCES, "source", repr(source), ", ".join(SOURCES))
    where = None if data_dir is None else Path(data_dir)
    return load(name, DataOptions(source, where, image_size, grey, skip_broken))


def load(name: str, options: DataOptions) -> Splits:
    """Load a data set as `load_dataset` does, with the options of the commands."""
    data_dir = options.data_dir
    try:
        if data_dir is not None:
            data_dir = user_path("data-dir", data_dir)
            require(data_dir.is_dir() or not data_dir.exists(), "data-dir", data_dir, "a folder")
        splits = SOURCES[options.source](name, dataclasses.replace(options, data_dir=data_dir))
    except OSError as error:  # too long a name, for example, or no permission
        raise ConfigError(f"--data-dir {data_dir} can't be used: {reason(error)}") from error
    known = KNOWN.get(name)
    if known and not splits.class_names and splits.num_classes == known.num_classes:
        splits = splits._replace(class_names=known.class_names)
    return splits


def load_again(run: RunConfig, data: DataOptions) -> Splits:
    """Load the data set that a model was trained on.

    Args:
        run: the settings of the model's run.
        data: where its data set comes from.

    Raises:
        ConfigError: as `load_dataset`.
        DataError: as `load_dataset`, or the data are not those of the run.
    """
    splits = load(run.train.dataset, data)
    if splits.fingerprint() != run.data_sha256:
        raise DataError(
            f"the model was trained on other data than this {run.train.dataset}; name them with "
            "--source, --data-dir and their other options as in training"
        )
    return splits
