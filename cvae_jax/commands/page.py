"""`cvae-jax page`: write a page to play with a trained model, one HTML file."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import DataOptions, ModelOptions, require
from cvae_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from cvae_jax.api import TrainedModel

# Images that are encoded to find out how the model uses its latent: fewer where they are large.
_FEWEST_IMAGES, _MOST_IMAGES, _MOST_PIXELS = 100, 1000, 10_000_000


@dataclasses.dataclass(frozen=True)
class PageOptions(ModelOptions):
    """Write a web page to play with a trained model: one file, no server, no network."""

    out: Path | None = None
    """Page to write (HTML). Default: play.html in the workdir, or with --pretrained in the current
    folder."""
    data: DataOptions = dataclasses.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None:
            ends = self.out.suffix.lower() in (".html", ".htm")
            require(ends, "out", self.out, "a name that ends in .html")


def run(options: PageOptions) -> None:
    """Write a page with a model's weights, and what some test images tell of them."""
    with many_imports():
        import jax

        from cvae_jax import api
        from cvae_jax.drawing import play_page
        from cvae_jax.runtime import devices
        from cvae_jax.runtime.files import user_path, whole_file

    out = options.out and user_path("out", options.out)
    devices.describe()  # reports in one line where JAX can't start
    model = api.load(options.model_folder, options.step)
    out = out or user_path("workdir", options.results) / "play.html"
    print(f"model: {model.checkpoint}", flush=True)
    with whole_file(out) as file:
        image, label, are_tests = _examples(model, options.data)
        print(f"encoding {len(label):,} images to find the directions that matter", flush=True)
        facts = play_page.measure(model.model, model.params, image, label)
        if not are_tests:
            facts = facts._replace(usual_bound=None)
        number = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        train = model.run.train
        about = f"{train.dataset}, model {train.model}, {number:,} parameters"
        page = play_page.play_page(model.model, model.params, facts, about).encode()
        file.write(page)
    print(f"wrote {out}, {len(page) / 1e6:.1f} MB; open it in a browser")


def _examples(model: "TrainedModel", data: DataOptions) -> tuple["np.ndarray", "np.ndarray", bool]:
    """Return images (N, H, W, C) in [0, 1], labels (N,), and whether they are the test set's.

    Where there is no test set, unless its place was given, they are samples.
    """
    import numpy as np

    from cvae_jax.data.sources import load_again
    from cvae_jax.models.sampling import draw_images

    pixels = math.prod(model.run.image_shape)
    number = max(_FEWEST_IMAGES, min(_MOST_IMAGES, _MOST_PIXELS // pixels))
    try:
        test = load_again(model.run, data).test
        chosen = np.linspace(0, len(test.label), number, endpoint=False).astype(int)
        image, label = (np.asarray(array)[chosen] for array in test)
        return image / np.float32(255), label, True
    except UserError as error:
        if data != DataOptions():
            raise
        print(f"the model's own samples stand in for test images: {error}", flush=True)
        label = np.arange(number, dtype=np.int32) % model.run.num_classes
        return draw_images(model.params, label, 0, model=model.model), label, False
