"""The training loop: the place that runs a model's training, prints, saves and keeps time."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import CheckpointManager
from tqdm import tqdm

from cvae_jax import checkpoints, data, devices, figures, workdir
from cvae_jax.batches import in_rows, put_on_device
from cvae_jax.config import RunConfig, RunOptions, TrainConfig
from cvae_jax.evaluation import evaluate
from cvae_jax.files import whole_file
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import CVAE
from cvae_jax.sampling import sample
from cvae_jax.training import epoch_order, init_state, train_steps
from cvae_jax.types import EpochMetrics, InterruptedRunError, LossSums, Params, Splits, TrainState

BATCHES_PER_LINE = 100
"""Batches between two printed lines within an epoch."""

_GRID_COLUMNS = 8
_GRID_SIZE = _GRID_COLUMNS**2
_EVALUATION_BATCH = 1000

# Most arithmetic in one dispatch, so that the progress bar moves every few seconds: about two
# seconds on a slow laptop, or on a small accelerator.
_DISPATCH_FLOPS_CPU = 5e10
_DISPATCH_FLOPS_ACCELERATOR = 1e13

_Item = TypeVar("_Item")


class Programs(NamedTuple):
    """The functions of a run, bound to its model and its data and compiled at first use."""

    init: Callable[[], TrainState]
    order: Callable[[int], jax.Array]
    """Of an epoch, counted from 0: (dispatches, steps, B)."""
    train: Callable[[TrainState, jax.Array], tuple[TrainState, LossSums]]
    """Of a state, which is donated, and the (steps, B) rows of one dispatch."""
    test: Callable[[Params], LossSums]
    samples: Callable[[Params], jax.Array]
    steps_per_epoch: int


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
        InterruptedRunError: the user pressed Ctrl-C.
    """
    print(f"devices: {devices.describe()}", flush=True)
    if warning := devices.unused_accelerator():
        print(f"\n{'!' * 80}\nWARNING: {warning}\n{'!' * 80}\n", flush=True)
    folder = options.workdir.expanduser() if options.workdir else Path("runs") / config.dataset
    splits = data.load_dataset(config.dataset, source=options.source, data_dir=options.data_dir)
    run = RunConfig(
        train=config,
        image_shape=splits.train.image.shape[1:],
        num_classes=splits.num_classes,
        data_sha256=splits.fingerprint(),
    )
    print(
        f"data: {config.dataset}, {len(splits.train.label):,} training and "
        f"{len(splits.test.label):,} test images of shape {run.image_shape}, "
        f"{run.num_classes} classes",
        flush=True,
    )
    workdir.claim(folder, run)
    programs = build_programs(run, splits)
    with checkpoints.open_manager(folder / "checkpoints") as manager:
        state, history = checkpoints.restore_latest(manager, jax.eval_shape(programs.init)) or (
            programs.init(),
            [],
        )
        if len(history) >= options.epochs:
            print(
                f"nothing left to do: {folder} has been trained for {len(history)} epochs. "
                f"To train on: --epochs {2 * len(history)}. {_how_to_sample(folder)}"
            )
            return
        if history:
            print(f"going on after epoch {len(history)}, from the checkpoint in {folder}")
        try:
            _run_epochs(programs, state, history, manager, run, options, folder)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted in epoch {len(history) + 1}; the same command goes on from the "
                f"newest checkpoint in {folder}"
            ) from None
    print(f"results are in {folder}. {_how_to_sample(folder)}")


def build_programs(run: RunConfig, splits: Splits) -> Programs:
    """Put the data on the device and bind the functions of a run to it."""
    model, optimizer = CVAE(run.model), optax.adam(run.train.learning_rate)
    batch_size, num_examples = run.train.batch_size, len(splits.train.label)
    train_set, test_set = put_on_device(splits.train), put_on_device(splits.test)
    weights_key, order_key, noise_key, test_key, samples_key = (
        make_key(run.train.seed, purpose) for purpose in Purpose
    )
    init = jax.jit(partial(init_state, weights_key, model, optimizer))
    steps_per_epoch = math.ceil(num_examples / batch_size)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init).params))
    steps = _steps_per_dispatch(steps_per_epoch, 6 * num_params * batch_size)

    def order(epoch: int) -> jax.Array:
        rows = epoch_order(order_key, epoch, num_examples=num_examples, batch_size=batch_size)
        return in_rows(rows.ravel(), steps * batch_size).reshape(-1, steps, batch_size)

    train = jax.jit(partial(train_steps, model=model, optimizer=optimizer), donate_argnums=0)
    test = jax.jit(partial(evaluate, model=model, batch_size=_EVALUATION_BATCH))
    samples = jax.jit(partial(sample, model=model))
    index = jnp.arange(_GRID_SIZE)
    return Programs(
        init=init,
        order=jax.jit(order),
        train=lambda state, rows: train(state, noise_key, train_set, rows),
        test=lambda params: test(params, test_key, test_set),
        samples=lambda params: samples(params, samples_key, index, index % run.num_classes),
        steps_per_epoch=steps_per_epoch,
    )


def _steps_per_dispatch(steps_per_epoch: int, flops_per_step: float) -> int:
    """Cut an epoch into dispatches of equal length, the last with as few empty steps as can be."""
    on_cpu = jax.default_backend() == "cpu"
    most_flops = _DISPATCH_FLOPS_CPU if on_cpu else _DISPATCH_FLOPS_ACCELERATOR
    fewest = min(math.ceil(steps_per_epoch * flops_per_step / most_flops), steps_per_epoch)
    choices = range(fewest, min(2 * fewest, steps_per_epoch + 1))
    num_dispatches = min(choices, key=lambda number: -steps_per_epoch % number)
    return math.ceil(steps_per_epoch / num_dispatches)


def _dispatches(
    programs: Programs, state: TrainState, epochs: range, options: RunOptions
) -> Iterator[Dispatch]:
    """Send the work of some epochs to the device, without waiting for any of it."""
    for epoch in epochs:
        *head, last = programs.order(epoch - 1)
        for rows in head:
            state, sums = programs.train(state, rows)
            yield Dispatch(epoch, sums, test=None, snapshot=None)
        state, sums = programs.train(state, last)
        keep = _is_due(epoch, options.sample_every, options) or _is_due(
            epoch, options.checkpoint_every, options
        )
        yield Dispatch(
            epoch,
            sums,
            test=programs.test(state.params),
            snapshot=jax.tree.map(jnp.copy, state) if keep else None,
        )


def _is_due(epoch: int, every: int, options: RunOptions) -> bool:
    return epoch % every == 0 or epoch == options.epochs


def _one_behind(items: Iterable[_Item]) -> Iterator[_Item]:
    """Give each item once the next one is made: what is read has then been computed meanwhile."""
    iterator = iter(items)
    previous = next(iterator)
    for item in iterator:
        yield previous
        previous = item
    yield previous


def _run_epochs(
    programs: Programs,
    state: TrainState,
    history: list[EpochMetrics],
    manager: CheckpointManager,
    run: RunConfig,
    options: RunOptions,
    folder: Path,
) -> None:
    """Train from the end of `history`, which grows by a row an epoch, up to the last epoch."""
    epochs = range(len(history) + 1, options.epochs + 1)
    total = options.epochs * programs.steps_per_epoch
    done = len(history) * programs.steps_per_epoch
    started = time.perf_counter()
    epoch_sums: list[LossSums] = []
    with tqdm(total=total, initial=done, unit="batch", desc="compiling", smoothing=0.1) as bar:
        for dispatch in _one_behind(_dispatches(programs, state, epochs, options)):
            sums = jax.device_get(dispatch.train)
            epoch = dispatch.epoch
            name = f"epoch {epoch}/{options.epochs}"
            first_batch = sum(len(earlier.kl) for earlier in epoch_sums)
            for line in _batch_lines(name, first_batch, programs.steps_per_epoch, sums):
                bar.write(line)
            bar.set_description(name, refresh=False)
            bar.update(np.count_nonzero(sums.num_examples))
            epoch_sums.append(sums)
            if dispatch.test is None:
                continue

            now = time.perf_counter()
            row = _epoch_metrics(
                epoch, programs.steps_per_epoch, epoch_sums, dispatch.test, now - started
            )
            started, epoch_sums = now, []
            history.append(row)
            workdir.write_metrics(folder, history)
            bar.write(
                f"{name}: train loss {row.train_loss:.4f}, test loss {row.test_loss:.4f} "
                f"nats per image, {row.seconds:.1f} s"
            )
            # A checkpoint comes last: where it stands, so does all that came before it.
            if dispatch.snapshot is not None:
                if epoch % options.sample_every == 0:
                    _draw_grid(programs, dispatch.snapshot.params, run, epoch, folder)
                _draw_loss(history, run, folder)
                if _is_due(epoch, options.checkpoint_every, options):
                    checkpoints.save(manager, dispatch.snapshot, history)


def _batch_lines(name: str, first_batch: int, num_batches: int, sums: LossSums) -> Iterator[str]:
    """Say the loss of every hundredth batch, in nats per image."""
    losses = (sums.reconstruction + sums.kl) / np.maximum(sums.num_examples, 1)
    for batch, loss in enumerate(losses, start=first_batch + 1):
        if batch % BATCHES_PER_LINE == 0 and batch <= num_batches:
            yield f"{name}, batch {batch}/{num_batches}: loss {loss:.4f}"


def _epoch_metrics(
    epoch: int,
    steps_per_epoch: int,
    train_sums: list[LossSums],
    test_sums: LossSums,
    seconds: float,
) -> EpochMetrics:
    train_reconstruction, train_kl = _means(train_sums)
    test_reconstruction, test_kl = _means([jax.device_get(test_sums)])
    return EpochMetrics(
        epoch=epoch,
        step=epoch * steps_per_epoch,
        train_loss=train_reconstruction + train_kl,
        train_reconstruction=train_reconstruction,
        train_kl=train_kl,
        test_loss=test_reconstruction + test_kl,
        test_reconstruction=test_reconstruction,
        test_kl=test_kl,
        seconds=seconds,
    )


def _means(pieces: list[LossSums]) -> tuple[float, float]:
    """Give the mean reconstruction and KL per image, added up in double precision."""
    reconstruction, kl, num_examples = (
        math.fsum(np.concatenate(arrays).tolist()) for arrays in zip(*pieces, strict=True)
    )
    return reconstruction / num_examples, kl / num_examples


def _draw_grid(
    programs: Programs, params: Params, run: RunConfig, epoch: int, folder: Path
) -> None:
    label = np.arange(_GRID_SIZE) % run.num_classes
    figure = figures.image_grid(
        np.asarray(programs.samples(params)),
        label,
        f"{run.train.dataset}: samples after epoch {epoch}",
        num_columns=_GRID_COLUMNS,
        inches=0.8,
    )
    with whole_file(folder / "samples" / f"epoch_{epoch:03d}.png") as file:
        figure.savefig(file)


def _draw_loss(history: list[EpochMetrics], run: RunConfig, folder: Path) -> None:
    with whole_file(folder / "loss.png") as file:
        figures.loss_curve(history, f"{run.train.dataset}: loss").savefig(file)


def _how_to_sample(folder: Path) -> str:
    return f"To draw digits: python scripts/sample.py --digit 6 --workdir {folder}"
