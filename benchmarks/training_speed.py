"""Seconds per training epoch on MNIST: this package against the original's loop in PyTorch.

`python benchmarks/training_speed.py`, a few minutes on a laptop. Each side lives in a process
of its own, which sits idle while the other one is timed. Both train the same network on the
same 60,000 images, in batches of 128; neither is timed while it compiles or evaluates.
"""

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import environment, report
from cvae_jax import cli
from cvae_jax.types import UserError

TrainEpoch = Callable[[], float]  # trains on for an epoch; gives the mean loss, nats per image


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Time the training of this package against the original's, epoch by epoch in turns."""

    rounds: int = 5
    """Epochs of each side that count."""
    out: Path = Path("benchmarks/results/training_speed.json")
    """File to write (JSON)."""


def prepare_ours() -> TrainEpoch:
    """Put all on the device; an epoch is dispatched and fetched as `experiment` does it."""
    import jax
    import numpy as np

    from cvae_jax import data
    from cvae_jax.config import RunConfig, TrainConfig
    from cvae_jax.programs import build_programs
    from cvae_jax.types import LossSums

    splits = data.load_dataset(source="bundled")
    run = RunConfig(TrainConfig(), (28, 28, 1), splits.num_classes, splits.fingerprint())
    programs = build_programs(run, splits)
    state, epoch = programs.init(), 0

    def train_epoch() -> float:
        nonlocal state, epoch
        fetched: list[LossSums] = []
        waiting: list[LossSums] = []
        for rows in programs.order(epoch, 0):
            state, sums = programs.train(state, rows)
            waiting.append(sums)
            if len(waiting) > 1:  # the device works on the next piece while one is read
                fetched.append(jax.device_get(waiting.pop(0)))
        fetched.append(jax.device_get(waiting.pop()))
        jax.block_until_ready(state)
        epoch += 1
        reconstruction, kl, num_examples = (
            np.concatenate(sums).sum() for sums in zip(*fetched, strict=True)
        )
        return float((reconstruction + kl) / num_examples)

    return train_epoch


def prepare_theirs() -> TrainEpoch:
    """Make the original's loader, network and optimizer, with a thread for every processor."""
    import numpy as np
    import torch

    from benchmarks import torch_original
    from cvae_jax import data

    torch.manual_seed(0)
    torch.set_num_threads(environment.num_threads())
    image, label = (np.asarray(array) for array in data.load_dataset(source="bundled").train)
    loader = torch_original.make_loader(image, label)
    model = torch_original.TorchCVAE().to(torch_original.default_device())
    optimizer = torch_original.make_optimizer(model)
    return lambda: torch_original.train_epoch(model, optimizer, loader)


def serve(prepare: Callable[[], TrainEpoch], connection: Connection) -> None:
    """Train an epoch each time a message comes; answer with its seconds and its loss."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    with cli.one_line_errors(), contextlib.suppress(EOFError):
        train_epoch = prepare()
        while True:
            connection.recv()
            started = time.perf_counter()
            loss = train_epoch()
            connection.send((time.perf_counter() - started, loss))


@contextlib.contextmanager
def contestant(
    name: str, prepare: Callable[[], TrainEpoch], losses: list[float]
) -> Iterator[Callable[[], float]]:
    """Start a process for one side, and end it on leaving.

    Args:
        name: what to call it in an error.
        prepare: makes its training function, in that process.
        losses: each epoch adds its loss.

    Yields:
        A function that trains an epoch over there and gives its seconds.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(prepare, there), daemon=True)
    process.start()
    there.close()

    def time_epoch() -> float:
        try:
            here.send("train")
            seconds, loss = here.recv()
        except (EOFError, OSError):
            raise UserError(f"the process of {name} ended before its epoch did") from None
        losses.append(loss)
        return float(seconds)

    try:
        yield time_epoch
    finally:
        process.terminate()
        process.join()


def main() -> None:
    """Parse the arguments, take turns, print and write the result."""
    with cli.one_line_errors():
        options = cli.parse(Options)
        environment.require_torch()
        losses: dict[str, list[float]] = {report.OURS: [], report.THEIRS: []}
        with (
            contestant(report.OURS, prepare_ours, losses[report.OURS]) as ours,
            contestant(report.THEIRS, prepare_theirs, losses[report.THEIRS]) as theirs,
        ):
            seconds = report.take_turns(ours, theirs, options.rounds)
        job = "a training epoch of MNIST, without its test"
        report.publish(job, seconds, options.out, {"losses_with_warm_up": losses})


if __name__ == "__main__":
    main()
