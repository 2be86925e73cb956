"""How much faster training becomes with more devices, in one process and in several.

`python benchmarks/scaling.py`, eight minutes on two cores. On a CPU each device has one core, so
that two of them are twice the hardware. One device with all cores, JAX's default on a CPU, stands
beside them. Each measurement has processes of its own.
"""

import dataclasses
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import contest, environment, plots, report
from benchmarks.report import Claim, Result

BATCH_SIZES = (128, 1024, 8192)


class Setup(NamedTuple):
    """Devices, and the processes that use them."""

    num_devices: int
    num_processes: int = 1
    num_cores: int | None = None  # of a CPU

    def __str__(self) -> str:
        """Return its name in a table."""
        devices = f"{self.num_devices} device{'s' if self.num_devices > 1 else ''}"
        cores = ""
        if self.num_cores is not None:
            cores = f", {self.num_cores} core{'s' if self.num_cores > 1 else ''}"
        processes = f" in {self.num_processes} processes" if self.num_processes > 1 else ""
        return f"{devices}{processes}{cores}"


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Measure training on one device, and on more."""

    rounds: int = 3
    """Measurements of each, in turns."""


def measure_process(setup: Setup, index: int, address: str) -> dict[int, float]:
    """Train in this process of a setup; return the seconds of a step for each batch size."""
    import jax

    if setup.num_cores is not None:
        own = sorted(os.sched_getaffinity(0))[: setup.num_cores]
        if setup.num_processes > 1:
            own = own[index :: setup.num_processes]
        os.sched_setaffinity(0, own)
        jax.config.update("jax_num_cpu_devices", setup.num_devices // setup.num_processes)
    if setup.num_processes > 1:
        jax.distributed.initialize(address, setup.num_processes, index)

    from benchmarks import ours
    from cvae_jax.config import TrainConfig
    from cvae_jax.runtime import devices

    mesh = devices.make_mesh(setup.num_devices)
    found = {}
    for batch_size in BATCH_SIZES:
        programs = ours.load(TrainConfig(batch_size=batch_size), mesh)
        state, _ = ours.train(programs, programs.init(), 1)  # compiles
        started = time.perf_counter()
        ours.train(programs, state, 2)
        found[batch_size] = (time.perf_counter() - started) / programs.steps_per_epoch
    if setup.num_processes > 1:
        jax.distributed.shutdown()
    return found


def measure_together(setup: Setup) -> dict[int, float]:
    """Measure a setup in processes of its own."""
    address = contest.free_address()
    with ProcessPoolExecutor(setup.num_processes, mp_context=get_context("spawn")) as pool:
        sent = [pool.submit(measure_process, setup, i, address) for i in range(setup.num_processes)]
        first, *_ = [one.result() for one in sent]
        return first


def choose_setups(machine: Result) -> list[Setup]:
    """Return the setups to compare: one device first, then twice as many, and so on."""
    hardware = machine["hardware"]
    if hardware["platform"] != "cpu":
        return [Setup(2**i) for i in range(hardware["num_devices"].bit_length())]
    cores = environment.num_threads()
    numbers = [2**i for i in range(1, cores.bit_length())]
    if not hasattr(os, "sched_setaffinity"):  # devices can't have cores of their own
        return [Setup(1)]
    return [
        Setup(1, num_cores=1),
        *(Setup(number, num_cores=number) for number in numbers),
        *(Setup(number, number, number) for number in numbers[:1]),
        Setup(1, num_cores=cores),
    ]


def _efficiency(result: Result, found: Result, batch_size: str) -> report.Spread:
    """Return the gain over the first setup, divided by the number of devices, round by round."""
    ratios = report.ratios(
        result["setups"][0]["seconds_per_step"][batch_size], found["seconds_per_step"][batch_size]
    )
    return report.Spread(*(ratio / found["setup"]["num_devices"] for ratio in ratios))


def _name(found: Result) -> str:
    return str(Setup(**found["setup"]))


def measure(options: Options, machine: Result) -> Result:
    """Measure all setups in turns."""
    setups = choose_setups(machine)
    seconds: list[dict[int, list[float]]] = [{n: [] for n in BATCH_SIZES} for _ in setups]
    for turn in range(1, options.rounds + 1):
        print(f"round {turn}/{options.rounds}", flush=True)
        for setup, kept in zip(setups, seconds, strict=True):
            found = measure_together(setup)
            for batch_size, value in found.items():
                kept[batch_size].append(value)
            milliseconds = ", ".join(report.number(1000 * one) for one in found.values())
            print(f"  {setup}: {milliseconds} ms a step", flush=True)
    return {
        "setups": [
            {
                "setup": setup._asdict(),
                "seconds_per_step": {str(size): values for size, values in kept.items()},
            }
            for setup, kept in zip(setups, seconds, strict=True)
        ]
    }


def show(result: Result) -> str:
    """Return the table."""
    rows = []
    for batch_size in map(str, BATCH_SIZES):
        for found in result["setups"]:
            milliseconds = [1000 * one for one in found["seconds_per_step"][batch_size]]
            per_device = "" if _is_reference(result, found) else _percent(result, found, batch_size)
            rows.append([batch_size, _name(found), str(report.spread(milliseconds)), per_device])
    return report.table(["images in a batch", "on", "ms a step", "efficiency, %"], rows)


def _is_reference(result: Result, found: Result) -> bool:
    """Return whether this is one device with all cores, which has no efficiency."""
    return found is not result["setups"][0] and found["setup"]["num_devices"] == 1


def _percent(result: Result, found: Result, batch_size: str) -> str:
    return str(report.Spread(*(100 * one for one in _efficiency(result, found, batch_size))))


def draw(result: Result) -> Figure:
    """Draw the picture."""
    seconds = {
        f"{batch_size} images, {_name(found)}": [
            1e6 * one / int(batch_size) for one in found["seconds_per_step"][batch_size]
        ]
        for batch_size in map(str, BATCH_SIZES)
        for found in result["setups"]
    }
    title = f"Training on several devices, {environment.name(result)}"
    return plots.bars(seconds, title, "µs an image: median, least to most")


def claims(result: Result) -> list[Claim]:
    """Return the rows of the summary."""
    rows = []
    first, batch_size = result["setups"][0], str(BATCH_SIZES[-1])
    for found in result["setups"][1:]:
        if _is_reference(result, found):
            continue
        ours, other = (one["seconds_per_step"][batch_size] for one in (found, first))
        gain = report.ratios(other, ours)
        rows.append(
            Claim(
                f"a training step of {BATCH_SIZES[-1]:,} images, {_name(found)}",
                report.seconds_of(ours),
                f"{_name(first)}: {report.seconds_of(other)}",
                f"{gain} times faster",
            )
        )
    return rows


if __name__ == "__main__":
    report.run("scaling", Options, measure, show=show, draw=draw)
