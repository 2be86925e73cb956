"""What each ingredient of the preset `best` buys, from trainings of equal minutes.

`python benchmarks/ablation.py`, an hour on two cores. Nothing here has seen a test image: each
variant learns from 50,000 training images and is measured on the other 10,000. The judge and the
latents are those of `cvae-jax evaluate`.
"""

import dataclasses
import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import environment, plots, report
from benchmarks.report import Result
from cvae_jax.config import PRESETS, RunConfig, TrainConfig, require
from cvae_jax.data.dataset import Dataset, Splits

NUM_VALIDATION = 10_000
_DIVERGED = 1000  # nats; to guess every pixel costs 784 log 2 = 543
_VARIANTS: dict[str, dict[str, Any]] = {
    "best": {},
    "without the learnt prior": {"prior": "normal"},
    "without convolutions": {"model": "mlp"},
    "without the cosine schedule": {"schedule": "constant"},
    "without the average of the weights": {"ema": 0.0},
    "without warm-up": {"warmup_steps": 0},
    "without clipping": {"clip_norm": None},
    "without skipping": {"skip_norm": None},
    "without convolutions and the learnt prior": {"model": "mlp", "prior": "normal"},
    "with Nesterov's steps": {"nesterov": 0.95},
    "on grey levels": {"binarize": "none"},
}
_MEASURES = {  # column: measurement of an evaluation
    "-ELBO": "negative ELBO, binarised",
    "-log p(x given y)": "-log p(x|y), binarised",
    "accuracy": "conditional accuracy",
    "Fréchet": "Fréchet distance of samples",
    "precision": "precision of samples",
    "recall": "recall of samples",
}


@dataclasses.dataclass(frozen=True)
class Options(report.Options):
    """Train the preset `best` without one ingredient at a time, for equal minutes."""

    rounds: int = 1
    """Trainings of each variant, each with another seed."""
    minutes: float = 5.0
    """Minutes of training of each variant; whole epochs, at least one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.minutes < math.inf, "minutes", self.minutes, "a number above 0")


def split_validation(splits: Splits) -> Splits:
    """Return the training set alone, shuffled once; its end takes the place of the test set."""
    order = np.random.default_rng(0).permutation(len(splits.train.label))
    train, validation = (
        Dataset(*(np.asarray(array)[part] for array in splits.train))
        for part in (order[:-NUM_VALIDATION], order[-NUM_VALIDATION:])
    )
    return splits._replace(train=train, test=validation)


def measure(options: Options, machine: Result) -> Result:
    """Train each variant and measure it on the validation set."""
    from cvae_jax.runtime import devices

    devices.split_cpu(PRESETS["best"]["batch_size"])
    from cvae_jax.data.sources import load_dataset

    whole = load_dataset(source="bundled")
    splits = split_validation(whole)
    found: dict[str, list[dict[str, float]]] = {}
    for name, settings in _VARIANTS.items():
        settings = PRESETS["best"] | settings
        del settings["epochs"]
        print(f"\n{name}", flush=True)
        found[name] = []
        for seed in range(options.rounds):
            one = _train(settings | {"seed": seed}, splits, whole.fingerprint(), options.minutes)
            print({key: round(value, 4) for key, value in one.items()}, flush=True)
            found[name].append(one)
    return {"minutes": options.minutes, "variants": found}


def _train(
    settings: dict[str, Any], splits: Splits, data_sha256: str, minutes: float
) -> dict[str, float]:
    import jax

    from benchmarks import ours
    from cvae_jax.evaluation import report as evaluation
    from cvae_jax.evaluation.subject import Subject
    from cvae_jax.models import build_model
    from cvae_jax.runtime import devices
    from cvae_jax.training.loop import build_programs

    def build(epochs: int) -> Any:
        config = TrainConfig(**settings, decay_epochs=epochs)
        run = RunConfig(config, splits.image_shape, splits.num_classes, data_sha256)
        return run, build_programs(run, splits, devices.make_mesh(num_devices))

    # Plain products of matrices gain nothing from a split of the CPU.
    num_devices = 1 if settings["model"] == "mlp" else None
    _, programs = build(1)
    pieces = (piece for epoch in itertools.count() for piece in programs.pieces(epoch, 0))
    state, _ = programs.train(programs.init(), next(pieces))  # compiles
    jax.block_until_ready(state)
    started, rows = time.perf_counter(), 0
    for piece in pieces:
        state, _ = programs.train(state, piece)
        rows += len(piece[1])
        jax.block_until_ready(state)
        if time.perf_counter() - started > 10:
            break
    epoch_seconds = (time.perf_counter() - started) / rows * programs.steps_per_epoch
    epochs = max(1, round(60 * minutes / epoch_seconds))
    run, programs = build(epochs)
    started = time.perf_counter()
    state, _ = ours.train(programs, programs.init(), epochs)
    seconds = time.perf_counter() - started
    params = jax.device_put(jax.device_get(state.tested))
    subject = Subject(
        build_model(run.model),
        params,
        splits,
        data_sha256,
        binarize=run.train.binarize,
        num_importance_samples=200,
        num_test=1000,
    )
    with jax.default_matmul_precision("highest"):
        names = ["elbo", "likelihood", "accuracy", "distances", "reconstructions"]
        measurements = evaluation.measure(subject, names).measurements
    values = {column: measurements[name].value for column, name in _MEASURES.items()}
    floor = measurements["Fréchet distance of training images, the floor"].value
    return values | {
        "Fréchet": values["Fréchet"] / floor,
        "Fréchet of reconstructions": measurements["Fréchet distance of reconstructions"].value
        / floor,
        "epochs": epochs,
        "minutes": seconds / 60,
    }


def _diverged(seeds: Sequence[Mapping[str, float]]) -> bool:
    return not all(seed["-ELBO"] < _DIVERGED for seed in seeds)  # NaN has diverged too


def show(result: Result) -> str:
    """Return the table, of means over the seeds."""
    rows = []
    for name, seeds in result["variants"].items():
        one = {key: statistics.mean(seed[key] for seed in seeds) for key in seeds[0]}
        spent = f"{one['minutes']:.1f} ({one['epochs']:.0f})"
        if _diverged(seeds):
            rows.append([name, spent, "diverged", *[""] * 6])
            continue
        row = [
            name,
            spent,
            f"{one['-ELBO']:.2f}",
            f"{one['-log p(x given y)']:.2f}",
            f"{one['accuracy']:.2%}",
            f"{one['Fréchet']:.1f}",
            f"{one['Fréchet of reconstructions']:.1f}",
            f"{one['precision']:.1%}",
            f"{one['recall']:.1%}",
        ]
        rows.append(row)
    header = ["", "minutes (epochs)", "-ELBO", "-log p(x given y), K = 200", "accuracy"]
    header += ["Fréchet, times its floor", "of reconstructions", "precision", "recall"]
    return report.table(header, rows)


def draw(result: Result) -> Figure:
    """Draw the picture, without the variants that diverged."""
    nats = {
        name: [seed["-log p(x given y)"] for seed in seeds]
        for name, seeds in result["variants"].items()
        if not _diverged(seeds)
    }
    title = f"The preset best without one ingredient, {environment.name(result)}"
    return plots.bars(nats, title, f"-log p(x given y), nats, {result['minutes']:g} minutes each")


if __name__ == "__main__":
    report.run("ablation", Options, measure, show=show, draw=draw)
