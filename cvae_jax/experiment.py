"""Training from the command to the files: the one loop, and all that it prints and saves."""

import math
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cvae_jax import checkpoints, data, devices, figures, workdir
from cvae_jax.config import RunConfig, RunOptions, TrainConfig
from cvae_jax.files import whole_file
from cvae_jax.programs import Programs, build_programs
from cvae_jax.types import (
    EpochMetrics,
    InterruptedRunError,
    LossSums,
    Params,
    TrainState,
    UserError,
)

BATCHES_PER_LINE = 100
"""Batches between two printed lines within an epoch."""

_GRID_COLUMNS = 8

_Item = TypeVar("_Item")


class Dispatch(NamedTuple):
    """One piece of an epoch, sent to the device; nothing in it has been waited for."""

    epoch: int
    train: LossSums  # (S,) each
    test: LossSums | None  # at the end of an epoch
    snapshot: TrainState | None  # at the end of an epoch that is drawn or saved


def train(config: TrainConfig, options: RunOptions) -> None:
    """Train a model up to an epoch, from its newest checkpoint where it has one.

    Everything is written below the workdir: config.json, metrics.csv, samples/, loss.png and
    checkpoints/. Stopped and started again, a run gives what it would have given in one go.

    Raises:
        ConfigError: the workdir holds a run with other settings, or there is no such data set.
        DataError: the data set can't be fetched or read.
        CheckpointError: the checkpoints can't be read or written.
        UserError: the loss is no longer finite.
        InterruptedRunError: the user pressed Ctrl-C.
    """
    print(f"devices: {devices.describe()}", flush=True)
    if warning := devices.unused_accelerator():
        print(f"\n{'!' * 80}\nWARNING: {warning}\n{'!' * 80}\n", flush=True)
    splits = data.load_dataset(config.dataset, source=options.source, data_dir=options.data_dir)
    height, width, channels = splits.train.image.shape[1:]
    run = RunConfig(
        train=config,
        image_shape=(height, width, channels),
        num_classes=splits.num_classes,
        data_sha256=splits.fingerprint(),
    )
    print(
        f"data: {config.dataset}, {len(splits.train.label):,} training and "
        f"{len(splits.test.label):,} test images of shape {run.image_shape}, "
        f"{run.num_classes} classes",
        flush=True,
    )
    folder = options.workdir.expanduser() if options.workdir else Path("runs") / config.dataset
    workdir.claim(folder, run)
    programs = build_programs(run, splits)
    with checkpoints.open_manager(folder / "checkpoints") as manager:
        restored = checkpoints.restore_latest(manager, jax.eval_shape(programs.init))
        state, history = restored or (programs.init(), [])
        digit = min(6, run.num_classes - 1)
        next_command = (
            f"python scripts/sample.py --digit {digit} --workdir {shlex.quote(str(folder))}"
        )
        if len(history) >= options.epochs:
            print(
                f"nothing left to do: {folder} has been trained for {len(history)} epochs. To "
                f"train on, add --epochs {2 * len(history)}. To draw digits: {next_command}"
            )
            return
        if restored:
            print(f"going on after epoch {len(history)}, from the checkpoint in {folder}")
        try:
            for epoch, snapshot in _run_epochs(programs, state, history, options):
                workdir.write_metrics(folder, history)
                # A checkpoint comes last: where it stands, so does all that belongs before it.
                if snapshot is not None:
                    _draw_loss(history, run, folder)
                    if epoch % options.sample_every == 0:
                        _draw_grid(programs, snapshot.params, run, epoch, folder)
                    if epoch % options.checkpoint_every == 0 or epoch == options.epochs:
                        checkpoints.save(manager, snapshot, history)
        except KeyboardInterrupt:
            saved = manager.latest_step() or 0
            raise InterruptedRunError(
                f"interrupted in epoch {len(history) + 1}; the same command goes on after epoch "
                f"{saved // programs.steps_per_epoch}, where it was last saved"
            ) from None
    print(f"results are in {folder}. To draw digits: {next_command}")


def _run_epochs(
    programs: Programs, state: TrainState, history: list[EpochMetrics], options: RunOptions
) -> Iterator[tuple[int, TrainState | None]]:
    """Train from the end of `history`, to which each epoch adds a row, up to the last epoch.

    Yields:
        The number of each epoch that is over, and the state at its end where it is needed.
    """
    num_batches = programs.steps_per_epoch
    done, total = len(history) * num_batches, options.epochs * num_batches
    started = time.perf_counter()
    epoch_sums: list[LossSums] = []
    with tqdm(total=total, initial=done, unit="batch", desc="compiling", smoothing=0.1) as bar:
        dispatches = _dispatch_epochs(programs, state, len(history) + 1, options)
        for epoch, sums, test_sums, snapshot in _one_behind(dispatches):
            sums = jax.device_get(sums)
            name = f"epoch {epoch}/{options.epochs}"
            is_real = sums.num_examples > 0  # not an empty row at the end of the epoch
            losses = sums.loss[is_real] / sums.num_examples[is_real]
            first = sum(len(earlier.kl) for earlier in epoch_sums) + 1
            for batch, loss in enumerate(losses, start=first):
                if batch % BATCHES_PER_LINE == 0:
                    bar.write(f"{name}, batch {batch}/{num_batches}: loss {loss:.4f}")
            bar.set_description(name, refresh=False)
            bar.update(len(losses))
            epoch_sums.append(sums)
            if test_sums is None:
                continue

            train_terms = _mean_terms(epoch_sums)
            test_terms = _mean_terms([jax.device_get(test_sums)])
            now = time.perf_counter()
            row = EpochMetrics(
                epoch,
                epoch * num_batches,
                sum(train_terms),
                *train_terms,
                sum(test_terms),
                *test_terms,
                seconds=now - started,
            )
            if not math.isfinite(row.train_loss + row.test_loss):
                raise UserError(
                    f"the loss of epoch {epoch} is not a finite number; what was saved before it "
                    "stands. Try a smaller --learning-rate in another --workdir"
                )
            bar.write(
                f"{name}: train loss {row.train_loss:.4f}, test loss {row.test_loss:.4f} "
                f"nats per image, {row.seconds:.1f} s"
            )
            started, epoch_sums = now, []
            history.append(row)
            yield epoch, snapshot


def _dispatch_epochs(
    programs: Programs, state: TrainState, first_epoch: int, options: RunOptions
) -> Iterator[Dispatch]:
    """Send the work of all epochs to the device, without waiting for any of it."""
    for epoch in range(first_epoch, options.epochs + 1):
        *head, last = programs.order(epoch - 1)
        for rows in head:
            state, sums = programs.train(state, rows)
            yield Dispatch(epoch, sums, test=None, snapshot=None)
        state, sums = programs.train(state, last)
        is_needed = (
            epoch % options.sample_every == 0
            or epoch % options.checkpoint_every == 0
            or epoch == options.epochs
        )
        # The next dispatch takes the state's memory, so what is drawn or saved is a copy.
        snapshot = jax.tree.map(jnp.copy, state) if is_needed else None
        yield Dispatch(epoch, sums, programs.test(state.params), snapshot)


def _one_behind(items: Iterable[_Item]) -> Iterator[_Item]:
    """Give each item once the next one is made, so that the device works while it is read."""
    iterator = iter(items)
    previous = next(iterator)
    for item in iterator:
        yield previous
        previous = item
    yield previous


def _mean_terms(pieces: list[LossSums]) -> tuple[float, float]:
    """Give the mean reconstruction and KL per image, added up in double precision."""
    reconstruction, kl, num_examples = (
        math.fsum(np.concatenate(arrays).tolist()) for arrays in zip(*pieces, strict=True)
    )
    return reconstruction / num_examples, kl / num_examples


def _draw_grid(
    programs: Programs, params: Params, run: RunConfig, epoch: int, folder: Path
) -> None:
    label = np.arange(_GRID_COLUMNS**2, dtype=np.int32) % run.num_classes
    figure = figures.image_grid(
        np.asarray(programs.samples(params, label)),
        label,
        f"{run.train.dataset}: samples after epoch {epoch}",
        num_columns=_GRID_COLUMNS,
        inches=0.8,
    )
    with whole_file(folder / "samples" / f"epoch_{epoch:03d}.png") as file:
        figure.savefig(file, format="png")


def _draw_loss(history: list[EpochMetrics], run: RunConfig, folder: Path) -> None:
    with whole_file(folder / "loss.png") as file:
        figures.loss_curve(history, f"{run.train.dataset}: loss").savefig(file, format="png")
