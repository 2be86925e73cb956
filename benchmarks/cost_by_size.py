"""Time and memory of a training step against the size of the model, the batch and the data.

`python benchmarks/cost_by_size.py`, three minutes on two cores. One size grows at a time, from that
of the original; each measurement has a process of its own. Larger data sets are MNIST repeated.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import environment, plots, report
from benchmarks.report import Claim, Result
from cvae_jax.errors import UserError

_STEPS_CPU, _STEPS_ACCELERATOR = 4, 256  # of one dispatch
_LEAST_SECONDS = 0.5  # of the dispatches that count; the first does not


class Size(NamedTuple):
    """The sizes of a training."""

    hidden_dim: int = 600
    batch_size: int = 128
    num_images: int = 60_000


SWEEPS = {
    "hidden units": [Size(hidden_dim=size) for size in (600, 1200, 2400, 6000)],
    "images in a batch": [Size(batch_size=size) for size in (128, 512, 2048, 8192)],
    "images in the data set": [Size(num_images=size) for size in (60_000, 200_000, 700_000)],
}
_FIELDS = dict(zip(SWEEPS, Size._fields, strict=True))


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Measure the time and the memory of a training step over wide ranges of sizes."""

    rounds: int = 2
    """Measurements of each size, in turns."""


def measure_size(size: Size) -> dict[str, Any]:
    """Train some steps of one size in this process.

    Returns:
        Seconds of a step, with its share of an epoch's shuffling; bytes of the data set on the
        device, of all other arrays there, and of a dispatch according to XLA.

    Raises:
        UserError: the data set is on the device more than once, or not in bytes.
    """
    import jax
    import numpy as np
    import optax

    from cvae_jax.config import ModelConfig
    from cvae_jax.data.batches import epoch_order, put_on_device
    from cvae_jax.data.dataset import Dataset
    from cvae_jax.data.sources import load_dataset
    from cvae_jax.models import build_model
    from cvae_jax.training.step import init_state, train_steps

    image, label = (np.asarray(array) for array in load_dataset(source="bundled").train)
    index = np.arange(size.num_images) % len(label)
    dataset = put_on_device(Dataset(image[index], label[index]))
    config = ModelConfig(image_shape=(28, 28, 1), num_classes=10, hidden_dim=size.hidden_dim)
    model, optimizer = build_model(config), optax.adam(1e-3)
    state = init_state(jax.random.key(0), model, optimizer)
    order = jax.jit(partial(epoch_order, num_examples=size.num_images, batch_size=size.batch_size))
    shuffle_key, noise_key = jax.random.split(jax.random.key(1))

    jax.block_until_ready(order(key=shuffle_key, epoch=0))
    started = time.perf_counter()
    rows = jax.block_until_ready(order(key=shuffle_key, epoch=1))
    shuffle_seconds = (time.perf_counter() - started) / len(rows)
    num_steps = _STEPS_CPU if jax.default_backend() == "cpu" else _STEPS_ACCELERATOR
    rows = jax.numpy.tile(rows, (-(-num_steps // len(rows)), 1))[:num_steps]

    bound = partial(train_steps, model=model, optimizer=optimizer)
    train = jax.jit(bound, donate_argnums=0).lower(state, dataset, rows, noise_key).compile()
    state, _ = jax.block_until_ready(train(state, dataset, rows, noise_key))
    seconds: list[float] = []
    while sum(seconds) < _LEAST_SECONDS:
        started = time.perf_counter()
        state, _ = jax.block_until_ready(train(state, dataset, rows, noise_key))
        seconds.append(time.perf_counter() - started)

    live = jax.live_arrays()
    in_bytes = [array.nbytes for array in live if array.dtype == np.uint8]
    others = sum(array.nbytes for array in live) - sum(in_bytes)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves((state, dataset.label, rows)))
    memory: Any = train.memory_analysis()
    if in_bytes != [image[0].size * size.num_images] or others > needed + 1e6:
        raise UserError(f"the data set of {size} is on the device more than once, or not in bytes")
    return {
        "seconds_per_step": min(seconds) / num_steps + shuffle_seconds,
        "dataset_bytes": sum(in_bytes),
        "other_live_bytes": others,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def _milliseconds(found: Result) -> float:
    """Return the fastest round; sizes are measured too far apart for ratios of one round."""
    return 1000 * min(found["seconds_per_step"])


def _megabytes(found: Result) -> float:
    """Return the most memory that a step needs on the device."""
    kept = found["argument_bytes"] + found["output_bytes"] - found["alias_bytes"]
    return (kept + found["temporary_bytes"]) / 1e6


def _sweep(result: Result, name: str) -> list[tuple[int, Result]]:
    """Return the measurements of one sweep, each with the size that grows."""
    original = Size()._asdict()
    field = _FIELDS[name]
    rest = original.keys() - {field}
    return [
        (found["size"][field], found)
        for found in result["sizes"]
        if all(found["size"][key] == original[key] for key in rest)
    ]


def measure(options: Options, machine: Result) -> Result:
    """Measure all sizes in turns, each time in a process of its own."""
    seconds: dict[Size, list[float]] = {size: [] for sizes in SWEEPS.values() for size in sizes}
    for turn in range(1, options.rounds + 1):
        print(f"round {turn}/{options.rounds}", flush=True)
        latest = {}
        for size in seconds:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                latest[size] = pool.submit(measure_size, size).result()
            seconds[size].append(latest[size]["seconds_per_step"])
            print(f"  {size}: {1000 * seconds[size][-1]:.2f} ms a step", flush=True)
    return {
        "sizes": [
            {"size": size._asdict(), **found, "seconds_per_step": seconds[size]}
            for size, found in latest.items()
        ]
    }


def show(result: Result) -> str:
    """Return the table."""
    rows = [
        [
            f"{value:,} {name}",
            report.number(_milliseconds(found)),
            report.number(1000 * _milliseconds(found) / found["size"]["batch_size"]),
            report.number(_megabytes(found)),
            report.number(found["dataset_bytes"] / 1e6),
            report.number(found["peak_bytes"] / 1e6) if found["peak_bytes"] else "not told",
        ]
        for name in SWEEPS
        for value, found in _sweep(result, name)
    ]
    header = ["", "ms a step", "µs an image", "MB a step", "of it the data set", "MB at the peak"]
    return report.table(header, rows)


def draw(result: Result) -> Figure:
    """Draw the picture."""

    def curve(name: str, cost: Callable[[Result], float]) -> plots.Curve:
        sweep = _sweep(result, name)
        return plots.Curve([size for size, _ in sweep], [cost(found) for _, found in sweep])

    costs = {"ms a step": _milliseconds, "MB on the device": _megabytes}
    rows = {label: {name: curve(name, cost) for name in SWEEPS} for label, cost in costs.items()}
    return plots.panels(rows, f"A training step by size on {environment.name(result)}")


def claims(result: Result) -> list[Claim]:
    """Return the rows of the summary."""
    rows = []
    for name in SWEEPS:
        (small, first), *_, (large, last) = _sweep(result, name)
        ratio = _milliseconds(last) / _milliseconds(first)
        rows.append(
            Claim(
                f"a training step, {large:,} {name}",
                f"{report.number(_milliseconds(last))} ms",
                f"{small:,}: {report.number(_milliseconds(first))} ms",
                f"{report.number(ratio)} times as long for {report.number(large / small)} times",
            )
        )
    return rows


if __name__ == "__main__":
    report.run("cost_by_size", Options, measure, show=show, draw=draw)
