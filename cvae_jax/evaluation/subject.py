"""The subject of an evaluation: a trained model, its data, and what several measures share."""

import dataclasses
from functools import cached_property

import jax
import numpy as np

from cvae_jax.config import Binarize
from cvae_jax.data.batches import binarize_dataset, put_on_device
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import UserError
from cvae_jax.evaluation.judge import Verdict, find_judge, judge_all
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models.family import Model, Params
from cvae_jax.models.sampling import draw_images


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
    num_importance_samples: int = 5000
    num_samples: int = 1000
    """Samples of each class."""
    num_test: int | None = None
    """Test images for the bound, the likelihood and the latent: a random choice, the same for
    every seed. None: all."""

    @cached_property
    def test(self) -> Dataset:
        """The whole test set on the device."""
        return put_on_device(self.splits.test)

    @cached_property
    def images(self) -> dict[str, Dataset]:
        """The chosen test images on the device, by their kind. They are binarised only once."""
        key = make_key(self.seed, Purpose.TEST_BINARIZE)
        kinds = {"grey levels": self.test, "binarised": jax.jit(binarize_dataset)(self.test, key)}
        number = len(self.test.label)
        if self.num_test is None or self.num_test >= number:
            return kinds
        chosen = np.sort(np.random.default_rng(0).choice(number, self.num_test, replace=False))
        return {kind: Dataset(*(array[chosen] for array in all_)) for kind, all_ in kinds.items()}

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
        if not np.isfinite(image).all():
            raise UserError("the model draws images that are not finite; choose an older --step")
        return put_on_device(Dataset(np.rint(255 * image).astype(np.uint8), label))
