"""What a run writes down of itself as JSON, and reads back as data: settings and progress."""

import dataclasses
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from cvae_jax import __version__
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.types import ConfigError, EpochMetrics, Progress

FORMAT = 2
"""Number of the format of a workdir; it changes when older checkpoints can no longer be read."""


_YOUNGER = ("binarize", "precision")
"""Settings that came after the format: a record without one is of a run with its default."""


class RecordError(ValueError):
    """Bytes that are no record of ours; the text says what is wrong with them."""


def encode(run: RunConfig, progress: Progress | None = None) -> bytes:
    """Write a run's settings as JSON, and how far it has come where that is given."""
    content: dict[str, Any] = {"format": FORMAT, "version": __version__, **_settings(run)}
    if progress is not None:
        content["progress"] = progress._asdict()
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def decode_run(record: bytes) -> RunConfig:
    """Read the settings from what `encode` wrote.

    Raises:
        RecordError: it is something else, or another version of this package wrote it.
    """
    content = _load(record)
    for field in dataclasses.fields(TrainConfig):
        if field.name in _YOUNGER:
            content.setdefault(field.name, field.default)
    try:
        train = {
            field.name: _typed(content, field.name, type(field.default))
            for field in dataclasses.fields(TrainConfig)
        }
        height, width, channels = _typed(content, "image_shape", list)
        if any(type(size) is not int for size in (height, width, channels)):
            raise RecordError(f"image_shape is {reprlib.repr(content['image_shape'])}")
        return RunConfig(
            train=TrainConfig(**train),
            image_shape=(height, width, channels),
            num_classes=_typed(content, "num_classes", int),
            data_sha256=_typed(content, "data_sha256", str),
        )
    except (ValueError, ConfigError) as error:
        raise RecordError(str(error)) from error


def decode_progress(record: bytes) -> Progress:
    """Read how far the run had come from what `encode` wrote.

    Raises:
        RecordError: it is something else, or another version of this package wrote it.
    """
    content = _typed(_load(record), "progress", dict)
    rows = _typed(content, "history", list)
    return Progress(
        history=tuple(_decode_row(epoch, row) for epoch, row in enumerate(rows, start=1)),
        **{name: _number(content, name) for name in Progress._fields if name != "history"},
    )


def differences(there: RunConfig, asked: RunConfig) -> str:
    """Name each setting that differs, with both values; nothing where none does."""
    old, new = _settings(there), _settings(asked)
    return ", ".join(
        f"{name} {old[name]} (asked: {new[name]})" for name in new if old[name] != new[name]
    )


def _settings(run: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(run.train) | {
        "learning_rate": float(run.train.learning_rate),  # of a 1, JSON would make an integer
        "image_shape": list(run.image_shape),
        "num_classes": run.num_classes,
        "data_sha256": run.data_sha256,
    }


def _load(record: bytes) -> dict[str, Any]:
    try:
        content = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise RecordError(f"it holds {reprlib.repr(content)} in place of settings")
    number = content.get("format", 1)  # the first format did not say so
    if number != FORMAT:
        raise RecordError(
            f"cvae_jax {reprlib.repr(content.get('version'))} wrote it in format "
            f"{reprlib.repr(number)}; this is cvae_jax {__version__}, which reads format {FORMAT}"
        )
    return content


def _typed(content: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in content:
        raise RecordError(f"{name} is missing")
    if type(content[name]) is not kind:
        raise RecordError(f"{name} is {reprlib.repr(content[name])}, expected {kind.__name__}")
    return content[name]


def _number(content: Mapping[str, Any], name: str) -> float:
    number: float = _typed(content, name, float)
    if not math.isfinite(number):
        raise RecordError(f"{name} is {number}")
    return number


def _decode_row(epoch: int, row: Any) -> EpochMetrics:
    if not isinstance(row, list) or len(row) != len(EpochMetrics._fields):
        raise RecordError(f"the history of epoch {epoch} is {reprlib.repr(row)}")
    named = dict(zip(EpochMetrics._fields, row, strict=True))
    if _typed(named, "epoch", int) != epoch:
        raise RecordError(f"the history has epoch {row[0]} in the place of {epoch}")
    _typed(named, "step", int)
    for name in EpochMetrics._fields[2:]:
        _number(named, name)
    return EpochMetrics(*row)
