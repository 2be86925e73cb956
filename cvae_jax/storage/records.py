"""The settings and the progress of a run as JSON: config.json, and run.json in a checkpoint."""

import dataclasses
from typing import Any

import msgspec

from cvae_jax import __version__
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.errors import ConfigError
from cvae_jax.storage.history import Progress

FORMAT = 2
"""Number of the format of a workdir; it changes when older checkpoints can no longer be read."""


class RecordError(ValueError):
    """Bytes that are no record of this format; the message says what is wrong with them."""


class _Header(msgspec.Struct):
    format: int = 1  # the first format had no number
    version: str = "(unknown version)"


class _Record(msgspec.Struct):
    image_shape: tuple[int, int, int]
    num_classes: int
    data_sha256: str
    class_names: tuple[str, ...] = ()  # version 0.3 had none
    progress: Progress | None = None


def encode(run: RunConfig, progress: Progress | None = None) -> bytes:
    """Return a run's settings as JSON, with its progress where that is given."""
    content: dict[str, Any] = {"format": FORMAT, "version": __version__, **_settings(run)}
    if progress is not None:
        content["progress"] = progress
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"


def decode(record: bytes) -> tuple[RunConfig, Progress]:
    """Read what `encode` wrote; a setting that the record lacks has its default.

    Raises:
        RecordError: it is something else, or was written in another format.
    """
    try:
        header = msgspec.json.decode(record, type=_Header)
        if header.format != FORMAT:
            raise RecordError(
                f"cvae_jax {header.version} wrote it in format {header.format}; this is cvae_jax "
                f"{__version__}, which reads format {FORMAT}"
            )
        train = msgspec.json.decode(record, type=TrainConfig)
        rest = msgspec.json.decode(record, type=_Record)
        run = RunConfig(
            train, rest.image_shape, rest.num_classes, rest.data_sha256, rest.class_names
        )
    except (msgspec.MsgspecError, ValueError, ConfigError, RecursionError) as error:
        raise RecordError(str(error)) from error
    return run, rest.progress or Progress()


def differences(there: RunConfig, asked: RunConfig) -> str:
    """Return each setting that differs, with both values; "" where none does.

    The names of the classes decide nothing.
    """
    old, new = _settings(there), _settings(asked)
    return ", ".join(
        f"{name} {old[name]} (asked: {new[name]})"
        for name in new
        if old[name] != new[name] and name != "class_names"
    )


def _settings(run: RunConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(run)
    return {**settings.pop("train"), **settings}
