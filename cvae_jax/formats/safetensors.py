"""Weights, settings, evaluation and model card: what `cvae_jax.load` reads and a hub shares."""

import contextlib
import json
from pathlib import Path

from cvae_jax.api import TrainedModel
from cvae_jax.errors import ConfigError
from cvae_jax.formats.card import CARD, MARK, make_card
from cvae_jax.runtime.files import whole_file
from cvae_jax.storage import weights
from cvae_jax.storage.workdir import CHECKPOINTS, EVALUATION


def write(folder: Path, model: TrainedModel, dtype: str = "float32") -> list[str]:
    """Write model.safetensors, config.json and README.md, and evaluation.json where there is one.

    A README.md there that somebody wrote or made their own stays.

    Args:
        folder: it is made if it does not exist.
        model: the trained model.
        dtype: the type of the weights in the file; "float16" halves it.

    Raises:
        ConfigError: the folder holds a run.
        UserError: it can't be written.
    """
    if (folder / CHECKPOINTS).exists():
        raise ConfigError(f"DIR {folder} holds a run, whose settings would be lost; name another")
    evaluation = _read_evaluation(model)
    (folder / EVALUATION).unlink(missing_ok=True)  # of the weights that are replaced now
    weights.write(folder, model.run, model.params, dtype)
    files = {EVALUATION: evaluation} if evaluation else {}
    if _is_ours(folder / CARD):
        files[CARD] = make_card(model, evaluation, dtype)
    else:
        print(f"{folder / CARD} stays as it is: it is not this command's")
    for name, content in files.items():
        with whole_file(folder / name) as file:
            file.write(content)
    return [weights.WEIGHTS, weights.CONFIG, *files]


def _is_ours(card: Path) -> bool:
    try:
        return MARK in card.read_text(encoding="utf-8", errors="replace")
    except OSError:  # there is none; or else writing it names the problem
        return True


def _read_evaluation(model: TrainedModel) -> bytes | None:
    """Return the file of the model's own evaluation; None where there is none, or another's."""
    folder = model.checkpoint.parents[0 if model.step is None else 1]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        contents = (folder / EVALUATION).read_bytes()
        if model.step is None or json.loads(contents)["step"] == model.step:
            return contents
    return None
