import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
import pytest

from cvae_jax import programs
from cvae_jax.batches import NO_EXAMPLE, binarize_dataset, in_rows, put_on_device
from cvae_jax.config import RunConfig
from cvae_jax.evaluation import evaluate
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import CVAE
from cvae_jax.programs import Dispatch
from cvae_jax.types import Splits, TrainState
from tests.conftest import assert_trees_equal


@pytest.mark.parametrize("first_row", [0, 1, 3, 7])
def test_the_rest_of_an_epoch_in_dispatches_has_every_image_of_it_once(
    first_row: int, small_run: RunConfig, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The least arithmetic that a dispatch may hold: a few steps each.
    monkeypatch.setattr(programs, "_DISPATCH_FLOPS_CPU", 1e8)
    run_programs = programs.build_programs(small_run, small_splits)
    dispatches = [rows for _, rows in run_programs.pieces(2, first_row)]
    assert len({len(rows) for rows in dispatches[:-1]}) <= 1
    assert first_row > 3 or len(dispatches) > 1
    rest = np.concatenate(dispatches)
    whole = np.concatenate([rows for _, rows in run_programs.pieces(2, 0)])
    np.testing.assert_array_equal(rest, whole[first_row:])
    np.testing.assert_array_equal(np.sort(whole[whole != NO_EXAMPLE]), np.arange(1000))


def test_all_of_a_run_is_a_function_of_its_configuration(
    small_run: RunConfig, small_splits: Splits
) -> None:
    results = []
    for _ in range(2):
        run_programs = programs.build_programs(small_run, small_splits)
        state = run_programs.init()
        for piece in run_programs.pieces(0, 0):
            state, _ = run_programs.train(state, piece)
        label = np.arange(4, dtype=np.int32)
        results.append(
            (state, run_programs.test(state.params), run_programs.samples(state.params, label))
        )
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(one, other)


def test_work_is_sent_up_to_the_last_epoch_or_until_a_stop(
    small_run: RunConfig, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_DISPATCH_FLOPS_CPU", 1e8)
    run_programs = programs.build_programs(small_run, small_splits)

    def send(state: TrainState, is_stopped: Callable[[], bool]) -> list[Dispatch]:
        return list(
            programs.dispatch_epochs(
                run_programs,
                state,
                2,
                is_kept=lambda epoch: epoch == 1,
                is_stopped=is_stopped,
                label=np.arange(4, dtype=np.int32),
                is_drawn=lambda epoch: epoch == 2,
            )
        )

    whole = send(run_programs.init(), lambda: False)
    per_epoch = len(list(run_programs.pieces(0, 0)))
    assert per_epoch > 2
    assert len(whole) == 2 * per_epoch
    assert [one.test is not None for one in whole] == 2 * [*(per_epoch - 1) * [False], True]
    assert whole[-1].step == int(whole[-1].state.step) == 16
    assert [one.samples is not None for one in whole] == [*(2 * per_epoch - 1) * [False], True]
    # Kept is the end of the first epoch and, as nothing comes after it, of the second one.
    deleted = [one.state.step.is_deleted() for one in whole]
    assert [not gone for gone in deleted] == [one.test is not None for one in whole]

    calls = iter([False] * (per_epoch + 1) + [True])
    part = send(run_programs.init(), lambda: next(calls))
    assert len(part) == per_epoch + 1
    rest = send(part[-1].state, lambda: False)
    assert_trees_equal(rest[-1].state, whole[-1].state)
    in_parts, in_one_go = (
        np.concatenate([one.train.loss for one in pieces]) for pieces in (part + rest, whole)
    )
    np.testing.assert_array_equal(in_parts, in_one_go)
    assert send(rest[-1].state, lambda: False) == []


@pytest.mark.parametrize(
    ("flops", "num_steps", "expected"),
    [(1e14, 469, 1), (5e12, 469, 1), (3.75e11, 469, 13), (1e6, 8, 16), (3.75e11, 7500, 2)],
)
def test_more_is_sent_ahead_where_it_is_short(
    flops: float, num_steps: float, expected: int
) -> None:
    assert programs._choose_ahead(flops, num_steps) == expected


def test_a_cpu_and_a_stream_have_one_dispatch_ahead(
    small_run: RunConfig, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert programs.build_programs(small_run, small_splits).num_ahead == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert programs.build_programs(small_run, small_splits).num_ahead == programs._MOST_AHEAD
    assert programs.build_programs(small_run, small_splits, data_memory=1e5).num_ahead == 1


def test_reading_lags_behind() -> None:
    made: list[int] = []

    def make(number: int) -> Iterator[int]:
        for item in range(number):
            made.append(item)
            yield item

    seen = [(item, len(made)) for item in programs.behind(make(4), 1)]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]
    made.clear()
    seen = [(item, len(made)) for item in programs.behind(make(4), 2)]
    assert seen == [(0, 3), (1, 4), (2, 4), (3, 4)]
    assert list(programs.behind(make(2), 3)) == [0, 1]
    assert list(programs.behind(make(0), 3)) == []


def test_a_black_and_white_run_is_tested_on_one_black_and_white_copy_of_the_test_set(
    small_run: RunConfig, small_splits: Splits
) -> None:
    run = dataclasses.replace(
        small_run, train=dataclasses.replace(small_run.train, binarize="dynamic")
    )
    run_programs = programs.build_programs(run, small_splits)
    params = run_programs.init().params
    key = partial(make_key, run.train.seed)
    copy = binarize_dataset(key(Purpose.TEST_BINARIZE), put_on_device(small_splits.test))
    order = in_rows(np.arange(300), 300)
    expected = evaluate(params, key(Purpose.TEST), copy, order, model=CVAE(run.model))
    for (found,) in (run_programs.test(params), run_programs.test(params)):
        np.testing.assert_allclose(found.loss.sum(), expected.loss.sum(), rtol=1e-5)
