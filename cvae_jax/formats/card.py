"""The model card of exported weights: README.md, with the front matter of the Hugging Face hub."""

import contextlib
import json

import jax

from cvae_jax import __version__
from cvae_jax.api import TrainedModel
from cvae_jax.config import PRETRAINED
from cvae_jax.evaluation.measurement import Measurement
from cvae_jax.storage.weights import is_original

CARD = "README.md"
MARK = "<!-- `cvae-jax export` replaces this file; delete this line, and yours stays. -->"

_ON_THE_HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}

_TEXT = """\
---
license: {licence}
library_name: cvae_jax
tags:
- jax
- flax
- vae
- conditional-vae
- image-generation
datasets:
- {on_the_hub}
---

{mark}

# A conditional VAE of `{dataset}`

It draws images of the class that you ask for: {height} x {width} x {channels} values in [0, 1],
{num_classes} classes. It is the model `{model}` of cvae_jax {version}, with {number:,} parameters
({dtype} in the file), {latent_dim} latent dimensions and the prior {prior}.
`config.json` has all settings.

## Use

With cvae_jax, where DIR is the folder of these files:

```python
import cvae_jax

model = cvae_jax.load("DIR")
images = model.sample({example}, num=10)  # (10, {height}, {width}, {channels}), pixel means
```
{original}
The Hugging Face hub: `hf download USER/REPO --local-dir DIR` brings it, `hf upload USER/REPO DIR`
shares it.

## How good it is

{figures}

## Licence

{licence_text}
"""
_ORIGINAL = """
The arrays have the names and shapes of the layers of its PyTorch original, `fc1` to `fc5`:

```python
from safetensors.torch import load_file

model.load_state_dict(load_file("DIR/model.safetensors"))
```
"""
_LICENCES = {
    "mit": "MIT, as cvae_jax itself.",
    "unknown": "None has been chosen; name yours here and in the first lines of this file.",
}


def make_card(model: TrainedModel, evaluation: bytes | None, dtype: str) -> bytes:
    """Return a model card in Markdown.

    Args:
        model: the model that it describes.
        evaluation: its evaluation.json; None for none.
        dtype: the type of the weights in the file.
    """
    run = model.run
    height, width, channels = run.image_shape
    licence = "mit" if PRETRAINED in model.checkpoint.parents else "unknown"
    text = _TEXT.format(
        licence=licence,
        # A JSON string is one of YAML too; a bare name might be read as a number.
        on_the_hub=json.dumps(_ON_THE_HUB.get(run.train.dataset, run.train.dataset)),
        mark=MARK,
        dataset=run.train.dataset,
        height=height,
        width=width,
        channels=channels,
        num_classes=run.num_classes,
        model=run.train.model,
        version=__version__,
        number=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        dtype=dtype,
        latent_dim=run.train.latent_dim,
        prior="N(0, I)" if run.train.prior == "normal" else "learnt for each class",
        example=min(6, run.num_classes - 1),
        original=_ORIGINAL if is_original(run) else "",
        figures=_figures(evaluation, dtype),
        licence_text=_LICENCES[licence],
    )
    return text.encode()


def _figures(evaluation: bytes | None, dtype: str) -> str:
    """Return the figures of an evaluation.json as a table with their standard errors."""
    rows = []
    with contextlib.suppress(ValueError, TypeError, KeyError):  # another version's, or none
        found = json.loads(evaluation or b"")["measurements"]
        for name, one in ((name, Measurement(**one)) for name, one in found.items()):
            unit = "" if one.unit == "share" else f" {one.unit}"
            rows.append([name, f"{one}{unit}", one.protocol])
    if not rows:
        return "It has not been measured; `cvae-jax evaluate` does that."
    head = ["measure", "value ± standard error", "protocol"], ["---"] * 3
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (*head, *rows))
    of = " They are those of the float32 weights." if dtype != "float32" else ""
    table = "\n".join(f"| {line} |" for line in lines)
    return f"{table}\n\nMeasured by `cvae-jax evaluate`; `evaluation.json` has more.{of}"
