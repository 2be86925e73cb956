import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvae_jax import __version__, records
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.types import EpochMetrics, Progress

RUN = RunConfig(
    # No field has its default, so that one that is not stored is missed.
    train=TrainConfig(
        dataset="emnist/letters",
        batch_size=7,
        learning_rate=0.1 + 0.2,
        hidden_dim=5,
        latent_dim=3,
        binarize="dynamic",
        precision="bfloat16",
        seed=2**32 - 1,
    ),
    image_shape=(9, 8, 3),
    num_classes=26,
    data_sha256="0f" * 32,
)
YOUNGER = {"binarize": "none", "precision": "float32"}
"""What a record from before there was a choice means."""
PROGRESS = Progress(
    history=(
        EpochMetrics(1, 469, 0.1 + 0.2, 1 / 3, 2e-40, 5.0, 6.0, 7.0, 8.5),
        EpochMetrics(2, 938, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
    ),
    reconstruction=1e9 / 3,
    kl=1e-3 / 3,
    num_examples=128.0,
)
RECORD = records.encode(RUN, PROGRESS)
CONTENT = json.loads(RECORD)


def changed(**changes: Any) -> bytes:
    return json.dumps(CONTENT | changes).encode()


def test_what_is_written_is_read_back_to_the_bit() -> None:
    assert records.decode_run(RECORD) == RUN
    assert records.decode_progress(RECORD) == PROGRESS
    assert records.decode_run(records.encode(RUN)) == RUN
    assert records.decode_progress(records.encode(RUN, Progress())) == Progress()


def test_a_whole_learning_rate_is_a_number_like_others() -> None:
    run = dataclasses.replace(RUN, train=TrainConfig(learning_rate=1))
    assert records.decode_run(records.encode(run)) == run
    assert records.differences(run, records.decode_run(records.encode(run))) == ""


def test_nothing_that_is_not_finite_is_ever_written() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            records.encode(RUN, PROGRESS._replace(kl=value))


def test_every_difference_is_named_with_both_values() -> None:
    assert records.differences(RUN, RUN) == ""
    for field in dataclasses.fields(TrainConfig):
        change: dict[str, Any] = {field.name: field.default}
        other = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, **change))
        expected = f"{field.name} {getattr(RUN.train, field.name)} (asked: {field.default})"
        assert records.differences(RUN, other) == expected
    other = dataclasses.replace(RUN, image_shape=(9, 9, 3), num_classes=2, data_sha256="ab")
    assert records.differences(RUN, other) == (
        "image_shape [9, 8, 3] (asked: [9, 9, 3]), num_classes 26 (asked: 2), "
        f"data_sha256 {'0f' * 32} (asked: ab)"
    )


NO_RECORDS = [
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
    b"\0" * 100,
]


@pytest.mark.parametrize("record", NO_RECORDS, ids=lambda record: ascii(record[:12]))
def test_what_is_no_record_is_an_error(record: bytes) -> None:
    for decode in (records.decode_run, records.decode_progress):
        with pytest.raises(records.RecordError):
            decode(record)


@pytest.mark.parametrize(
    ("version", "number"), [("0.1.0", None), ("9.0", 3), (None, None), ("1", "2"), ("1", [2])]
)
def test_another_format_is_told_with_the_version_that_wrote_it(
    version: str | None, number: Any
) -> None:
    content = {name: value for name, value in CONTENT.items() if name != "format"}
    if number is not None:
        content["format"] = number
    record = json.dumps(content | {"version": version}).encode()
    with pytest.raises(records.RecordError) as caught:
        records.decode_run(record)
    assert f"cvae_jax {version!r} wrote it in format {number or 1!r}" in str(caught.value)
    assert f"this is cvae_jax {__version__}" in str(caught.value)


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert records.decode_run(changed(version="99", later=[1])) == RUN


FIELDS = [
    *(field.name for field in dataclasses.fields(TrainConfig)),
    "image_shape",
    "num_classes",
    "data_sha256",
]
NEVER_FITS: list[Any] = [None, [], {}, True, float("nan"), float("inf"), -1, [[[]]]]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", NEVER_FITS, ids=repr)
def test_a_hostile_setting_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(records.RecordError):
        records.decode_run(changed(**{name: value}))


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in YOUNGER])
def test_a_missing_setting_is_named(name: str) -> None:
    content = {key: value for key, value in CONTENT.items() if key != name}
    with pytest.raises(records.RecordError, match=name):
        records.decode_run(json.dumps(content).encode())


def test_a_record_from_before_there_was_a_choice_is_of_the_default() -> None:
    content = {key: value for key, value in CONTENT.items() if key not in YOUNGER}
    found = records.decode_run(json.dumps(content).encode())
    train = dataclasses.replace(RUN.train, **YOUNGER)  # type: ignore[arg-type]
    assert found == dataclasses.replace(RUN, train=train)


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
        ("hidden_dim", 10**9),
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
def test_a_setting_that_no_run_can_have_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(records.RecordError):
        records.decode_run(changed(**{name: value}))


ROW = list(PROGRESS.history[0])


HISTORIES: list[Any] = [
    {},
    [[]],
    [ROW[:-1]],
    [[*ROW, 1.0]],
    [ROW, ROW],
    [[1.0, *ROW[1:]]],
    [[1, "469", *ROW[2:]]],
    [[1, 469, float("inf"), *ROW[3:]]],
    [[1, 469, 5, *ROW[3:]]],
    ["history"],
    [None],
]


@pytest.mark.parametrize(
    "progress",
    [
        None,
        [],
        {},
        {"history": []},
        {"history": [], "reconstruction": 0.0, "kl": 0.0},
        {"history": [], "reconstruction": 0.0, "kl": 0.0, "num_examples": 1},
        {"history": [], "reconstruction": float("nan"), "kl": 0.0, "num_examples": 1.0},
        *(
            {"history": history, "reconstruction": 0.0, "kl": 0.0, "num_examples": 0.0}
            for history in HISTORIES
        ),
    ],
    ids=repr,
)
def test_a_progress_that_no_run_can_have_is_an_error(progress: Any) -> None:
    with pytest.raises(records.RecordError):
        records.decode_progress(changed(progress=progress))


def decode_all(record: bytes) -> None:
    """Read a record, which may end in nothing but a RecordError."""
    for decode in (records.decode_run, records.decode_progress):
        with contextlib.suppress(records.RecordError):
            assert isinstance(decode(record), RunConfig | Progress)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=10,
)
CHANGES = st.dictionaries(
    st.sampled_from([*CONTENT, *CONTENT["progress"]]), JSON, min_size=1, max_size=3
)


@pytest.mark.fuzz
@given(st.binary(max_size=300))
def test_random_bytes_are_read_or_refused(record: bytes) -> None:
    decode_all(record)


@pytest.mark.fuzz
@given(CHANGES, CHANGES)
def test_a_record_with_other_values_is_read_or_refused(
    settings: dict[str, Any], progress: dict[str, Any]
) -> None:
    content = CONTENT | {"progress": CONTENT["progress"] | progress} | settings
    decode_all(json.dumps(content).encode())


@pytest.mark.fuzz
@given(st.integers(0, len(RECORD)), st.integers(0, 40), st.binary(max_size=40), st.integers(0, 255))
def test_a_damaged_record_is_read_or_refused(
    place: int, length: int, inserted: bytes, flipped: int
) -> None:
    decode_all(RECORD[:place] + inserted + RECORD[place + length :])
    decode_all(RECORD[:place] + bytes([b ^ flipped for b in RECORD[place : place + 1]]))
    decode_all(RECORD[:place])
