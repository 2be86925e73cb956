"""Data sets by name, from the first place that has them: `load_dataset`."""

import os
from pathlib import Path

from cvae_jax import idx, tfds_source
from cvae_jax.config import Source
from cvae_jax.types import ConfigError, Splits

_BUNDLED = Path(__file__).parent / "mnist"
_BUNDLED_DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


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
        ConfigError: there is no such data set at that source.
        DataError: it can't be fetched or read.
    """
    if source == "idx":
        if data_dir is None:
            raise ConfigError("the source 'idx' needs the folder of the four IDX files")
        return idx.load_directory(data_dir.expanduser())
    if source == "bundled" and name != "mnist":
        raise ConfigError(f"only mnist comes with the package, not {name!r}; try --source tfds")
    if name not in tfds_source.NAMES:
        raise ConfigError(
            f"unknown dataset {name!r}; expected one of {sorted(tfds_source.NAMES)}, "
            "or --source idx with the --data-dir of your own files"
        )
    if data_dir is not None and any(data_dir.expanduser().glob("*train-images*")):
        raise ConfigError(f"{data_dir} holds IDX files; to train on them, add --source idx")
    if data_dir is None:
        data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    data_dir = data_dir.expanduser()
    if source == "bundled" or (
        source == "auto" and name == "mnist" and not tfds_source.find_prepared(name, data_dir)
    ):
        return idx.load_directory(_BUNDLED, _BUNDLED_DIGESTS)
    return tfds_source.load(name, data_dir)
