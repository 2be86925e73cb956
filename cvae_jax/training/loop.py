"""The training loop: from settings and a data set to the files of a workdir."""

import contextlib
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path

import jax
import numpy as np
from tqdm.auto import tqdm

from cvae_jax.config import DataOptions, DeviceOptions, RunConfig, RunOptions, TrainConfig
from cvae_jax.data.dataset import Splits
from cvae_jax.data.sources import load_dataset
from cvae_jax.drawing import figures
from cvae_jax.errors import InterruptedRunError
from cvae_jax.runtime import devices, hosts, signals
from cvae_jax.runtime.files import user_path, whole_file
from cvae_jax.storage import checkpoints, records, workdir
from cvae_jax.storage.history import Progress, add_sums, end_epoch, require_finite
from cvae_jax.training.programs import Dispatch, Programs, behind, build_programs, dispatch_epochs
from cvae_jax.training.step import TrainState

BATCHES_PER_LINE = 100
"""Batches between two printed lines within an epoch."""

_GRID_COLUMNS = 8


def train(
    config: TrainConfig,
    options: RunOptions,
    data: DataOptions,
    spread: DeviceOptions,
    splits: Splits | None = None,
) -> Path:
    """Train a model up to an epoch, from its newest checkpoint where there is one.

    Everything is written below the workdir: config.json, metrics.csv, samples/, loss.png and
    checkpoints/. A run that is stopped and resumed ends with the same bits as one that was not.

    Args:
        config: what to train.
        options: how far, and where the results go.
        data: where the images come from.
        spread: the devices and hosts that share a batch.
        splits: the data set, if it is already loaded; `data` is then not used.

    Returns:
        The workdir.

    Raises:
        ConfigError: the workdir holds a run with other settings, the data set does not exist, or
            the batch can't be divided among the devices.
        DataError: the data set can't be fetched or read.
        CheckpointError: the checkpoints can't be read or written.
        UserError: a file can't be written, another process trains there, or the loss or the
            state is no longer finite.
        InterruptedRunError: SIGINT or SIGTERM stopped the run; it was saved.
        HostError: several processes train together, and one of them failed.
    """
    folder = user_path("workdir", options.workdir or Path("runs") / config.dataset)
    say = (lambda *_: None) if options.quiet else partial(print, flush=True)
    with hosts.joined(spread.coordinator_address, spread.num_processes, spread.process_id):
        say(f"devices: {devices.describe(spread.num_devices)}")
        if warning := devices.unused_accelerator():
            print(f"\n{'!' * 80}\nWARNING: {warning}\n{'!' * 80}\n", flush=True)
        mesh = devices.make_mesh(spread.num_devices)
        devices.require_divisible(config.batch_size, mesh)
        if splits is None:
            with hosts.first_alone():
                splits = load_dataset(config.dataset, source=data.source, data_dir=data.data_dir)
        run = RunConfig(config, splits.image_shape, splits.num_classes, splits.fingerprint())
        say(
            f"data: {config.dataset}, {len(splits.train.label):,} training and "
            f"{len(splits.test.label):,} test images of shape {run.image_shape}, "
            f"{run.num_classes} classes"
        )
        shared = (options.epochs, options.sample_every, options.checkpoint_every, folder.resolve())
        hosts.require_equal(
            records.encode(run) + repr(shared).encode(), "settings, data or workdir"
        )
        with workdir.lock(folder) if hosts.is_first() else contextlib.nullcontext():
            newest = _prepare(folder, run)
            programs = build_programs(run, splits, mesh, hosts.least(_data_memory(spread)))
            if not programs.is_resident:
                say("data: too large for the device (--data-memory), so it streams")
            with signals.watch() as find_signal:
                _train(run, programs, options, folder, newest, find_signal, say)
        say(f"results are in {folder}. To draw digits: {_sample_command(splits, folder)}")
    return folder


def _data_memory(spread: DeviceOptions) -> float | None:
    """Return the bytes on a device that the data set may take; None for no limit."""
    if spread.data_memory is not None:
        return spread.data_memory * 1e9
    memory = devices.memory()
    return None if memory is None else memory / 2


def _sample_command(splits: Splits, folder: Path) -> str:
    label = np.asarray(splits.train.label)
    digit = 6 if 6 in label else int(label[0])
    return f"cvae-jax sample --digit {digit} --workdir {shlex.quote(str(folder))}"


def _prepare(folder: Path, run: RunConfig) -> Path | None:
    """Prepare the workdir; return the newest checkpoint, from which all processes resume."""
    directory = folder / workdir.CHECKPOINTS
    newest = None
    if hosts.is_first():
        newest = checkpoints.find_newest(directory)
        if newest and not workdir.is_claimed(folder):
            checkpoints.require_run(newest, run)
        workdir.claim(folder, run, is_new=newest is None)
        checkpoints.clean(directory, newest)
    step = hosts.from_first(int(newest.name) if newest else -1)
    return None if step < 0 else directory / str(step)


def _train(
    run: RunConfig,
    programs: Programs,
    options: RunOptions,
    folder: Path,
    newest: Path | None,
    find_signal: Callable[[], int | None],
    say: Callable[[str], None],
) -> None:
    """Train the remaining epochs, and write the files of each epoch as it ends."""
    directory = folder / workdir.CHECKPOINTS
    if newest:
        like, where = jax.eval_shape(programs.init), devices.on_all(programs.mesh)
        restored, start = checkpoints.restore(newest, like._asdict(), run, where)
        state = TrainState(**restored)
    else:
        state, start = programs.init(), Progress()
    progress, num_epochs = start, len(start.history)
    if num_epochs >= options.epochs:
        if hosts.is_first():
            _write_metrics(progress, run, folder)  # they may have been lost
        say(
            f"nothing left to do: {folder} has been trained for {num_epochs} epochs; to train on, "
            f"add --epochs {2 * num_epochs}"
        )
        return
    step = saved = int(state.step)
    if newest:
        say(f"resuming after {_where(step, programs)}, from {newest}")

    def is_due(epoch: int, every: int) -> bool:
        return epoch % every == 0 or epoch == options.epochs

    is_saved = partial(is_due, every=options.checkpoint_every)
    dispatches = dispatch_epochs(
        programs,
        state,
        options.epochs,
        is_saved=is_saved,
        is_drawn=partial(is_due, every=options.sample_every),
        is_stopped=find_signal,
        label=_grid_label(run),
    )
    dispatches = behind(dispatches, programs.num_ahead)
    for dispatch, progress in _read(dispatches, programs, options, step, start):
        state, step = dispatch.state, dispatch.step
        if dispatch.test is None:
            continue
        epoch = len(progress.history)
        if hosts.is_first():
            if is_saved(epoch) or dispatch.samples is not None:
                _write_metrics(progress, run, folder)
            else:
                workdir.write_metrics(folder, progress.history)
            if dispatch.samples is not None:
                _draw_grid(dispatch.samples, run, epoch, folder)
        # The checkpoint comes last: where it exists, so does everything that belongs before it.
        if is_saved(epoch):
            checkpoints.save(directory, state._asdict(), run, progress)
            saved = step
    if len(progress.history) < options.epochs:
        if step > saved:
            checkpoints.save(directory, state._asdict(), run, progress)
        message = "stopped before the first step, with nothing to save"
        if step:
            place = _where(step, programs)
            message = f"stopped and saved after {place}; the same command resumes from there"
        raise InterruptedRunError(message, find_signal() or signal.SIGTERM)


def _where(step: int, programs: Programs) -> str:
    epoch, batch = divmod(step, programs.steps_per_epoch)
    within = f" and batch {batch} of {programs.steps_per_epoch} of the next one" if batch else ""
    return f"epoch {epoch}{within}"


def _read(
    dispatches: Iterator[Dispatch],
    programs: Programs,
    options: RunOptions,
    step: int,
    progress: Progress,
) -> Iterator[tuple[Dispatch, Progress]]:
    """Wait for the numbers of each dispatch, check that they are finite, and show them.

    Yields:
        Each dispatch, and the progress after it.
    """
    num_batches = programs.steps_per_epoch
    started = time.perf_counter()
    with tqdm(
        total=options.epochs * num_batches,
        initial=step,
        unit="batch",
        desc="compiling",
        smoothing=0.1,
        disable=options.quiet or not hosts.is_first(),
    ) as bar:
        for dispatch in dispatches:
            sums, is_finite = jax.device_get((dispatch.train, dispatch.is_finite))
            require_finite(dispatch.step, sums, is_finite, num_batches)
            progress = add_sums(progress, sums)
            name = f"epoch {len(progress.history) + 1}/{options.epochs}"
            lines = []
            first = (dispatch.step - len(sums.kl)) % num_batches + 1
            for batch, loss in enumerate(sums.loss / sums.num_examples, start=first):
                if batch % BATCHES_PER_LINE == 0:
                    lines.append(f"{name}, batch {batch}/{num_batches}: loss {loss:.4f}")
            if dispatch.test is not None:
                now = time.perf_counter()
                test = reduce(add_sums, jax.device_get(dispatch.test), Progress())
                progress = end_epoch(progress, dispatch.step, test, now - started)
                started, row = now, progress.history[-1]
                lines.append(
                    f"{name}: train loss {row.train_loss:.4f}, test loss {row.test_loss:.4f} "
                    f"nats per image, {row.seconds:.1f} s"
                )
            if not options.quiet:
                for line in lines:
                    bar.write(line)
            bar.set_description(name, refresh=False)
            bar.update(len(sums.kl))
            yield dispatch, progress


def _grid_label(run: RunConfig) -> np.ndarray:
    """Return the classes of a sample grid, (64,) int32: each in turn."""
    return np.arange(_GRID_COLUMNS**2, dtype=np.int32) % run.num_classes


def _draw_grid(samples: jax.Array, run: RunConfig, epoch: int, folder: Path) -> None:
    figure = figures.image_grid(
        np.asarray(samples),
        _grid_label(run),
        f"{run.train.dataset}: samples after epoch {epoch}",
        num_columns=_GRID_COLUMNS,
        inches=0.8,
    )
    with whole_file(folder / workdir.SAMPLES / f"epoch_{epoch:03d}.png") as file:
        figure.savefig(file, format="png")


def _write_metrics(progress: Progress, run: RunConfig, folder: Path) -> None:
    """Write metrics.csv and loss.png."""
    workdir.write_metrics(folder, progress.history)
    figure = figures.loss_curve(progress.history, f"{run.train.dataset}: loss")
    with whole_file(folder / workdir.LOSS) as file:
        figure.savefig(file, format="png")
