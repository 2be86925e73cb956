"""Training by this package, as `experiment` dispatches it, with nothing beside it."""

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.contest import Work, timed
from cvae_jax import data
from cvae_jax.config import RunConfig, TrainConfig
from cvae_jax.programs import Programs, behind, build_programs, dispatch_epochs
from cvae_jax.types import TrainState


def load(
    config: TrainConfig | None = None,
    mesh: Mesh | None = None,
    data_memory: float | None = None,
) -> Programs:
    """Bind the functions of a run to MNIST, of the default one where nothing else is said.

    Args:
        config: the settings.
        mesh: as for `build_programs`, and so is `data_memory`.
        data_memory: bytes on a device that images may take.
    """
    splits = data.load_dataset(source="bundled")
    run = RunConfig(
        config or TrainConfig(), splits.image_shape, splits.num_classes, splits.fingerprint()
    )
    return build_programs(run, splits, mesh, data_memory)


def train(programs: Programs, state: TrainState, num_epochs: int) -> tuple[TrainState, float]:
    """Train up to an epoch, without tests, copies and files.

    Returns:
        The state, all of it there, and the mean loss on the way to it, in nats per image.
    """
    untested = programs._replace(test=lambda params: [])
    sent = dispatch_epochs(
        untested,
        state,
        num_epochs,
        is_kept=lambda epoch: False,
        is_stopped=lambda: False,
        label=np.zeros(0, np.int32),
        is_drawn=lambda epoch: False,
    )
    fetched = []
    for dispatch in behind(sent, programs.num_ahead):  # the device works while one is read
        fetched.append(jax.device_get(dispatch.train))
        state = dispatch.state
    jax.block_until_ready(state)
    reconstruction, kl, num_examples = (
        np.concatenate(sums).sum() for sums in zip(*fetched, strict=True)
    )
    return state, float((reconstruction + kl) / num_examples)


def prepare_epoch(data_memory: float | None = None) -> Work:
    """Give a function that trains one epoch further at each call; as for `load`."""
    programs = load(data_memory=data_memory)
    state, epoch = programs.init(), 0

    def train_epoch() -> float:
        nonlocal state, epoch
        epoch += 1
        state, loss = train(programs, state, epoch)
        return loss

    return timed(train_epoch)
