"""Data sets by name, from the source that the user asks for.

A new source is a file here with `load(name, data_dir) -> Splits`, a line in `SOURCES` and a name in
`config.Source`.
"""

from collections.abc import Callable
from pathlib import Path

from cvae_jax.config import DataOptions, RunConfig, Source, require
from cvae_jax.data import idx, tfds
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


def load_bundled(name: str, data_dir: Path | None) -> Splits:
    """Load the MNIST that comes with this package; `data_dir` is not used."""
    require(name == "mnist", "dataset", repr(name), "mnist, which is bundled, or --source tfds")
    return idx.load_directory(_BUNDLED, _BUNDLED_DIGESTS)


def load_nearest(name: str, data_dir: Path | None) -> Splits:
    """Load what TFDS has prepared, else the bundled MNIST, else TFDS's download."""
    if data_dir is not None and any(data_dir.glob("*train-images*")):
        raise ConfigError(f"{data_dir} holds IDX files; to train on them, add --source idx")
    if name == "mnist" and not tfds.find_prepared(name, data_dir or tfds.default_folder()):
        return load_bundled(name, data_dir)
    return tfds.load(name, data_dir)


SOURCES: dict[Source, Callable[[str, Path | None], Splits]] = {
    "auto": load_nearest,
    "bundled": load_bundled,
    "tfds": tfds.load,
    "idx": idx.load,
}


def load_dataset(
    name: str = "mnist", *, source: Source = "auto", data_dir: Path | str | None = None
) -> Splits:
    """Load a whole data set as NumPy arrays, in the order of its original files.

    Args:
        name: mnist, fashion_mnist or kmnist; with the source "idx", a name of your own.
        source: "auto" takes what TFDS has prepared in `data_dir`, else the copy of MNIST in
            this package, else TFDS's download; "bundled", "tfds" and "idx" use that source only.
        data_dir: the folder of the TFDS data sets, or of the four IDX files. None is
            $TFDS_DATA_DIR, else TFDS's own default.

    Returns:
        Training and test set, each image (N, H, W, C) uint8 and label (N,) int32.

    Raises:
        ConfigError: there is no such data set at that source, or `data_dir` is no folder.
        DataError: it can't be downloaded or read.
    """
    require(source in SOURCES, "source", repr(source), ", ".join(SOURCES))
    try:
        if data_dir is not None:
            data_dir = user_path("data-dir", Path(data_dir))
            require(data_dir.is_dir() or not data_dir.exists(), "data-dir", data_dir, "a folder")
        return SOURCES[source](name, data_dir)
    except OSError as error:  # too long a name, for example, or no permission
        raise ConfigError(f"--data-dir {data_dir} can't be used: {reason(error)}") from error


def load_again(run: RunConfig, data: DataOptions) -> Splits:
    """Load the data set that a model was trained on.

    Args:
        run: the settings of the model's run.
        data: where its data set comes from.

    Raises:
        ConfigError: as `load_dataset`.
        DataError: as `load_dataset`, or the data are not those of the run.
    """
    splits = load_dataset(run.train.dataset, source=data.source, data_dir=data.data_dir)
    if splits.fingerprint() != run.data_sha256:
        raise DataError(
            f"the model was trained on other data than this {run.train.dataset}; name them with "
            "--source and --data-dir as in training"
        )
    return splits
