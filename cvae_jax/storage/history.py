"""The numbers of a run: the losses of its epochs, and the sums of the epoch in progress."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cvae_jax.errors import UserError
from cvae_jax.runtime.files import whole_file

METRICS = "metrics.csv"


class LossSums(NamedTuple):
    """The loss of a batch, summed over its real examples, in nats."""

    reconstruction: jax.Array  # () or (S,)
    kl: jax.Array  # () or (S,)
    num_examples: jax.Array  # () or (S,) float32

    @property
    def loss(self) -> jax.Array:
        """What is minimised: minus the evidence lower bound, summed."""
        return self.reconstruction + self.kl


class EpochMetrics(NamedTuple):
    """One row of metrics.csv; losses in nats per image.

    `seconds` is the time since the row before, or since the run was started or resumed: training
    and test, what was drawn or saved in between, and compilation.
    """

    epoch: int
    step: int
    train_loss: float
    train_reconstruction: float
    train_kl: float
    test_loss: float
    test_reconstruction: float
    test_kl: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a checkpoint holds beside the state, so that a resumed run ends the same.

    The sums are those of the epoch in progress, in nats and in double precision. An imported run
    has epochs before its history: they were trained elsewhere, and their losses are not known.
    """

    history: tuple[EpochMetrics, ...] = ()
    reconstruction: float = 0.0
    kl: float = 0.0
    num_examples: float = 0.0
    epochs_before: int = 0
    steps_before: int = 0

    @property
    def num_epochs(self) -> int:
        """The number of epochs that are over, imported ones too."""
        return self.epochs_before + len(self.history)


def add_sums(progress: Progress, sums: LossSums) -> Progress:
    """Add the sums of some steps, (S,) each, to those of their epoch.

    They are added step by step in double precision, so that an epoch's loss does not depend on
    where the epoch was cut into dispatches or interrupted.
    """

    def total(start: float, values: jax.Array) -> float:
        return reduce(add, np.asarray(values).tolist(), start)

    return dataclasses.replace(
        progress,
        reconstruction=total(progress.reconstruction, sums.reconstruction),
        kl=total(progress.kl, sums.kl),
        num_examples=total(progress.num_examples, sums.num_examples),
    )


def end_epoch(progress: Progress, step: int, test: Progress, seconds: float) -> Progress:
    """Return the progress with a new row for an epoch, made from its sums and those of its test.

    Args:
        progress: with the sums of the whole epoch.
        step: batches trained on.
        test: the sums of the test set.
        seconds: the duration of the epoch.

    Raises:
        UserError: the test loss is not finite.
    """
    train_terms, test_terms = (
        (sums.reconstruction / sums.num_examples, sums.kl / sums.num_examples)
        for sums in (progress, test)
    )
    row = EpochMetrics(
        progress.num_epochs + 1,
        step,
        sum(train_terms),
        *train_terms,
        sum(test_terms),
        *test_terms,
        seconds=seconds,
    )
    if not math.isfinite(row.test_loss):
        raise UserError(
            f"the test loss after step {step} (epoch {row.epoch}) is {row.test_loss}; try a "
            "smaller --learning-rate in another --workdir"
        )
    history = (*progress.history, row)
    return dataclasses.replace(
        progress, history=history, reconstruction=0.0, kl=0.0, num_examples=0.0
    )


def require_finite(step: int, sums: LossSums, is_finite: bool, steps_per_epoch: int) -> None:
    """Raise an error if a run has diverged; the message names the first step where that shows.

    Args:
        step: the last of the steps.
        sums: the losses of the steps, (S,) each, on the host.
        is_finite: whether every number of the state after them is finite.
        steps_per_epoch: batches of an epoch.

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
    epoch, batch = divmod(step - 1, steps_per_epoch)
    raise UserError(
        f"{problem} (epoch {epoch + 1}, batch {batch + 1}); try a smaller --learning-rate in "
        "another --workdir"
    )


def shown(row: EpochMetrics) -> dict[str, str]:
    """Return a row by column, as metrics.csv shows it."""
    return {
        name: f"{value:.4f}" if isinstance(value, float) else f"{value}"
        for name, value in row._asdict().items()
    }


def write_metrics(workdir: Path, history: Sequence[EpochMetrics]) -> None:
    """Write metrics.csv anew: one row an epoch, losses in nats per image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EpochMetrics._fields)
    for row in history:
        writer.writerow(shown(row).values())
    with whole_file(workdir / METRICS) as file:
        file.write(text.getvalue().encode())
