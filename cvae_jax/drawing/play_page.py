"""A page to play with a trained model: one HTML file that needs neither a server nor a network.

The files in `play/` are its sources. `model.js` knows a few kinds of layers; which of them a model
family is made of stands here.
"""

import base64
import html
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cvae_jax.config import ModelConfig
from cvae_jax.models import conv, flow
from cvae_jax.models.family import Model, Params
from cvae_jax.models.objective import elbo_terms

_SOURCES = Path(__file__).parent / "play"
_DRAWS = 32  # latents of an image, from which the spread of q along a direction is estimated
_CANDIDATES, _CLEAR = 400, 40  # images whose hands may open the page; the clearest of them
_MOST_PIXELS = 10_000_000  # of all images that are decoded at a time
_OPENING = 10  # classes in the text that opens the page
_LEAST_KL = 0.1  # nats; a direction with less changes hardly a pixel
_INK, _BLACK = 0.2, 0.75  # pixels below are paper, pixels above are black


class Facts(NamedTuple):
    """What the page knows of a model's use of its latent, and of its images."""

    direction: np.ndarray  # (V, Z) orthonormal, those that carry most first
    kl: np.ndarray  # (V,) nats per image along each of them
    usual_bound: float | None  # nats; 99 of 100 test images have a higher bound
    box: int  # pixels, the longer side of what an image shows
    width: float  # width of what the images show, as a share of theirs
    is_ink: bool  # whether they are strokes rather than shades of grey
    hands: np.ndarray  # (2, Z) latents of two images, in which all classes are clear


def measure(model: Model, params: Params, image: np.ndarray, label: np.ndarray) -> Facts:
    """Measure what a page tells of a model.

    Where the KL divergence has a column for each latent dimension, the directions are the axes.
    Else they are the principal components of the images' latents, and the divergence along one is
    that of the normal distribution with the mean and variance of draws from q(z | x, y).

    Args:
        model: the model that `params` belong to.
        params: the model's parameters.
        image: (N, H, W, C) float32 in [0, 1], N at least 2.
        label: (N,) int32.
    """
    bound, kl = _bounds(model, params, image, label)
    if kl.shape[1] == model.latent_dim:
        direction, kl = np.eye(model.latent_dim), kl.mean(axis=0)
    else:
        direction, kl = _principal_directions(model, params, image, label)
    order = np.argsort(-kl)
    order = order[kl[order] >= _LEAST_KL]
    box, width = _extent(image)
    usual_bound = float(np.quantile(bound, 0.01))
    is_ink = bool(np.mean(image[image > _INK] > _BLACK) > 0.5)
    hands = _clear_hands(model, params, image, label)
    return Facts(direction[order], kl[order], usual_bound, box, width, is_ink, hands)


def play_page(model: Model, params: Params, facts: Facts, about: str) -> str:
    """Return the page as HTML with everything in it, the weights as float16 in base64.

    Args:
        model: the model that `params` belong to.
        params: the model's parameters.
        facts: what `measure` returned.
        about: a line that says which model this is.
    """
    leaves: Any = jax.tree.leaves_with_path(params)
    arrays = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
    arrays |= {"direction": facts.direction, "hands": facts.hands}
    halves = [np.asarray(array, "<f2") for array in arrays.values()]
    starts = np.cumsum([0, *(half.size for half in halves)]).tolist()
    config = model.config
    names = config.names
    encoder, decoder = _LAYERS[config.name](config, "base/" if config.prior == "flow" else "")
    meta = {
        "image_shape": config.image_shape,
        "num_classes": config.num_classes,
        "class_names": list(names),
        "latent_dim": model.latent_dim,
        "encoder": encoder,
        "decoder": decoder,
        "bounds": [conv.MOST_MEAN, conv.MOST_LOGVAR] if config.name == "conv" else None,
        "flow": {
            "orders": [order.tolist() for order in flow.orders(model.latent_dim)],
            "bounds": [flow.MOST_LOG_SCALE, flow.MOST_SHIFT],
        }
        if config.prior == "flow"
        else None,
        "tensors": {
            name: [start, half.shape]
            for name, start, half in zip(arrays, starts, halves, strict=False)
        },
        "kl": [round(float(nats), 3) for nats in facts.kl],
        "usual_bound": None if facts.usual_bound is None else round(facts.usual_bound, 2),
        "box": facts.box,
        "width": round(facts.width, 3),
        "is_ink": facts.is_ink,
    }
    parts = {
        "about": html.escape(about),
        # A name may hold the end of the element in which this stands.
        "meta": json.dumps(meta, separators=(",", ":")).replace("<", "\\u003c"),
        "weights": base64.b64encode(b"".join(half.tobytes() for half in halves)).decode(),
    }
    for name in ("play.css", "model.js", "play.js"):
        parts[name] = (_SOURCES / name).read_text("utf-8")
    thing, things = _WORDS["".join(names).isdigit(), all(len(name) == 1 for name in names)]
    page = (_SOURCES / "play.html").read_text("utf-8")
    for name, text in (parts | {"thing": thing, "things": things}).items():
        page = page.replace(f"{{{{{name}}}}}", text)
    return page


_WORDS = {
    (True, True): ("digit", "digits"),
    (True, False): ("class", "numbers of classes"),
    (False, True): ("letter", "letters"),
    (False, False): ("class", "numbers of classes"),
}
"""What the page calls one class, and several: by whether names are numbers, and characters."""

Layers = list[list[Any]]
"""Kinds of layers with their settings, in their order; `model.js` has them all."""


def _mlp_layers(config: ModelConfig, prefix: str) -> tuple[Layers, Layers]:
    encoder: Layers = [
        ["dense_of_label", f"{prefix}encoder_hidden"],
        ["relu"],
        ["dense", f"{prefix}encoder_moments"],
    ]
    decoder: Layers = [
        ["dense_of_label", f"{prefix}decoder_hidden"],
        ["relu"],
        ["dense", f"{prefix}decoder_logits"],
        ["shape", *config.image_shape],
    ]
    return encoder, decoder


def _conv_layers(config: ModelConfig, prefix: str) -> tuple[Layers, Layers]:
    height, width, _ = config.image_shape
    rows, columns = -(-height // 4), -(-width // 4)

    def blocks(part: str, first: int, number: int) -> Layers:
        return [
            ["block", f"{prefix}{part}/ResidualBlock_{i}"] for i in range(first, first + number)
        ]

    fine, coarse = conv.ENCODER_BLOCKS
    encoder: Layers = [
        ["fit", 4 * rows, 4 * columns],
        ["to_depth"],
        ["conv", f"{prefix}encoder/Conv_0", 3],
        *blocks("encoder", 0, fine),
        ["to_depth"],
        ["conv", f"{prefix}encoder/Conv_1", 1],
        ["embed", f"{prefix}encoder/Embed_0"],
        *blocks("encoder", fine, coarse),
        ["silu"],
        ["dense", f"{prefix}encoder/Dense_0"],
    ]
    coarse, fine = conv.DECODER_BLOCKS
    decoder: Layers = [
        ["dense", f"{prefix}decoder/Dense_0"],
        ["shape", rows, columns, 2 * config.channels],
        ["embed", f"{prefix}decoder/Embed_0"],
        *blocks("decoder", 0, coarse),
        ["silu"],
        ["conv", f"{prefix}decoder/Conv_0", 1],
        ["to_space"],
        *blocks("decoder", coarse, fine),
        ["silu"],
        ["conv", f"{prefix}decoder/Conv_1", 3],
        ["to_space"],
        ["fit", height, width],
    ]
    return encoder, decoder


_LAYERS = {"mlp": _mlp_layers, "conv": _conv_layers}


def _bounds(
    model: Model, params: Params, image: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the evidence lower bounds at the centre of q, (N,), and their KL terms, (N, G)."""
    zeros = np.zeros((len(image), model.latent_dim), np.float32)
    run: Any = jax.jit(elbo_terms, static_argnames="model")
    terms = run(params, image, label, zeros, model=model)
    kl = np.asarray(terms.kl)
    return np.asarray(terms.log_likelihood) - kl.sum(axis=-1), kl


def _principal_directions(
    model: Model, params: Params, image: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal components (Z, Z) of the images' latents, and the KL along them (Z,)."""

    @jax.jit
    def draw(params: Params, image: jax.Array, label: jax.Array, noise: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: model.autoencode(params, image, label, one).latent)(noise)

    shape = (1 + _DRAWS, len(image), model.latent_dim)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    noise[0] = 0  # the centre of q, as images are encoded
    arrays = jnp.asarray(image), jnp.asarray(label), jnp.asarray(noise)
    centre, *latent = np.asarray(draw(params, *arrays), np.float64)
    components = np.linalg.eigh(np.cov(centre, rowvar=False))[1].T
    along = np.stack(latent) @ components.T
    kl = 0.5 * ((along**2).mean(axis=0) - 1 - np.log(along.var(axis=0, ddof=1)))
    return components, kl.mean(axis=0)


def _clear_hands(model: Model, params: Params, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the latents (2, Z) of two images that differ, in which up to ten classes are legible.

    Of hands with a usual amount of ink the clearest are taken, and of these the ones whose digits
    the model itself can least take for others, by its bounds.
    """
    classes = min(model.config.num_classes, _OPENING)
    many = _MOST_PIXELS // (math.prod(model.config.image_shape) * classes)
    num_candidates, num_clear = min(_CANDIDATES, max(8, many)), min(_CLEAR, max(2, many // classes))
    image, label = image[:num_candidates], label[:num_candidates]
    every = np.arange(classes, dtype=np.int32)
    run: Any = jax.jit(model.autoencode)
    zeros = np.zeros((len(image), model.latent_dim), np.float32)
    latent = np.asarray(run(params, image, label, zeros).latent)
    pairs = np.repeat(latent, classes, axis=0), np.tile(every, len(latent))
    drawn = np.asarray(jax.jit(lambda *args: jax.nn.sigmoid(model.decode(*args)))(params, *pairs))
    drawn = drawn.reshape(len(latent), classes, -1)
    usual = np.argsort(drawn.sum(axis=(1, 2)))[len(latent) // 4 : len(latent) // 2 + 1]
    unsure = (drawn * (1 - drawn)).sum(axis=(1, 2))
    clear = usual[np.argsort(unsure[usual])][:num_clear]
    # Each digit of each of these hands, read as every class.
    read = np.repeat(drawn[clear].reshape(len(clear) * classes, -1), classes, axis=0)
    bound = _bounds(model, params, read, np.tile(every, len(clear) * classes))[0]
    bound = bound.reshape(len(clear), classes, classes)
    margin = bound[:, every, every, np.newaxis] - bound  # 0 where a class is read as itself
    margin[:, every, every] = np.inf
    legible = latent[clear[np.argsort(-margin.min(axis=(1, 2)))][: num_clear // 4 + 1]]
    return np.stack([legible[0], legible[np.argmin(legible @ legible[0])]])


def _extent(image: np.ndarray) -> tuple[int, float]:
    """Return the usual longer side of what images show, in pixels, and its width as a share."""
    ink = image.max(axis=-1) > _INK  # (N, H, W)
    sides = [ink.any(axis=axis) for axis in (2, 1)]
    lengths = [side.shape[1] - side.argmax(1) - side[:, ::-1].argmax(1) for side in sides]
    longer = np.maximum(*lengths)
    share = np.quantile(lengths[1], 0.9) / image.shape[2]
    return int(np.median(longer)), float(share)
