"""Orbax checkpoints: the training state, and the metrics of every epoch up to it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cvae_jax.types import CheckpointError, EpochMetrics, Params, TrainState

NUM_KEPT = 5
"""Checkpoints that are kept; older ones are deleted."""


@contextlib.contextmanager
def open_manager(directory: Path) -> Iterator[ocp.CheckpointManager]:
    """Open a folder of checkpoints for writing; on leaving, wait until all is on the disk.

    Raises:
        CheckpointError: the folder can't be made, or a checkpoint could not be written.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(NUM_KEPT),
        cleanup_tmp_directories=True,
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # A relative path is accepted, then fails in the background.
        manager = ocp.CheckpointManager(directory.resolve(), options=options)
    except OSError as error:
        raise CheckpointError(f"{directory} can't be used: {error.strerror or error}") from error
    try:
        yield manager
    finally:
        with _errors_name(directory, "written"):
            manager.wait_until_finished()
            manager.close()


def save(
    manager: ocp.CheckpointManager, state: TrainState, history: Sequence[EpochMetrics]
) -> None:
    """Save in the background; the state may be donated as soon as this returns.

    Raises:
        CheckpointError: this save, or the one before it, could not be written.
    """
    with _errors_name(Path(manager.directory), "written"):
        manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state._asdict()),
                history=ocp.args.JsonSave([list(row) for row in history]),
            ),
        )


def restore_latest(
    manager: ocp.CheckpointManager, like: TrainState
) -> tuple[TrainState, list[EpochMetrics]] | None:
    """Restore the newest checkpoint; None where there is none.

    Args:
        manager: from `open_manager`.
        like: a state of the same structure, shapes and types, for example from `jax.eval_shape`.

    Raises:
        CheckpointError: it can't be read.
    """
    step = manager.latest_step()
    if step is None:
        return None
    with _errors_name(Path(manager.directory) / str(step), "read"):
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                state=_restore_args(like._asdict()),
                history=ocp.args.JsonRestore(),
            ),
        )
        history = [EpochMetrics(*row) for row in restored["history"]]
        return TrainState(**restored["state"]), history


def list_steps(directory: Path) -> list[int]:
    """List the steps of the finished checkpoints in a folder, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


def restore_params(checkpoint: Path, like: Params) -> Params:
    """Restore the model's parameters alone, which is all that sampling needs.

    Args:
        checkpoint: its folder, named by its step.
        like: parameters of the same structure, shapes and types.

    Raises:
        CheckpointError: there is no such checkpoint, or it can't be read.
    """
    with _errors_name(checkpoint, "read"), ocp.PyTreeCheckpointer() as checkpointer:
        args = _restore_args({"params": like}, partial_restore=True)
        return checkpointer.restore((checkpoint / "state").resolve(), args=args)["params"]


def _restore_args(like: Any, **options: Any) -> ocp.args.PyTreeRestore:
    """Ask for arrays on this process's first device, whatever devices they were saved from."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    item = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.args.PyTreeRestore(item, restore_args=restore_args, **options)


@contextlib.contextmanager
def _errors_name(path: Path, done: str) -> Iterator[None]:
    """Turn whatever Orbax raises (it has no exception type of its own) into one clear line."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the checkpoint {path} can't be {done}: {reason}") from error
