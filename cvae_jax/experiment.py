"""Training from the command to the files: the one loop, and all that it prints and saves."""

import contextlib
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path

import jax
from tqdm import tqdm

from cvae_jax import (
    checkpoints,
    data,
    devices,
    outputs,
    plan,
    processes,
    sharding,
    stopping,
    workdir,
)
from cvae_jax.cli import tolerant_output
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.files import require_writable, user_path
from cvae_jax.options import RunOptions
from cvae_jax.programs import Dispatch, Programs, behind, build_programs, dispatch_epochs
from cvae_jax.progress import add_sums, end_epoch, require_finite
from cvae_jax.types import (
    InterruptedRunError,
    Progress,
    TrainState,
)

BATCHES_PER_LINE = 100
"""Batches between two printed lines within an epoch."""


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
        PartedError: several processes train together, and one of them failed.
    """
    with processes.joined(options.coordinator_address, options.num_processes, options.process_id):
        _train_together(config, options)


def _train_together(config: TrainConfig, options: RunOptions) -> None:
    """Train in one of the processes, or in the only one; the first one prints and writes."""
    folder = user_path("workdir", options.workdir or Path("runs") / config.dataset)
    print(f"devices: {devices.describe(options.num_devices)}", flush=True)
    if processes.is_first():
        require_writable("workdir", folder, folder=True)
        workdir.require_unlocked(folder)
    if warning := devices.unused_accelerator():
        print(f"\n{'!' * 80}\nWARNING: {warning}\n{'!' * 80}\n", flush=True)
    mesh = sharding.make_mesh(options.num_devices)
    sharding.require_divisible(config.batch_size, mesh)
    with processes.first_alone():
        splits = data.load_dataset(config.dataset, source=options.source, data_dir=options.data_dir)
    run = plan.describe_run(config, options, splits, mesh.size)
    processes.require_equal(plan.to_agree_on(run, options, folder), "settings, data or workdir")
    with workdir.lock(folder) if processes.is_first() else contextlib.nullcontext():
        newest = _prepare(folder, run)
        data_memory = processes.least(plan.data_memory(options))
        programs = build_programs(run, splits, mesh, data_memory)
        if not programs.is_resident:
            print("data: too large for the device (--data-memory), so it streams", flush=True)
        with stopping.watch() as stop_signal, tolerant_output():
            _train(run, programs, options, folder, newest, stop_signal)
    digit = min(6, run.num_classes - 1)
    print(
        f"results are in {folder}. To draw digits: "
        f"python scripts/sample.py --digit {digit} --workdir {shlex.quote(str(folder))}"
    )


def _prepare(folder: Path, run: RunConfig) -> Path | None:
    """Make the folder ready; give the newest checkpoint, which all processes go on from."""
    directory = folder / workdir.CHECKPOINTS
    newest = None
    if processes.is_first():
        newest = checkpoints.find_newest(directory)
        if newest and not workdir.is_claimed(folder):
            checkpoints.require_run(newest, run)
        workdir.claim(folder, run, is_new=newest is None)
        checkpoints.clean(directory, newest)
    step = processes.from_first(int(newest.name) if newest else -1)
    return None if step < 0 else directory / str(step)


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
    if newest:
        like, where = jax.eval_shape(programs.init), sharding.on_all(programs.mesh)
        state, start = checkpoints.restore(newest, like, run, where)
    else:
        state, start = programs.init(), Progress()
    progress, saved = start, int(state.step)
    num_epochs = len(progress.history)
    if num_epochs >= options.epochs:
        if processes.is_first():
            workdir.write_metrics(folder, start.history)  # they may have been lost
            outputs.draw_loss(start.history, run, folder)
        print(
            f"nothing left to do: {folder} has been trained for {num_epochs} epochs; to train on, "
            f"add --epochs {2 * num_epochs}"
        )
        return
    if newest:
        print(f"going on after {_where(saved, programs)}, from {newest}", flush=True)

    last_step = saved
    for dispatch, progress in _run(programs, run, state, start, options, stop_signal):
        state, last_step = dispatch.state, dispatch.step
        if dispatch.test is None:
            continue
        epoch = len(progress.history)
        # A checkpoint comes last: where it stands, so does all that belongs before it.
        if processes.is_first():
            workdir.write_metrics(folder, progress.history)
            if _is_saved(epoch, options) or dispatch.samples is not None:
                outputs.draw_loss(progress.history, run, folder)
            if dispatch.samples is not None:
                outputs.draw_grid(dispatch.samples, run, epoch, folder)
        if _is_saved(epoch, options):
            checkpoints.save(directory, state, run, progress)
            saved = last_step
    if len(progress.history) < options.epochs:
        if last_step > saved:
            checkpoints.save(directory, state, run, progress)
        message = "stopped before the first step, with nothing to save"
        if last_step:
            place = _where(last_step, programs)
            message = f"stopped and saved after {place}; the same command goes on from there"
        raise InterruptedRunError(message, stop_signal() or signal.SIGTERM)


def _is_saved(epoch: int, options: RunOptions) -> bool:
    return epoch % options.checkpoint_every == 0 or epoch == options.epochs


def _where(step: int, programs: Programs) -> str:
    epoch, batch = divmod(step, programs.steps_per_epoch)
    within = f" and batch {batch} of {programs.steps_per_epoch} of the next one" if batch else ""
    return f"epoch {epoch}{within}"


def _run(
    programs: Programs,
    run: RunConfig,
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
    sent = dispatch_epochs(
        programs,
        state,
        options.epochs,
        is_kept=partial(_is_saved, options=options),
        is_stopped=stop_signal,
        label=outputs.grid_label(run),
        is_drawn=lambda epoch: epoch % options.sample_every == 0,
    )
    with tqdm(
        total=total,
        initial=step,
        unit="batch",
        desc="compiling",
        smoothing=0.1,
        disable=not processes.is_first(),
    ) as bar:
        for dispatch in behind(sent, programs.num_ahead):
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
                test = reduce(add_sums, jax.device_get(dispatch.test), Progress())
                progress = end_epoch(progress, dispatch.step, test, now - started)
                started, row = now, progress.history[-1]
                bar.write(
                    f"{name}: train loss {row.train_loss:.4f}, test loss {row.test_loss:.4f} "
                    f"nats per image, {row.seconds:.1f} s"
                )
            yield dispatch, progress
