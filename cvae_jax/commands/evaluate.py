"""`cvae-jax evaluate`: measure a trained model; print a table, write JSON and a picture."""

import contextlib
import dataclasses
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cvae_jax import __version__
from cvae_jax.commands.cli import many_imports
from cvae_jax.config import LARGEST_SEED, DataOptions, ModelOptions, require, require_count
from cvae_jax.errors import DataError, UserError
from cvae_jax.evaluation.measures import MEASURES

if TYPE_CHECKING:
    from cvae_jax.data.dataset import Splits

_PICTURE = "evaluation.png"
_MOST_LATENTS = 10_000_000  # of one image
_FEWEST_SAMPLES, _MOST_SAMPLES = 10, 1_000_000  # of a class; a standard error needs some
_FEWEST_IMAGES = 4  # one and its three nearest neighbours

_QUICK_WITHOUT = ("classification",)  # it trains a judge, which takes minutes
_QUICK_IMAGES, _QUICK_LATENTS = 1000, 500
_OF_CHOSEN_IMAGES = ("elbo", "likelihood", "latent")  # the others are of the whole test set


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Measure how good a trained model is, on the whole test set."""

    quick: bool = False
    """Take a quick look, a minute for the original: leave out the classification score, and measure
    the bound, the likelihood (at most 500 latents) and the latent on 1,000 test images, chosen
    once at random."""
    measures: tuple[str, ...] = tuple(MEASURES)
    """What to measure."""
    out: Path | None = None
    """Folder for evaluation.json and evaluation.png. Default: the workdir, or with
    --pretrained the current folder."""
    num_importance_samples: int | None = None
    """Latents drawn for each test image to estimate its log-likelihood. Default: 5000; for a large
    model 1000, and 5000 for 1,000 images, chosen once at random."""
    num_samples: int = 1000
    """Images drawn of each class."""
    seed: int = 0
    """Seed of all that is drawn; the same seed gives the same figures."""
    data: DataOptions = dataclasses.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ", ".join(MEASURES)
        require(bool(self.measures), "measures", "", f"some of {names}")
        for name in self.measures:
            require(name in MEASURES, "measures", name, f"some of {names}")
        if self.num_importance_samples is not None:
            most = _MOST_LATENTS
            require_count("num-importance-samples", self.num_importance_samples, most=most)
        require_count("num-samples", self.num_samples, _FEWEST_SAMPLES, _MOST_SAMPLES)
        require_count("seed", self.seed, least=0, most=LARGEST_SEED)


def run(options: EvaluateOptions) -> None:
    """Measure a trained model; print a table, write JSON and a picture."""
    started = time.perf_counter()
    with many_imports():
        import jax

        from cvae_jax import api
        from cvae_jax.data.sources import load_again
        from cvae_jax.evaluation import density, kept, page, report
        from cvae_jax.evaluation.subject import Subject
        from cvae_jax.runtime import devices
        from cvae_jax.runtime.files import user_path, whole_file
        from cvae_jax.storage import workdir

    folder = user_path("workdir", options.results)
    if workdir.read_config(user_path("workdir", options.model_folder)).train.model == "conv":
        devices.split_cpu(density.IMAGES_AT_A_TIME)
    if options.out:
        folder = user_path("out", options.out)
    if options.quick:
        options = _shorten(options)
    print(f"devices: {devices.describe(None)}", flush=True)
    model = api.load(options.model_folder, options.step)
    print(f"model: {model.checkpoint}", flush=True)
    config = model.run.train
    splits = load_again(model.run, options.data)
    _require_enough(splits, config.dataset)
    subject = Subject(
        model=model.model,
        params=model.params,
        splits=splits,
        data_sha256=model.run.data_sha256,
        binarize=config.binarize,
        seed=options.seed,
        num_importance_samples=options.num_importance_samples,
        num_samples=options.num_samples,
        num_test=_QUICK_IMAGES if options.quick else None,
        kept_in=folder,
    )
    with contextlib.ExitStack() as stack:
        try:
            names = workdir.EVALUATION, _PICTURE
            files = [stack.enter_context(whole_file(folder / name)) for name in names]
        except UserError as error:
            raise UserError(f"{error}; choose another folder with --out") from error
        # Accelerators round products of float32 matrices further unless all digits are asked
        # for.
        with jax.default_matmul_precision("highest"):
            finding = report.measure(subject, options.measures)
            shown = page.collect(subject, finding, model.history)
        seconds = time.perf_counter() - started
        which = model.checkpoint.name if model.step is None else f"step {model.step}"
        title = f"{config.dataset}, {subject.trained_on}, {which}"
        settings = {
            "version": __version__,
            "step": model.step,
            "seed": options.seed,
            "quick": options.quick,
            "num_importance_samples": options.num_importance_samples,
            "num_samples": options.num_samples,
            "train": dataclasses.asdict(config),
            "data_sha256": model.run.data_sha256,
            "devices": devices.describe(None),
            "python": platform.python_version(),
            "jax": version("jax"),
            "seconds": round(seconds, 1),
        }
        files[0].write(report.to_json(settings, finding))
        page.draw_page(shown, title).savefig(files[1], format="png")
    shutil.rmtree(folder / kept.FOLDER, ignore_errors=True)
    print(f"\n{report.table(finding)}\n")
    if options.quick:
        left_out = ", ".join(name for name in MEASURES if name not in options.measures)
        of_some = ", ".join(name for name in options.measures if name in _OF_CHOSEN_IMAGES)
        print(f"A quick look, without {left_out or 'nothing'}; leave out --quick for all of it.")
        if of_some:
            number = min(_QUICK_IMAGES, len(splits.test.label))
            print(
                f"Measured on {number:,} random test images, the likelihood with K = "
                f"{options.num_importance_samples}: {of_some}."
            )
    print(f"wrote {folder / workdir.EVALUATION} and {folder / _PICTURE}, after {seconds:.0f} s")


def _shorten(options: EvaluateOptions) -> EvaluateOptions:
    """Return the options of --quick; measures that were chosen by name are kept."""
    measures = options.measures
    if measures == tuple(MEASURES):
        measures = tuple(name for name in MEASURES if name not in _QUICK_WITHOUT)
    return dataclasses.replace(
        options,
        measures=measures,
        num_importance_samples=min(
            _QUICK_LATENTS, options.num_importance_samples or _QUICK_LATENTS
        ),
    )


def _require_enough(splits: "Splits", name: str) -> None:
    """Raise `DataError` unless these are enough images to be measured."""
    for split, dataset in (("training", splits.train), ("test", splits.test)):
        if len(dataset.label) < _FEWEST_IMAGES:
            raise DataError(
                f"{name} has {len(dataset.label)} {split} images; an evaluation needs "
                f"{_FEWEST_IMAGES}"
            )
