"""Evaluation from the command to the files: a table, evaluation.json and evaluation.png."""

import dataclasses
import io
import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cvae_jax import __version__, data, devices, judges, overview, trained, workdir
from cvae_jax.batches import binarize_dataset, put_on_device
from cvae_jax.files import require_writable, user_path, whole_file
from cvae_jax.judge import NUM_FEATURES
from cvae_jax.keys import Purpose, make_key
from cvae_jax.likelihoods import (
    LatentUse,
    measure_elbo,
    measure_latent_use,
    measure_log_likelihood,
    say_latent_use,
)
from cvae_jax.measures import Measurements, by_class, table, table_of_classes
from cvae_jax.metrics import NUM_NEIGHBORS
from cvae_jax.models import decode, encode
from cvae_jax.options import EvaluateOptions
from cvae_jax.sample_quality import (
    Conditional,
    OfJudge,
    draw,
    measure_classification,
    measure_conditional,
    measure_distribution,
    measure_judge,
)
from cvae_jax.types import DataError, Dataset, Splits, UserError

_JSON, _PICTURE = "evaluation.json", "evaluation.png"
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Assessment(NamedTuple):
    """All that was found."""

    measurements: Measurements
    of_judge: OfJudge
    conditional: Conditional
    latent: LatentUse


def assess(options: EvaluateOptions) -> None:
    """Measure a trained model on the whole test set; print a table, write JSON and a picture.

    Raises:
        ConfigError: there is no such model, step or data set, or nothing can be written there.
        DataError: the data can't be read, or the model was trained on other data.
        CheckpointError: there is no checkpoint, or it can't be read.
        UserError: a file can't be written, or a figure is not finite.
    """
    started = time.perf_counter()
    folder = user_path("workdir", options.workdir)
    run = workdir.read_config(folder)
    for name in (_JSON, _PICTURE):
        require_writable("workdir", folder / name, folder=False)
    print(f"devices: {devices.describe()}", flush=True)
    splits = data.load_dataset(run.train.dataset, source=options.source, data_dir=options.data_dir)
    _require_data(splits, run.data_sha256, run.train.dataset)
    devices.require_memory(
        options.num_samples * run.num_classes * (math.prod(run.image_shape) + 4 * NUM_FEATURES),
        f"--num-samples {options.num_samples}",
    )
    # On accelerators, products of float32 matrices are rounded further unless this asks for all.
    with jax.default_matmul_precision("highest"):
        model = trained.load(folder, run, options.step)
        print(f"model: {model.checkpoint}", flush=True)
        test = put_on_device(splits.test)
        # One draw for all: the bound and the likelihood are of the same images.
        key = make_key(options.seed, Purpose.TEST_BINARIZE)
        binary = jax.jit(binarize_dataset)(key, test)
        kinds = {"grey levels": test, "binarised": binary}
        trained_on = "grey levels" if run.train.binarize == "none" else "binarised"
        found = _measure(model, splits, kinds, trained_on, options)
        findings = _choose_findings(model, kinds[trained_on], found)
    title = f"{run.train.dataset}, {trained_on}, step {model.checkpoint.name}"
    picture = io.BytesIO()
    overview.draw_findings(findings, title).savefig(picture, format="png")
    print(table(found.measurements))
    print(table_of_classes(found.conditional.confusion, found.of_judge.confusion))
    print(say_latent_use(found.latent))
    seconds = time.perf_counter() - started
    for name, content in (
        (_JSON, _to_json(model, options, found, seconds)),
        (_PICTURE, picture.getvalue()),
    ):
        with whole_file(folder / name) as file:
            file.write(content)
    print(f"wrote {folder / _JSON} and {folder / _PICTURE}, after {seconds:.0f} s")


def _require_data(splits: Splits, fingerprint: str, name: str) -> None:
    if splits.fingerprint() != fingerprint:
        raise DataError(
            f"the model was trained on other data than this {name}; name them with --source and "
            "--data-dir as in training"
        )
    fewest = NUM_NEIGHBORS + 1
    for split, dataset in (("training", splits.train), ("test", splits.test)):
        if len(dataset.label) < fewest:
            raise DataError(
                f"{name} has {len(dataset.label)} {split} images; an evaluation needs {fewest}"
            )


def _measure(
    model: trained.Trained,
    splits: Splits,
    kinds: dict[str, Dataset],
    trained_on: str,
    options: EvaluateOptions,
) -> Assessment:
    """Measure one thing after the other, and show which."""
    test, binary = kinds["grey levels"], kinds["binarised"]
    seed, params, module = options.seed, model.params, model.model
    judge = judges.find_judge(splits, model.run.data_sha256, _bar("training the judge", "step"))
    with tqdm(total=6, unit="measure") as bar:

        def measure(
            name: str,
            function: Callable[_Arguments, _Result],
            *args: _Arguments.args,
            **kwargs: _Arguments.kwargs,
        ) -> _Result:
            bar.set_description(f"measuring {name}")
            result = function(*args, **kwargs)
            bar.update()
            return result

        grey = measure("the bound", measure_elbo, "grey levels", params, seed, test, module)
        black = measure("the bound", measure_elbo, "binarised", params, seed, binary, module)
        _require_finite(grey | black, model)
        latent = measure(
            "the latent", measure_latent_use, trained_on, params, kinds[trained_on], module
        )
        of_judge = measure("the judge", measure_judge, judge, test, module)
        conditional = measure(
            "samples",
            measure_conditional,
            params,
            seed,
            judge,
            of_judge,
            module,
            options.num_samples,
        )
        label = np.asarray(splits.train.label)
        samples = draw(params, seed, Purpose.TRAIN_SAMPLES, label, module)
        distribution = measure(
            "distances", measure_distribution, seed, judge, of_judge, samples, splits, module
        )
    likelihood = measure_log_likelihood(
        params,
        seed,
        binary,
        module,
        options.num_importance_samples,
        _bar("log-likelihood", "batch"),
    )
    _require_finite(likelihood, model)
    bar_of_judge = _bar("training a judge on samples", "step")
    classification = measure_classification(seed, of_judge, samples, test, module, bar_of_judge)
    measurements = grey | black | likelihood | of_judge.measurements | conditional.measurements
    measurements |= classification | distribution | latent.measurements
    return Assessment(measurements, of_judge, conditional, latent)


def _require_finite(measurements: Measurements, model: trained.Trained) -> None:
    for name, one in measurements.items():
        if not math.isfinite(one.value):
            raise UserError(
                f"{name} of {model.checkpoint} is {one.value}; choose an older --step, or train "
                "with a smaller --learning-rate in another --workdir"
            )


def _bar(name: str, unit: str) -> Any:
    return partial(tqdm, desc=name, unit=unit)


def _to_json(
    model: trained.Trained, options: EvaluateOptions, found: Assessment, seconds: float
) -> bytes:
    drawn, real = (by_class(one.confusion) for one in (found.conditional, found.of_judge))
    content = {
        "version": __version__,
        "step": int(model.checkpoint.name),
        "seed": options.seed,
        "num_importance_samples": options.num_importance_samples,
        "num_samples": options.num_samples,
        "train": dataclasses.asdict(model.run.train),
        "data_sha256": model.run.data_sha256,
        "devices": devices.describe(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "seconds": round(seconds, 1),
        "measurements": {name: one._asdict() for name, one in found.measurements.items()},
        "accuracy_by_class": [one and one._asdict() for one in drawn],
        "judge_accuracy_by_class": [one and one._asdict() for one in real],
        "confusion": found.conditional.confusion.tolist(),
        "kl_by_dimension": found.latent.kl.tolist(),
        "is_active": found.latent.is_active.tolist(),
        "latent_use": say_latent_use(found.latent),
    }
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _choose_findings(
    model: trained.Trained, images: Dataset, found: Assessment
) -> overview.Findings:
    """Choose what the picture shows: some test images, and the first samples of each class."""
    run = model.run
    shown, chosen = overview.choose_images(np.asarray(images.label))
    image, label = (jnp.asarray(array)[chosen] for array in images)
    original = image.astype(jnp.float32).reshape(-1, *run.image_shape) / 255
    mean, _ = encode(model.model, model.params, original, label)
    reconstruction = jax.nn.sigmoid(decode(model.model, model.params, mean, label))
    # The classes come in turn.
    samples = np.asarray(found.conditional.samples.image)
    in_classes = samples.reshape(-1, run.num_classes, *run.image_shape).swapaxes(0, 1)
    rows = in_classes[shown, : overview.COLUMNS].reshape(-1, *run.image_shape)
    return overview.Findings(
        original=np.asarray(original),
        reconstruction=np.asarray(reconstruction),
        samples=rows.astype(np.float32) / 255,
        confusion=found.conditional.confusion,
        kl=found.latent.kl,
        is_active=found.latent.is_active,
        history=model.history,
        measurements=found.measurements,
    )
