"""The small files of a run's folder: config.json, which says what it is, and metrics.csv."""

import csv
import dataclasses
import io
import json
import reprlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvae_jax import __version__
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.files import whole_file
from cvae_jax.types import CheckpointError, ConfigError, EpochMetrics

_CONFIG = "config.json"
_METRICS = "metrics.csv"


def claim(workdir: Path, config: RunConfig) -> None:
    """Write config.json into a fresh folder, or check that the one there asks for the same.

    Raises:
        ConfigError: it differs; the message names each field and both values.
        CheckpointError: it can't be read.
    """
    if not (workdir / _CONFIG).exists():
        content = {"version": __version__, **_to_json(config)}
        with whole_file(workdir / _CONFIG) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())
        return
    there, asked = _to_json(read_config(workdir)), _to_json(config)
    differing = [name for name in asked if there[name] != asked[name]]
    if differing:
        fields = ", ".join(f"{name} {there[name]} (asked: {asked[name]})" for name in differing)
        raise ConfigError(
            f"{workdir} holds a run with other settings: {fields}; give the same ones, or another "
            "--workdir"
        )


def read_config(workdir: Path) -> RunConfig:
    """Read config.json as data.

    Raises:
        CheckpointError: it is not there, or is not what `claim` writes.
    """
    path = workdir / _CONFIG
    if not path.exists():
        raise CheckpointError(
            f"no trained model in {workdir}; make one with: "
            f"python scripts/train.py --workdir {shlex.quote(str(workdir))}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        train = TrainConfig(
            **{
                field.name: _typed(content[field.name], type(field.default), field.name)
                for field in dataclasses.fields(TrainConfig)
            }
        )
        height, width, channels = (
            _typed(size, int, "image_shape") for size in content["image_shape"]
        )
        return RunConfig(
            train=train,
            image_shape=(height, width, channels),
            num_classes=_typed(content["num_classes"], int, "num_classes"),
            data_sha256=_typed(content["data_sha256"], str, "data_sha256"),
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path} can't be read ({error}); was it changed?") from error


def write_metrics(workdir: Path, history: Sequence[EpochMetrics]) -> None:
    """Write metrics.csv anew: one row an epoch, losses in nats per image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EpochMetrics._fields)
    for row in history:
        writer.writerow(f"{value:.4f}" if isinstance(value, float) else value for value in row)
    with whole_file(workdir / _METRICS) as file:
        file.write(text.getvalue().encode())


def _to_json(config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(config.train) | {
        "image_shape": list(config.image_shape),
        "num_classes": config.num_classes,
        "data_sha256": config.data_sha256,
    }


def _typed(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{name} is {reprlib.repr(value)}, expected {kind.__name__}")
    return value
