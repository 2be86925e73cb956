"""Training from the command to the files: the one loop, and all that it prints and saves."""

import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from cvae_jax import checkpoints, data, devices, figures, stopping, workdir
from cvae_jax.cli import tolerant_output
from cvae_jax.config import LARGEST_COUNT, RunConfig, RunOptions, TrainConfig
from cvae_jax.files import require_writable, user_path, whole_file
from cvae_jax.models import count_params
from cvae_jax.programs import Dispatch, Programs, build_programs, dispatch_epochs, one_behind
from cvae_jax.progress import add_sums, end_epoch, require_finite
from cvae_jax.types import (
    ConfigError,
    EpochMetrics,
    InterruptedRunError,
    Params,
    Progress,
    Splits,
    TrainState,
)

BATCHES_PER_LINE = 100
"""Batches between two printed lines within an epoch."""

_GRID_COLUMNS = 8


def train(config: TrainConfig, options: RunOptions) -> None:
    """Train a model up to an epoch, from its newest checkpoint where it has one.

    Everything is written below the workdir: config.json, metrics.csv, samples/, loss.png and
    checkpoints/. Stopped and started again, a run gives what it would have given in one go.

    Raises:
        ConfigError: the workdir can't be used or holds a run with other settings, the data set
            does not exist, or the model or the batch does not fit it or the memory.
        DataError: the data set can't be fetched or read.
        CheckpointError: the checkpoints can't be read or written.
        UserError: a file can't be written, another process trains there, or the loss or the
            state is no longer finite.
        InterruptedRunError: SIGINT or SIGTERM asked the run to stop; it was saved.
    """
    folder = user_path("workdir", options.workdir or Path("runs") / config.dataset)
    require_writable("workdir", folder, folder=True)
    workdir.require_unlocked(folder)
    print(f"devices: {devices.describe()}", flush=True)
    if warning := devices.unused_accelerator():
        print(f"\n{'!' * 80}\nWARNING: {warning}\n{'!' * 80}\n", flush=True)
    splits = data.load_dataset(config.dataset, source=options.source, data_dir=options.data_dir)
    run = _describe_run(config, options, splits)
    with workdir.lock(folder):
        newest = checkpoints.find_newest(folder / workdir.CHECKPOINTS)
        if newest and not workdir.is_claimed(folder):
            checkpoints.require_run(newest, run)
        workdir.claim(folder, run, is_new=newest is None)
        with stopping.watch() as stop_signal, tolerant_output():
            _train(run, build_programs(run, splits), options, folder, newest, stop_signal)
    digit = min(6, run.num_classes - 1)
    print(
        f"results are in {folder}. To draw digits: "
        f"python scripts/sample.py --digit {digit} --workdir {shlex.quote(str(folder))}"
    )


def _describe_run(config: TrainConfig, options: RunOptions, splits: Splits) -> RunConfig:
    """Say what is trained on what, and refuse what can't go together."""
    num_train, num_test = len(splits.train.label), len(splits.test.label)
    run = RunConfig(
        train=config,
        image_shape=splits.image_shape,
        num_classes=splits.num_classes,
        data_sha256=splits.fingerprint(),
    )
    print(
        f"data: {config.dataset}, {num_train:,} training and {num_test:,} test images of shape "
        f"{run.image_shape}, {run.num_classes} classes",
        flush=True,
    )
    # The parameters, their gradient and Adam's averages, a copy; a batch and its activations.
    numbers = 7 * count_params(run.model)
    numbers += config.batch_size * (4 * math.prod(run.image_shape) + 6 * config.hidden_dim)
    devices.require_memory(
        4 * numbers,
        f"--hidden-dim {config.hidden_dim} with --latent-dim {config.latent_dim} and --batch-size "
        f"{config.batch_size}",
    )
    most_epochs = LARGEST_COUNT // math.ceil(num_train / config.batch_size)
    if options.epochs > most_epochs:
        raise ConfigError(
            f"--epochs {options.epochs} can't be used; steps are counted up to {LARGEST_COUNT}, "
            f"choose 1 to {most_epochs}"
        )
    return run


def _train(
    run: RunConfig,
    programs: Programs,
    options: RunOptions,
    folder: Path,
    newest: Path | None,
    stop_signal: Callable[[], int | None],
) -> None:
    """Go on from the newest checkpoint, and write what belongs to each epoch as it ends."""
    directory = folder / workdir.CHECKPOINTS
    checkpoints.clean(directory, newest)
    if newest:
        state, start = checkpoints.restore(newest, jax.eval_shape(programs.init), run)
    else:
        state, start = programs.init(), Progress()
    progress, saved = start, int(state.step)
    num_epochs = len(progress.history)
    if num_epochs >= options.epochs:
        workdir.write_metrics(folder, start.history)  # they may have been lost
        _draw_loss(start.history, run, folder)
        print(
            f"nothing left to do: {folder} has been trained for {num_epochs} epochs; to train on, "
            f"add --epochs {2 * num_epochs}"
        )
        return
    if newest:
        print(f"going on after {_where(saved, programs)}, from {newest}", flush=True)

    last_step = saved
    for dispatch, progress in _run(programs, state, start, options, stop_signal):
        state, last_step = dispatch.state, dispatch.step
        if dispatch.test is None:
            continue
        epoch = len(progress.history)
        # A checkpoint comes last: where it stands, so does all that belongs before it.
        workdir.write_metrics(folder, progress.history)
        if _is_kept(epoch, options):
            _draw_loss(progress.history, run, folder)
        if epoch % options.sample_every == 0:
            _draw_grid(programs, state.params, run, epoch, folder)
        if _is_saved(epoch, options):
            checkpoints.save(directory, state, run, progress)
            saved = last_step
    if len(progress.history) < options.epochs:
        if last_step > saved:
            checkpoints.save(directory, state, run, progress)
        message = "stopped before the first step, with nothing to save"
        if last_step:
            where = _where(last_step, programs)
            message = f"stopped and saved after {where}; the same command goes on from there"
        raise InterruptedRunError(message, stop_signal() or signal.SIGTERM)


def _is_saved(epoch: int, options: RunOptions) -> bool:
    return epoch % options.checkpoint_every == 0 or epoch == options.epochs


def _is_kept(epoch: int, options: RunOptions) -> bool:
    return _is_saved(epoch, options) or epoch % options.sample_every == 0


def _where(step: int, programs: Programs) -> str:
    epoch, batch = divmod(step, programs.steps_per_epoch)
    within = f" and batch {batch} of {programs.steps_per_epoch} of the next one" if batch else ""
    return f"epoch {epoch}{within}"


def _run(
    programs: Programs,
    state: TrainState,
    progress: Progress,
    options: RunOptions,
    stop_signal: Callable[[], int | None],
) -> Iterator[tuple[Dispatch, Progress]]:
    """Train up to the last epoch, or until a signal comes, and tell how it goes.

    Yields:
        Each dispatch when its numbers have been read and are finite, and the progress with it.
    """
    num_batches = programs.steps_per_epoch
    step, total = int(state.step), options.epochs * num_batches
    started = time.perf_counter()
    with tqdm(total=total, initial=step, unit="batch", desc="compiling", smoothing=0.1) as bar:
        is_kept = partial(_is_kept, options=options)
        sent = dispatch_epochs(programs, state, options.epochs, is_kept, stop_signal)
        for dispatch in one_behind(sent):
            sums, is_finite = jax.device_get((dispatch.train, dispatch.is_finite))
            require_finite(dispatch.step, sums, is_finite, num_batches)
            progress = add_sums(progress, sums)
            name = f"epoch {len(progress.history) + 1}/{options.epochs}"
            first = (dispatch.step - len(sums.kl)) % num_batches + 1
            for batch, loss in enumerate(sums.loss / sums.num_examples, start=first):
                if batch % BATCHES_PER_LINE == 0:
                    bar.write(f"{name}, batch {batch}/{num_batches}: loss {loss:.4f}")
            bar.set_description(name, refresh=False)
            bar.update(len(sums.kl))
            if dispatch.test is not None:
                now = time.perf_counter()
                test = add_sums(Progress(), jax.device_get(dispatch.test))
                progress = end_epoch(progress, dispatch.step, test, now - started)
                started, row = now, progress.history[-1]
                bar.write(
                    f"{name}: train loss {row.train_loss:.4f}, test loss {row.test_loss:.4f} "
                    f"nats per image, {row.seconds:.1f} s"
                )
            yield dispatch, progress


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
    with whole_file(folder / workdir.SAMPLES / f"epoch_{epoch:03d}.png") as file:
        figure.savefig(file, format="png")


def _draw_loss(history: Sequence[EpochMetrics], run: RunConfig, folder: Path) -> None:
    with whole_file(folder / workdir.LOSS) as file:
        figures.loss_curve(history, f"{run.train.dataset}: loss").savefig(file, format="png")
