"""`cvae-jax train-judge`: train the classifier that judges samples, and write it to a file."""

import dataclasses
from pathlib import Path

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import DataOptions, TrainConfig, require


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """Train the classifier that judges samples, and write it to a file."""

    out: Path = Path("judge.npz")
    """File to write (NPZ)."""
    dataset: str = TrainConfig.dataset
    """Data set, as in training."""
    data: DataOptions = dataclasses.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        require(self.out.suffix.lower() == ".npz", "out", self.out, "a name that ends in .npz")


def run(options: JudgeOptions) -> None:
    """Train the judge of a data set, write it, and print how well it does on the test set."""
    with many_imports():
        import numpy as np

        from cvae_jax.data.batches import put_on_device
        from cvae_jax.data.sources import load
        from cvae_jax.evaluation import judge
        from cvae_jax.runtime import devices
        from cvae_jax.runtime.files import user_path, whole_file

    out, data = user_path("out", options.out), options.data
    print(f"devices: {devices.describe()}", flush=True)
    splits = load(options.dataset, data)
    with whole_file(out) as file:  # opened first, because the training takes minutes
        params = judge.make_judge(splits)
        file.write(judge.encode(params, splits.fingerprint()))
    verdict = judge.judge_all(
        params,
        put_on_device(splits.test),
        image_shape=splits.image_shape,
        num_classes=splits.num_classes,
    )
    num_wrong = int((np.argmax(verdict.logits, axis=-1) != splits.test.label).sum())
    number = len(splits.test.label)
    print(f"wrote {out}; {num_wrong} of {number:,} test images are judged wrongly")
