"""The compiled functions of a run, and their dispatch to the devices."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from cvae_jax.config import RunConfig
from cvae_jax.data.batches import Gathered, images_at_a_time
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import build_model, count_params
from cvae_jax.models.family import Params
from cvae_jax.models.sampling import sample
from cvae_jax.runtime import devices
from cvae_jax.storage.history import LossSums
from cvae_jax.training.feed import Piece, make_feed
from cvae_jax.training.step import TrainState, init_state, is_finite, train_steps
from cvae_jax.training.test_loss import compute_test_loss

# Most arithmetic in one dispatch, so that the progress bar moves every few seconds: about two
# seconds on a slow laptop, or on a small accelerator.
_DISPATCH_FLOPS_CPU = 6e10
_DISPATCH_FLOPS_ACCELERATOR = 1e13
# Most arithmetic, steps and dispatches sent ahead of what is read, so that an accelerator has work
# while the host draws and saves: about a second of it, which a stop then has to wait for.
_AHEAD_FLOPS, _AHEAD_STEPS, _MOST_AHEAD = 5e12, 20_000, 16

_Item = TypeVar("_Item")


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
    # the end of an epoch that is saved.
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
    model, optimizer = build_model(run.model), optax.adam(settings.learning_rate)
    trained_model = build_model(run.model, settings.precision)
    key = partial(jit(make_key, static_argnums=1), np.uint32(settings.seed))
    weights_key, noise_key, test_key = map(key, (Purpose.WEIGHTS, Purpose.NOISE, Purpose.TEST))
    samples_key, image_key, test_image_key = key(Purpose.SAMPLES), None, None
    if settings.binarize == "dynamic":
        image_key, test_image_key = key(Purpose.BINARIZE), key(Purpose.TEST_BINARIZE)

    steps_per_epoch = math.ceil(len(splits.train.label) / settings.batch_size)
    on_cpu = jax.default_backend() == "cpu"
    most_flops = _DISPATCH_FLOPS_CPU if on_cpu else _DISPATCH_FLOPS_ACCELERATOR
    flops = 6 * count_params(run.model) * settings.batch_size * steps_per_epoch
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
        )

    test_piece = jit(partial(compute_test_loss, model=model))

    def test(params: Params) -> list[LossSums]:
        sums: list[LossSums] = []
        for piece in feed.test():
            sums.append(test_piece(params, *piece, test_key, binarize_key=test_image_key))
            jax.block_until_ready(sums[:-1])  # no more than two pieces of a stream at a time
        return sums

    init = jit(partial(init_state, model=model, optimizer=optimizer))
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
    is_saved: Callable[[int], bool],
    is_drawn: Callable[[int], bool],
    is_stopped: Callable[[], object],
    label: np.ndarray,
) -> Iterator[Dispatch]:
    """Send the rest of a run to the devices, without waiting for any of it.

    Args:
        programs: from `build_programs`.
        state: the start, which may be in the middle of an epoch; its memory is taken over.
        num_epochs: the epoch after which the run ends.
        is_saved: whether the state at the end of an epoch, numbered from 1, is copied.
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
                test=programs.test(state.params) if is_end else None,
                samples=(
                    programs.samples(state.params, label) if is_end and is_drawn(epoch) else None
                ),
                state=programs.copy(state) if is_end and is_saved(epoch) else state,
            )


def behind(items: Iterable[_Item], number: int) -> Iterator[_Item]:
    """Yield each item after `number` more are made, so that the devices work while it is read."""
    made: deque[_Item] = deque()
    for item in items:
        made.append(item)
        if len(made) > number:
            yield made.popleft()
    yield from made
