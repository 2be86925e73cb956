"""The accounts of a run: from the sums of its steps to the rows of its history."""

import math
from functools import reduce
from operator import add

import numpy as np

from cvae_jax.types import ArrayLike, EpochMetrics, LossSums, Progress, UserError

_ADVICE = "what was saved before stands. Try a smaller --learning-rate in another --workdir"


def add_sums(progress: Progress, sums: LossSums) -> Progress:
    """Add the sums of some steps, (S,) each, to those of their epoch.

    One step after the other, in double precision, so that an epoch's loss does not depend on
    where the epoch was cut into dispatches or interrupted.
    """
    return progress._replace(
        reconstruction=_total(progress.reconstruction, sums.reconstruction),
        kl=_total(progress.kl, sums.kl),
        num_examples=_total(progress.num_examples, sums.num_examples),
    )


def _total(start: float, values: ArrayLike) -> float:
    return reduce(add, np.asarray(values).tolist(), start)


def end_epoch(progress: Progress, step: int, test: Progress, seconds: float) -> Progress:
    """Turn the sums of an epoch, and those of its test, into a row of the history.

    Args:
        progress: with the sums of all of the epoch.
        step: batches trained on.
        test: the sums of the test set.
        seconds: what the epoch took.

    Raises:
        UserError: the test loss is not finite.
    """
    train_terms, test_terms = (
        (sums.reconstruction / sums.num_examples, sums.kl / sums.num_examples)
        for sums in (progress, test)
    )
    epoch = len(progress.history) + 1
    row = EpochMetrics(
        epoch,
        step,
        sum(train_terms),
        *train_terms,
        sum(test_terms),
        *test_terms,
        seconds=seconds,
    )
    if not math.isfinite(row.test_loss):
        raise UserError(
            f"the test loss after step {step} (epoch {epoch}) is {row.test_loss}; {_ADVICE}"
        )
    return Progress(history=(*progress.history, row))


def require_finite(step: int, sums: LossSums, is_finite: bool, num_batches: int) -> None:
    """Stop a run that has gone wrong, naming the first step at which that shows.

    Args:
        step: the last of the steps.
        sums: their losses, (S,) each, on the host.
        is_finite: whether all numbers of the state after them are.
        num_batches: steps of an epoch.

    Raises:
        UserError: a loss, or a number of the state, is not finite.
    """
    is_bad = ~np.isfinite(sums.loss)
    if is_bad.any():
        index = int(is_bad.argmax())
        step += index + 1 - len(is_bad)
        problem = f"the loss of step {step} is {sums.loss[index]}"
    elif not is_finite:
        problem = f"the weights or Adam's averages are not all finite after step {step}"
    else:
        return
    epoch, batch = divmod(step - 1, num_batches)
    raise UserError(f"{problem} (epoch {epoch + 1}, batch {batch + 1}); {_ADVICE}")
