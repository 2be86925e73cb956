import jax
import numpy as np
import pytest

from cvae_jax import programs
from cvae_jax.batches import NO_EXAMPLE
from cvae_jax.config import RunConfig
from cvae_jax.types import Splits


def test_an_epoch_in_dispatches_has_every_image_once(
    small_run: RunConfig, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The least arithmetic that a dispatch may hold: a few steps each.
    monkeypatch.setattr(programs, "_DISPATCH_FLOPS_CPU", 1e8)
    run_programs = programs.build_programs(small_run, small_splits)
    order = np.asarray(run_programs.order(0))
    assert order.ndim == 3
    assert len(order) > 1
    assert order.shape[-1] == 128
    np.testing.assert_array_equal(np.sort(order[order != NO_EXAMPLE]), np.arange(1000))


@pytest.mark.parametrize("steps", [1, 2, 7, 467, 469, 5469])
@pytest.mark.parametrize("flops", [1.0, 8e8, 4e10, 1e14])
def test_dispatches_are_short_enough_and_waste_little(steps: int, flops: float) -> None:
    length = programs._steps_per_dispatch(steps, flops)
    num_dispatches = -(-steps // length)
    assert 1 <= length <= steps
    assert length * flops <= max(programs._DISPATCH_FLOPS_CPU, flops) or length == 1
    assert num_dispatches * length - steps < max(2, 0.2 * steps)


def test_the_original_is_cut_without_any_waste() -> None:
    # 6 flops for each of 1.04 million parameters and 128 images; 469 = 7 x 67.
    assert programs._steps_per_dispatch(469, 6 * 1.04e6 * 128) == 67


def test_all_of_a_run_is_a_function_of_its_configuration(
    small_run: RunConfig, small_splits: Splits
) -> None:
    results = []
    for _ in range(2):
        run_programs = programs.build_programs(small_run, small_splits)
        state = run_programs.init()
        for rows in run_programs.order(0):
            state, _ = run_programs.train(state, rows)
        label = np.arange(4, dtype=np.int32)
        results.append(
            (state, run_programs.test(state.params), run_programs.samples(state.params, label))
        )
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(one, other)
