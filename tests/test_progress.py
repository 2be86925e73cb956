import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.progress import add_sums, end_epoch, require_finite
from cvae_jax.types import LossSums, Progress, UserError

RNG = np.random.default_rng(0)
SUMS = LossSums(*(jnp.asarray(RNG.lognormal(9, 3, 469), jnp.float32) for _ in range(3)))


def piece(sums: LossSums, start: int, stop: int) -> LossSums:
    return LossSums(*(array[start:stop] for array in sums))


@pytest.mark.parametrize("cuts", [[0, 469], [0, 67, 402, 469], [0, 1, 2, 468, 469]])
def test_sums_do_not_depend_on_the_cut(cuts: list[int]) -> None:
    progress = Progress()
    for start, stop in itertools.pairwise(cuts):
        progress = add_sums(progress, piece(SUMS, start, stop))
    assert progress == add_sums(Progress(), SUMS)
    for name in LossSums._fields:
        exact = math.fsum(getattr(SUMS, name).tolist())
        assert getattr(progress, name) == pytest.approx(exact, rel=1e-14)


def test_the_mean_of_an_epoch_counts_every_image_once() -> None:
    progress = Progress(reconstruction=36.0, kl=6.0, num_examples=9.0)
    test = Progress(reconstruction=30.0, kl=3.0, num_examples=3.0)
    for epoch in (1, 2):
        before = progress.history
        progress = end_epoch(progress, 8 * epoch, test, seconds=1.5)
        assert progress == Progress(history=(*before, progress.history[-1]))
        row = progress.history[-1]
        assert row == (epoch, 8 * epoch, 36 / 9 + 6 / 9, 4.0, 6 / 9, 11.0, 10.0, 1.0, 1.5)
        progress = progress._replace(reconstruction=36.0, kl=6.0, num_examples=9.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_test_loss_that_is_not_finite_is_an_error_that_names_the_step(value: float) -> None:
    test = Progress(reconstruction=value, kl=3.0, num_examples=3.0)
    with pytest.raises(UserError, match=rf"test loss after step 16 \(epoch 1\) is {value};"):
        end_epoch(Progress(num_examples=9.0), 16, test, seconds=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 3, 66])
def test_the_first_step_whose_loss_is_not_finite_is_named(value: float, index: int) -> None:
    sums = piece(SUMS, 67, 134)
    require_finite(134, sums, is_finite=True, num_batches=100)
    spoilt = sums.kl.at[jnp.array([index, 66])].set(value)
    step = 67 + index + 1
    epoch, batch = (1, step) if step <= 100 else (2, step - 100)
    expected = rf"loss of step {step} is {value} \(epoch {epoch}, batch {batch}\).*--learning-rate"
    with pytest.raises(UserError, match=expected):
        require_finite(134, sums._replace(kl=spoilt), is_finite=True, num_batches=100)


def test_a_state_that_is_not_finite_is_an_error_though_every_loss_is() -> None:
    with pytest.raises(UserError, match=r"not all finite after step 134 \(epoch 2, batch 34\)"):
        require_finite(134, piece(SUMS, 67, 134), is_finite=False, num_batches=100)
