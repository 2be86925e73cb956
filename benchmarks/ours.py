"""Training by this package, dispatched as `training.loop` does it, and nothing beside it."""

from collections.abc import Iterable
from functools import reduce

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.contest import Work, timed
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.data.sources import load_dataset
from cvae_jax.storage.history import LossSums, Progress, add_sums
from cvae_jax.training.loop import Programs, behind, build_programs, dispatch_epochs
from cvae_jax.training.step import TrainState


def load(
    config: TrainConfig | None = None,
    mesh: Mesh | None = None,
    data_memory: float | None = None,
) -> Programs:
    """Return the functions of a run on MNIST.

    Args:
        config: the settings; None for the defaults.
        mesh: as in `build_programs`.
        data_memory: as in `build_programs`.
    """
    splits = load_dataset(source="bundled")
    run = RunConfig(
        config or TrainConfig(), splits.image_shape, splits.num_classes, splits.fingerprint()
    )
    return build_programs(run, splits, mesh, data_memory)


def train(programs: Programs, state: TrainState, num_epochs: int) -> tuple[TrainState, float]:
    """Train up to an epoch, without tests, copies and files.

    Returns:
        The state, once it is computed, and the mean loss on the way to it, in nats per image.
    """
    sent = dispatch_epochs(
        programs._replace(test=lambda params: []),
        state,
        num_epochs,
        is_copied=lambda epoch: False,
        is_drawn=lambda epoch: False,
        is_stopped=lambda: False,
        label=np.zeros(0, np.int32),
    )
    fetched = []
    for dispatch in behind(sent, programs.num_ahead):  # the device works while one is read
        fetched.append(jax.device_get(dispatch.train))
        state = dispatch.state
    jax.block_until_ready(state)
    return state, mean_loss(fetched)


def mean_loss(sums: Iterable[LossSums]) -> float:
    """Return the mean loss of some steps in nats per image."""
    total = reduce(add_sums, sums, Progress())
    return (total.reconstruction + total.kl) / total.num_examples


def prepare_epoch(data_memory: float | None = None) -> Work:
    """Return work that trains one epoch further each time; `data_memory` is as in `load`."""
    programs = load(data_memory=data_memory)
    state, epoch = programs.init(), 0

    def train_epoch() -> float:
        nonlocal state, epoch
        epoch += 1
        state, loss = train(programs, state, epoch)
        return loss

    return timed(train_epoch)
