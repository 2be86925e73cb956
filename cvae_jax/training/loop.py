"""The training loop: from settings and a data set to the files of a workdir."""

import contextlib
import dataclasses
import math
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from cvae_jax.config import DataOptions, DeviceOptions, RunConfig, RunOptions, TrainConfig
from cvae_jax.data.batches import Gathered, Piece, images_at_a_time, make_feed
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.data.sources import load
from cvae_jax.drawing import figures
from cvae_jax.errors import InterruptedRunError
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import build_model, count_flops
from cvae_jax.models.family import Params
from cvae_jax.models.sampling import sample
from cvae_jax.runtime import devices, hosts, signals
from cvae_jax.runtime.files import user_path, whole_file
from cvae_jax.storage import checkpoints, records, workdir
from cvae_jax.storage.history import (
    LossSums,
    Progress,
    add_sums,
    end_epoch,
    require_finite,
    write_metrics,
)
from cvae_jax.training.optimizer import build_optimizer
from cvae_jax.training.step import TrainState, init_state, is_finite, train_steps
from cvae_jax.training.test_loss import compute_test_loss

if TYPE_CHECKING:
    from cvae_jax.training.tensorboard import Board

BATCHES_PER_LINE = 100
"""Batches between two printed lines within an epoch."""

_GRID_IMAGES = 64

# Most arithmetic in one dispatch, so that the progress bar moves every few seconds: about two
# seconds on a slow laptop, or on a small accelerator.
_DISPATCH_FLOPS_CPU = 6e10
_DISPATCH_FLOPS_ACCELERATOR = 1e13
# Most arithmetic, steps and dispatches sent ahead of what is read, so that an accelerator has work
# while the host draws and saves: about a second of it, which a stop then has to wait for.
_AHEAD_FLOPS, _AHEAD_STEPS, _MOST_AHEAD = 5e12, 20_000, 16

_Item = TypeVar("_Item")


def train(
    config: TrainConfig,
    options: RunOptions,
    data: DataOptions,
    spread: DeviceOptions,
    splits: Splits | None = None,
) -> Path:
    """Train a model up to an epoch, from its newest checkpoint where there is one.

    Everything is written below the workdir: config.json, metrics.csv, samples/, loss.png and
    checkpoints/, on demand tensorboard/. A run that is stopped and resumed ends with the same bits
    as one that was not.

    Args:
        config: what to train.
        options: how far, and where the results go.
        data: where the images come from.
        spread: the devices and hosts that share a batch.
        splits: the data set, if it is already loaded; `data` is then not used.

    Returns:
        The workdir.

    Raises:
        ConfigError: the workdir holds a run with other settings, the data set does not exist, the
            batch can't be divided among the devices, or tensorboardX is needed and missing.
        DataError: the data set can't be fetched or read.
        CheckpointError: the checkpoints can't be read or written.
        UserError: a file can't be written, another process trains there, or the loss or the
            state is no longer finite.
        InterruptedRunError: SIGINT or SIGTERM stopped the run; it was saved.
        HostError: several processes train together, and one of them failed.
    """
    if options.tensorboard:
        from cvae_jax.training.tensorboard import Board  # late, because it needs an extra
    if config.schedule == "cosine" and config.decay_epochs is None:
        config = dataclasses.replace(config, decay_epochs=options.epochs)
    name = config.dataset
    if options.preset != RunOptions.preset:
        name += f"-{options.preset}"
    folder = user_path("workdir", options.workdir or Path("runs") / name)
    say = (lambda *_: None) if options.quiet else partial(print, flush=True)
    with hosts.joined(spread.coordinator_address, spread.num_processes, spread.process_id):
        say(f"devices: {devices.describe(spread.num_devices)}")
        if warning := devices.unused_accelerator():
            print(f"\n{'!' * 80}\nWARNING: {warning}\n{'!' * 80}\n", flush=True)
        mesh = devices.make_mesh(spread.num_devices)
        devices.require_divisible(config.batch_size, mesh)
        if splits is None:
            with hosts.first_alone():
                splits = load(config.dataset, data)
        run = splits.run(config)
        say(
            f"data: {config.dataset}, {len(splits.train.label):,} training and "
            f"{len(splits.test.label):,} test images of shape {run.image_shape}, "
            f"{run.num_classes} classes"
        )
        every = (options.sample_every, options.checkpoint_every)
        shared = (options.epochs, *every, options.tensorboard, folder.resolve())
        hosts.require_equal(
            records.encode(run) + repr(shared).encode(), "settings, data or workdir"
        )
        board = None
        if options.tensorboard and hosts.is_first():
            board = Board(folder, run, splits.test)
            say(f"to watch: tensorboard --logdir {shlex.quote(str(folder))}")
        with workdir.lock(folder) if hosts.is_first() else contextlib.nullcontext():
            newest = _prepare(folder, run)
            programs = build_programs(run, splits, mesh, hosts.least(_data_memory(spread)))
            if not programs.is_resident:
                say("data: too large for the device (--data-memory), so it streams")
            with signals.watch() as find_signal:
                _train(run, programs, options, folder, newest, find_signal, say, board)
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


class Programs(NamedTuple):
    """The functions that a run dispatches. Equal arguments give equal results."""

    init: Callable[[], TrainState]
    pieces: Callable[[int, int], Iterator[Piece]]  # the rest of an epoch, from a row on
    train: Callable[[TrainState, Piece], tuple[TrainState, LossSums]]  # donates the state
    is_finite: Callable[[TrainState], jax.Array]
    copy: Callable[[TrainState], TrainState]
    test: Callable[[Params], list[LossSums]]
    samples: Callable[[Params, np.ndarray], jax.Array]  # labels (N,) -> images (N, H, W, C)
    steps_per_epoch: int
    mesh: Mesh
    is_resident: bool  # whether the data set is on the devices, or streams
    num_ahead: int  # dispatches sent before the first of them is read


class Dispatch(NamedTuple):
    """The results of one piece of an epoch. The devices may still be computing them."""

    step: int  # batches trained on after it
    train: LossSums  # (S,) each
    is_finite: jax.Array  # () bool, of the state after it
    test: list[LossSums] | None  # at the end of an epoch
    samples: jax.Array | None  # at the end of an epoch that is drawn
    # The next dispatch takes over the memory of this state, unless it is the copy that is made at
    # the end of an epoch that is saved, or drawn for TensorBoard.
    state: TrainState


def build_programs(
    run: RunConfig, splits: Splits, mesh: Mesh | None = None, data_memory: float | None = None
) -> Programs:
    """Put the data on the devices and bind the functions of a run to it.

    Args:
        run: the settings.
        splits: the data set on the host.
        mesh: the devices that share each batch; None for the first one alone.
        data_memory: bytes on a device for images; a larger data set streams. None for no limit.
    """
    mesh = devices.make_mesh(1) if mesh is None else mesh
    jit = partial(jax.jit, out_shardings=devices.on_all(mesh))
    settings = run.train
    steps_per_epoch = math.ceil(len(splits.train.label) / settings.batch_size)
    model, optimizer = build_model(run.model), build_optimizer(settings, steps_per_epoch)
    trained_model = build_model(run.model, settings.precision)
    key = partial(jit(make_key, static_argnums=1), np.uint32(settings.seed))
    weights_key, noise_key, test_key = map(key, (Purpose.WEIGHTS, Purpose.NOISE, Purpose.TEST))
    samples_key, image_key, test_image_key = key(Purpose.SAMPLES), None, None
    if settings.binarize == "dynamic":
        image_key, test_image_key = key(Purpose.BINARIZE), key(Purpose.TEST_BINARIZE)

    on_cpu = jax.default_backend() == "cpu"
    most_flops = _DISPATCH_FLOPS_CPU if on_cpu else _DISPATCH_FLOPS_ACCELERATOR
    # Three times a forward pass, for it and both gradients.
    flops = 3 * count_flops(run.model) * settings.batch_size * steps_per_epoch
    fewest_pieces = math.ceil(flops / most_flops)
    at_a_time = images_at_a_time(math.prod(run.image_shape))
    feed = make_feed(
        splits,
        key(Purpose.ORDER),
        mesh,
        batch_size=settings.batch_size,
        test_batch_size=mesh.size * math.ceil(at_a_time / mesh.size),
        fewest_pieces=fewest_pieces,
        data_memory=data_memory,
    )

    @partial(jit, donate_argnums=0)
    def train(
        state: TrainState,
        keys: tuple[jax.Array, jax.Array | None],
        examples: Dataset | Gathered,
        order: jax.Array,
    ) -> tuple[TrainState, LossSums]:
        noise_key, binarize_key = keys
        return train_steps(
            state,
            examples,
            order,
            noise_key,
            model=trained_model,
            optimizer=optimizer,
            binarize_key=binarize_key,
            ema=settings.ema,
        )

    test_piece = jit(partial(compute_test_loss, model=model))

    def test(params: Params) -> list[LossSums]:
        sums: list[LossSums] = []
        for piece in feed.test():
            sums.append(test_piece(params, *piece, test_key, binarize_key=test_image_key))
            jax.block_until_ready(sums[:-1])  # no more than two pieces of a stream at a time
        return sums

    has_average = settings.ema > 0
    init = jit(partial(init_state, model=model, optimizer=optimizer, has_average=has_average))
    samples = jit(partial(sample, model=model))
    num_ahead = 1
    if not on_cpu and feed.is_resident:
        most = min(
            _AHEAD_FLOPS * fewest_pieces / flops, _AHEAD_STEPS * fewest_pieces / steps_per_epoch
        )
        num_ahead = max(1, min(int(most), _MOST_AHEAD))
    return Programs(
        init=lambda: init(weights_key),
        pieces=feed.train,
        train=lambda state, piece: train(state, (noise_key, image_key), *piece),
        is_finite=jit(is_finite),
        copy=jit(partial(jax.tree.map, jnp.copy)),
        test=test,
        samples=lambda params, label: samples(params, np.arange(len(label)), label, samples_key),
        steps_per_epoch=steps_per_epoch,
        mesh=mesh,
        is_resident=feed.is_resident,
        num_ahead=num_ahead,
    )


def dispatch_epochs(
    programs: Programs,
    state: TrainState,
    num_epochs: int,
    *,
    is_copied: Callable[[int], bool],
    is_drawn: Callable[[int], bool],
    is_stopped: Callable[[], object],
    label: np.ndarray,
) -> Iterator[Dispatch]:
    """Send the rest of a run to the devices, without waiting for any of it.

    Args:
        programs: from `build_programs`.
        state: the start, which may be in the middle of an epoch; its memory is taken over.
        num_epochs: the epoch after which the run ends.
        is_copied: whether the state at the end of an epoch, numbered from 1, is copied.
        is_drawn: whether samples are drawn at the end of an epoch, numbered from 1.
        is_stopped: called before each dispatch; a true result ends the run.
        label: (N,) classes to draw.
    """
    num_batches, step = programs.steps_per_epoch, int(state.step)
    while step < num_epochs * num_batches:
        for piece in programs.pieces(*divmod(step, num_batches)):
            if is_stopped():
                return
            state, sums = programs.train(state, piece)
            step += len(piece[1])
            epoch, batch = divmod(step, num_batches)
            is_end = not batch
            yield Dispatch(
                step=step,
                train=sums,
                is_finite=programs.is_finite(state),
                test=programs.test(state.tested) if is_end else None,
                samples=(
                    programs.samples(state.tested, label) if is_end and is_drawn(epoch) else None
                ),
                state=programs.copy(state) if is_end and is_copied(epoch) else state,
            )


def behind(items: Iterable[_Item], number: int) -> Iterator[_Item]:
    """Yield each item after `number` more are made, so that the devices work while it is read."""
    made: deque[_Item] = deque()
    for item in items:
        made.append(item)
        if len(made) > number:
            yield made.popleft()
    yield from made


def _train(
    run: RunConfig,
    programs: Programs,
    options: RunOptions,
    folder: Path,
    newest: Path | None,
    find_signal: Callable[[], int | None],
    say: Callable[[str], None],
    board: "Board | None",
) -> None:
    """Train the remaining epochs, and write the files of each epoch as it ends."""
    directory = folder / workdir.CHECKPOINTS
    if newest:
        like, where = jax.eval_shape(programs.init), devices.on_all(programs.mesh)
        restored, start = checkpoints.restore(newest, _parts(like), run, where)
        state = TrainState(**restored)
    else:
        state, start = programs.init(), Progress()
    progress, num_epochs = start, start.num_epochs
    if board:
        board.start(progress.history)
    if num_epochs >= options.epochs:
        if hosts.is_first() and progress.history:
            _write_history(progress, run, folder)  # they may have been lost
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
    is_drawn = partial(is_due, every=options.sample_every)
    dispatches = dispatch_epochs(
        programs,
        state,
        options.epochs,
        is_copied=lambda epoch: is_saved(epoch) or (options.tensorboard and is_drawn(epoch)),
        is_drawn=is_drawn,
        is_stopped=find_signal,
        label=_grid_label(run),
    )
    dispatches = behind(dispatches, programs.num_ahead)
    for dispatch, progress in _read(dispatches, programs, options, step, start):
        state, step = dispatch.state, dispatch.step
        if dispatch.test is None:
            continue
        epoch = progress.num_epochs
        if hosts.is_first():
            if is_saved(epoch) or dispatch.samples is not None:
                _write_history(progress, run, folder)
            else:
                write_metrics(folder, progress.history)
            if dispatch.samples is not None:
                _draw_grid(dispatch.samples, run, epoch, folder)
                if board:
                    board.draw(state.tested, epoch)
            if board:
                board.add(progress.history[-1])
        # The checkpoint comes last: where it exists, so does everything that belongs before it.
        if is_saved(epoch):
            checkpoints.save(directory, _parts(state), run, progress)
            saved = step
    if progress.num_epochs < options.epochs:
        if step > saved:
            checkpoints.save(directory, _parts(state), run, progress)
        message = "stopped before the first step, with nothing to save"
        if step:
            place = _where(step, programs)
            message = f"stopped and saved after {place}; the same command resumes from there"
        raise InterruptedRunError(message, find_signal() or signal.SIGTERM)


def _parts(state: TrainState) -> dict[str, Any]:
    """Return the parts of a state that a checkpoint holds."""
    return {name: part for name, part in state._asdict().items() if part is not None}


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
            name = f"epoch {progress.num_epochs + 1}/{options.epochs}"
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
    return np.arange(_GRID_IMAGES, dtype=np.int32) % run.num_classes


def _draw_grid(samples: jax.Array, run: RunConfig, epoch: int, folder: Path) -> None:
    figure = figures.image_grid(
        np.asarray(samples),
        figures.class_captions(_grid_label(run), run.model.names),
        f"{run.train.dataset}: samples after epoch {epoch}",
        num_columns=figures.GRID_COLUMNS,
        inches=figures.GRID_INCHES,
    )
    with whole_file(folder / workdir.SAMPLES / f"epoch_{epoch:03d}.png") as file:
        figure.savefig(file, format="png")


def _write_history(progress: Progress, run: RunConfig, folder: Path) -> None:
    """Write metrics.csv and loss.png."""
    write_metrics(folder, progress.history)
    figure = figures.loss_curve(progress.history, f"{run.train.dataset}: loss")
    with whole_file(folder / workdir.LOSS) as file:
        figure.savefig(file, format="png")
