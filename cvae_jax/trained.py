"""A trained model out of its workdir: what drawing and evaluating begin with."""

from pathlib import Path
from typing import NamedTuple

import jax

from cvae_jax import checkpoints, records, workdir
from cvae_jax.config import RunConfig
from cvae_jax.models import CVAE, init_params
from cvae_jax.types import CheckpointError, ConfigError, EpochMetrics, Params


class Trained(NamedTuple):
    """A model, where it comes from, and how it got there."""

    checkpoint: Path
    run: RunConfig
    model: CVAE
    params: Params
    history: tuple[EpochMetrics, ...]


def load(folder: Path, run: RunConfig, step: int | None) -> Trained:
    """Load the model of a step, or of the newest checkpoint that is whole.

    Args:
        folder: the workdir.
        run: its settings, from `workdir.read_config`.
        step: None for the newest.

    Raises:
        ConfigError: there is no such step.
        CheckpointError: there is no checkpoint, or it can't be read.
    """
    checkpoint = _choose(folder, step)
    model = CVAE(run.model)
    like = jax.eval_shape(lambda: init_params(jax.random.key(0), model))
    params = checkpoints.restore_params(checkpoint, like, run)
    try:
        progress = records.decode_progress(checkpoints.require_run(checkpoint, run))
    except records.RecordError as error:
        raise CheckpointError(f"the checkpoint {checkpoint} can't be read: {error}") from error
    return Trained(checkpoint, run, model, params, progress.history)


def _choose(folder: Path, step: int | None) -> Path:
    directory = folder / workdir.CHECKPOINTS
    if step is None:
        newest = checkpoints.find_newest(directory)
        if newest is None:
            raise CheckpointError(
                f"no checkpoint in {directory}; make one with: {workdir.train_command(folder)}"
            )
        return newest
    steps = checkpoints.list_steps(directory)
    if step not in steps:
        raise ConfigError(f"--step {step} is not in {directory}; choose one of {steps}")
    checkpoint = directory / str(step)
    if damage := checkpoints.find_damage(checkpoint):
        raise CheckpointError(f"{checkpoint} is damaged ({damage}); choose another of {steps}")
    return checkpoint
