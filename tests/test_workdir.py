import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cvae_jax import workdir
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.types import CheckpointError, ConfigError, EpochMetrics

RUN = RunConfig(
    # No field has its default, so that one that is not stored is missed.
    train=TrainConfig(
        dataset="emnist/letters",
        batch_size=7,
        learning_rate=0.1 + 0.2,
        hidden_dim=5,
        latent_dim=3,
        seed=2**32 - 1,
    ),
    image_shape=(9, 8, 3),
    num_classes=26,
    data_sha256="0f" * 32,
)
OTHER: dict[str, Any] = {
    "dataset": "mnist",
    "batch_size": 128,
    "learning_rate": 1e-3,
    "hidden_dim": 600,
    "latent_dim": 50,
    "seed": 0,
}


@pytest.fixture
def config_json(tmp_path: Path) -> Path:
    workdir.claim(tmp_path, RUN)
    return tmp_path / "config.json"


def test_what_is_claimed_is_read_back(tmp_path: Path) -> None:
    workdir.claim(tmp_path / "new" / "run", RUN)
    assert workdir.read_config(tmp_path / "new" / "run") == RUN


def test_a_claim_of_the_same_run_changes_nothing(config_json: Path) -> None:
    before = config_json.read_bytes()
    workdir.claim(config_json.parent, RUN)
    assert config_json.read_bytes() == before


def test_every_setting_of_the_training_has_another_value_here() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("name", OTHER)
def test_another_setting_is_refused_with_both_values(name: str, config_json: Path) -> None:
    before = config_json.read_bytes()
    asked = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, **{name: OTHER[name]}))
    expected = f"{name} {getattr(RUN.train, name)} \\(asked: {OTHER[name]}\\)"
    with pytest.raises(ConfigError, match=expected) as caught:
        workdir.claim(config_json.parent, asked)
    assert str(caught.value).count("asked") == 1
    assert config_json.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_shape": (28, 28, 1)}, r"image_shape \[9, 8, 3\] \(asked: \[28, 28, 1\]\)"),
        ({"num_classes": 10}, r"num_classes 26 \(asked: 10\)"),
        ({"data_sha256": "ab" * 32}, rf"data_sha256 {'0f' * 32} \(asked: {'ab' * 32}\)"),
    ],
)
def test_other_data_are_refused_with_both_values(
    change: dict[str, Any], expected: str, config_json: Path
) -> None:
    with pytest.raises(ConfigError, match=expected):
        workdir.claim(config_json.parent, dataclasses.replace(RUN, **change))


def test_all_that_differs_is_said_at_once(config_json: Path) -> None:
    asked = dataclasses.replace(RUN, train=TrainConfig(**OTHER))
    with pytest.raises(ConfigError) as caught:
        workdir.claim(config_json.parent, asked)
    assert all(f"{name} " in str(caught.value) for name in OTHER)


def test_without_a_model_the_way_to_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no trained model in {tmp_path}.*train.py"):
        workdir.read_config(tmp_path)


DAMAGED = [
    b"",
    b"{",
    b"not JSON",
    b"null",
    b"3",
    b"NaN",
    b'"text"',
    b"[]",
    b"[1, 2]",
    b"{}",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"seed":' * 100_000,
    b'{"seed": ' + b"9" * 10_000 + b"}",
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: ascii(content[:12]))
def test_a_config_that_is_none_is_an_error_that_names_it(content: bytes, config_json: Path) -> None:
    config_json.write_bytes(content)
    for use in (workdir.read_config, lambda folder: workdir.claim(folder, RUN)):
        with pytest.raises(CheckpointError, match=f"{config_json} can't be read"):
            use(config_json.parent)


def test_a_folder_in_place_of_the_config_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=f"{tmp_path}/config.json can't be read"):
        workdir.read_config(tmp_path)


NEVER_FITS: list[Any] = [None, [], {}, True, float("nan"), float("inf"), -1, [[[]]]]
FIELDS = [*OTHER, "image_shape", "num_classes", "data_sha256"]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", NEVER_FITS, ids=repr)
def test_a_hostile_value_is_an_error_that_names_the_file(
    name: str, value: Any, config_json: Path
) -> None:
    config_json.write_text(json.dumps(json.loads(config_json.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=f"{config_json} can't be read"):
        workdir.read_config(config_json.parent)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", ""),
        ("dataset", "../mnist"),
        ("seed", 2**32),
        ("seed", 0.0),
        ("batch_size", 10**30),
        ("batch_size", "128"),
        ("learning_rate", 0.0),
        ("learning_rate", 1),
        ("num_classes", 0),
        ("num_classes", 10.0),
        ("num_classes", 10**30),
        ("image_shape", [28, 28]),
        ("image_shape", [28, 28, 1, 1]),
        ("image_shape", [28, 28, True]),
        ("image_shape", [28, 0, 1]),
        ("image_shape", [28, -28, 1]),
        ("image_shape", [10**30, 28, 1]),
        ("image_shape", "abc"),
        ("image_shape", {"28": 1, "29": 2, "1": 3}),
    ],
    ids=repr,
)
def test_a_value_that_no_run_can_have_is_an_error_that_names_the_file(
    name: str, value: Any, config_json: Path
) -> None:
    config_json.write_text(json.dumps(json.loads(config_json.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=f"{config_json} can't be read"):
        workdir.read_config(config_json.parent)


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_value_is_named(name: str, config_json: Path) -> None:
    content = json.loads(config_json.read_text())
    del content[name]
    config_json.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{config_json} can't be read.*{name}"):
        workdir.read_config(config_json.parent)


def test_what_a_later_version_adds_is_passed_over(config_json: Path) -> None:
    content = json.loads(config_json.read_text()) | {"version": "99", "later": [1]}
    config_json.write_text(json.dumps(content))
    assert workdir.read_config(config_json.parent) == RUN


def test_metrics_are_a_table_with_a_row_an_epoch(tmp_path: Path) -> None:
    rows = [
        EpochMetrics(1, 469, 159.5, 149.25, 10.25, 126.2, 113.95, 12.25, 2.5),
        EpochMetrics(2, 938, 120.123456, 107.0, 13.123456, float("nan"), 1e-9, 3e9, 2.25),
    ]
    workdir.write_metrics(tmp_path, rows[:1])
    workdir.write_metrics(tmp_path, rows)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == [
        "epoch",
        "step",
        "train_loss",
        "train_reconstruction",
        "train_kl",
        "test_loss",
        "test_reconstruction",
        "test_kl",
        "seconds",
    ]
    assert [line[:2] for line in lines] == [["1", "469"], ["2", "938"]]
    for line, row in zip(lines, rows, strict=True):
        assert [float(value) for value in line] == pytest.approx(row, abs=5e-5, nan_ok=True)
