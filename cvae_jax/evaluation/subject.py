"""The subject of an evaluation: a trained model, its data, and what several measures share."""

import dataclasses
import math
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np

from cvae_jax.config import Binarize
from cvae_jax.data.batches import (
    binarize_dataset,
    images_at_a_time,
    map_rows,
    put_on_device,
    take_batch,
)
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import UserError
from cvae_jax.evaluation.judge import Verdict, find_judge, judge_all
from cvae_jax.keys import Purpose, fold_in_each, make_key
from cvae_jax.models.family import Model, Params
from cvae_jax.models.sampling import draw_images
from cvae_jax.noise import example_noise


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A trained model and its data. What several measures share is computed once, when needed."""

    model: Model
    params: Params
    splits: Splits
    data_sha256: str
    binarize: Binarize = "none"
    """How the training images were binarised."""
    seed: int = 0
    num_importance_samples: int | None = None
    """Latents of each image for its likelihood. None: 5,000; for a large model 1,000, and 5,000 of
    a few images."""
    num_samples: int = 1000
    """Samples of each class."""
    num_test: int | None = None
    """Test images for the bound, the likelihood and the latent: a random choice, the same for
    every seed. None: all."""
    kept_in: Path | None = None
    """Folder in which results of a long measure are kept while it runs. None: they are not."""

    @cached_property
    def test(self) -> Dataset:
        """The whole test set on the device."""
        return put_on_device(self.splits.test)

    @cached_property
    def images(self) -> dict[str, Dataset]:
        """The chosen test images on the device, by their kind. They are binarised only once."""
        key = make_key(self.seed, Purpose.TEST_BINARIZE)
        kinds = {"grey levels": self.test, "binarised": jax.jit(binarize_dataset)(self.test, key)}
        if self.num_test is None or self.num_test >= len(self.test.label):
            return kinds
        chosen = self.choose_test(self.num_test)
        return {kind: Dataset(*(array[chosen] for array in all_)) for kind, all_ in kinds.items()}

    def choose_test(self, most: int) -> np.ndarray:
        """Return the indices of a few test images, (N,) int32, the same for every seed."""
        number = len(self.test.label)
        chosen = np.random.default_rng(0).choice(number, min(most, number), replace=False)
        return np.sort(chosen).astype(np.int32)

    @property
    def trained_on(self) -> str:
        """The kind of the images that the model was trained on."""
        return "grey levels" if self.binarize == "none" else "binarised"

    @cached_property
    def judge(self) -> Params:
        """The judge of the data set."""
        return find_judge(self.splits, self.data_sha256)

    @cached_property
    def verdict(self) -> Verdict:
        """The judge's verdict on each test image."""
        return self.judge_images(self.test)

    @property
    def judge_error(self) -> str:
        """The judge's own error in words, for the protocols of figures that depend on it."""
        seen = np.argmax(self.verdict.logits, axis=-1)
        wrong = np.mean(seen != np.asarray(self.splits.test.label))
        return f"the judge errs on {wrong:.2%} of real images"

    @cached_property
    def samples(self) -> Dataset:
        """Samples of the classes that were trained on, in turn, on the device."""
        classes = np.unique(self.splits.train.label)
        return self._draw(np.tile(classes, self.num_samples), Purpose.SAMPLES)

    @cached_property
    def training_samples(self) -> Dataset:
        """A sample for each label of the training set, on the device."""
        return self._draw(np.asarray(self.splits.train.label), Purpose.TRAIN_SAMPLES)

    def reconstruct(self, index: np.ndarray) -> Dataset:
        """Return some training images as the model reconstructs them, on the device.

        Args:
            index: (N,) which ones.
        """
        train = Dataset(*(np.asarray(array)[index] for array in self.splits.train))
        image_key, noise_key = jax.random.split(make_key(self.seed, Purpose.RECONSTRUCTIONS))
        given = put_on_device(train)
        if self.binarize == "dynamic":
            given = jax.jit(binarize_dataset)(given, image_key)

        @jax.jit
        def row_images(params: Params, given: Dataset, row: jax.Array) -> jax.Array:
            image, label, _ = take_batch(given, row)
            noise = example_noise(fold_in_each(noise_key, row), self.model.latent_dim)
            return jax.nn.sigmoid(self.model.autoencode(params, image, label, noise).logits)

        function = partial(row_images, self.params, given)
        at_a_time = images_at_a_time(math.prod(self.splits.image_shape))
        image = map_rows(function, len(index), at_a_time, description="reconstructing")
        return put_on_device(Dataset(_whole_levels(image), train.label))

    def judge_images(self, dataset: Dataset, judge: Params | None = None) -> Verdict:
        """Return the verdict of the data set's judge, or of another one, on images on the device.

        Args:
            dataset: images (N, D) uint8; its labels are not used.
            judge: the parameters of the other one.
        """
        return judge_all(
            self.judge if judge is None else judge,
            dataset,
            image_shape=self.splits.image_shape,
            num_classes=self.splits.num_classes,
        )

    def _draw(self, label: np.ndarray, purpose: Purpose) -> Dataset:
        """Draw a sample for each label, rounded to whole grey levels as in a file."""
        image = draw_images(
            self.params, label, self.seed, model=self.model, purpose=purpose, description="drawing"
        )
        return put_on_device(Dataset(_whole_levels(image), label))


def _whole_levels(image: np.ndarray) -> np.ndarray:
    """Return images in [0, 1] with 256 grey levels, as in a file."""
    if not np.isfinite(image).all():
        raise UserError("the model draws images that are not finite; choose an older --step")
    return np.rint(255 * image).astype(np.uint8)
