"""Measures of a model as a density: its bound, its log-likelihood, and the use of its latent."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cvae_jax import __version__
from cvae_jax.data.batches import images_at_a_time, map_rows, take_batch
from cvae_jax.data.dataset import Dataset
from cvae_jax.evaluation.kept import Kept
from cvae_jax.evaluation.likelihood import Likelihood, importance_log_likelihood
from cvae_jax.evaluation.measurement import Finding, Measurement, mean
from cvae_jax.evaluation.subject import Subject
from cvae_jax.keys import Purpose, fold_in_each, make_key
from cvae_jax.models import count_flops
from cvae_jax.models.family import Model, Params
from cvae_jax.models.objective import ElboTerms, elbo_terms
from cvae_jax.noise import example_noise

NUM_DRAWS = 10
"""Latents of each image over which its evidence lower bound is averaged."""

ACTIVE_VARIANCE = 0.01
"""A latent dimension whose centre varies by more over the data is active (Burda et al. 2016)."""

# Latents of each image, unless the user says how many. Those of a model with more floating-point
# operations than _LARGE would take hours: it gets fewer, and as many for a few images only.
_LATENTS, _LATENTS_OF_LARGE, _LARGE, _FEW_IMAGES = 5000, 1000, 1e7, 1000
_FEW = 10  # effective samples; an estimate from fewer is biased
IMAGES_AT_A_TIME = 100  # whose likelihood is estimated
# Pixels decoded at a time: on a CPU few enough for its caches.
_PIXELS_CPU, _PIXELS_ACCELERATOR = 1_000_000, 100_000_000


def measure_elbo(subject: Subject) -> Finding:
    """Measure minus the evidence lower bound and its two terms, of both kinds of images."""
    key, found = make_key(subject.seed, Purpose.TEST), {}
    for kind, images in subject.images.items():
        row_terms = partial(_row_terms, subject.params, images, key, model=subject.model)
        terms = map_rows(
            row_terms, len(images.label), _batch_size(subject.model), description="ELBO"
        )
        kl = terms.kl.sum(axis=-1)
        protocol = f"{len(kl):,} test images, {kind}, {NUM_DRAWS} latents each"
        for what, values in (
            ("negative ELBO", kl - terms.log_likelihood),
            ("reconstruction", -terms.log_likelihood),
            ("KL", kl),
        ):
            found[f"{what}, {kind}"] = mean(values, "nats per image", protocol)
    return Finding(found, {})


@partial(jax.jit, static_argnames="model")
def _row_terms(
    params: Params, images: Dataset, key: jax.Array, row: jax.Array, *, model: Model
) -> ElboTerms:
    batch = take_batch(images, row)

    def one_draw(draw: jax.Array) -> ElboTerms:
        noise = example_noise(fold_in_each(jax.random.fold_in(key, draw), row), model.latent_dim)
        return elbo_terms(params, batch.image, batch.label, noise, model=model)

    draws = jax.lax.map(one_draw, jnp.arange(NUM_DRAWS))
    return jax.tree.map(lambda values: values.mean(axis=0), draws)


def measure_likelihood(subject: Subject) -> Finding:
    """Measure -log p(x|y) of binarised images by importance sampling (Burda et al. 2016, eq. 8)."""
    images, given = subject.images["binarised"], subject.num_importance_samples
    everything = np.arange(len(images.label), dtype=np.int32)
    is_large = given is None and count_flops(subject.model.config) > _LARGE
    plan = [("", everything, given or (_LATENTS_OF_LARGE if is_large else _LATENTS))]
    if is_large:
        few = subject.choose_test(_FEW_IMAGES) if subject.num_test is None else everything
        plan.append((f", K = {_LATENTS:,}", few, _LATENTS))
    found = {}
    for suffix, index, num_samples in plan:
        log_likelihood, effective = _estimate(subject, images, index, num_samples)
        protocol = (
            f"importance sampling, K = {num_samples:,}, {len(index):,} test images, binarised "
            f"once; effective sample size {np.median(effective):,.0f} in the median, below {_FEW} "
            f"for {(effective < _FEW).mean():.1%}"
        )
        name = f"-log p(x|y), binarised{suffix}"
        found[name] = mean(-log_likelihood, "nats per image", protocol)
    return Finding(found, {})


def _estimate(subject: Subject, images: Dataset, index: np.ndarray, num_samples: int) -> Any:
    """Return the `Likelihood` of some images, (N,), from K latents each, in NumPy arrays."""
    num_pixels = math.prod(subject.model.config.image_shape)
    most_pixels = _PIXELS_CPU if jax.default_backend() == "cpu" else _PIXELS_ACCELERATOR
    at_a_time = max(1, most_pixels // num_pixels)
    batch_size = min(IMAGES_AT_A_TIME, len(index), at_a_time)
    key = make_key(subject.seed, Purpose.LIKELIHOOD)

    @jax.jit
    def row_likelihood(
        params: Params, images: Dataset, index: jax.Array, key: jax.Array, row: jax.Array
    ) -> Likelihood:
        row = index[row]
        image, label, _ = take_batch(images, row)
        return importance_log_likelihood(
            params,
            image,
            label,
            fold_in_each(key, row),
            model=subject.model,
            num_samples=num_samples,
            chunk_size=min(num_samples, max(1, at_a_time // batch_size)),
        )

    done, keep = None, None
    if subject.kept_in is not None:
        model = subject.model.config, subject.params
        kept = Kept(subject.kept_in, __version__, model, images, index, subject.seed, num_samples)
        done, keep = kept.load(Likelihood), kept.save
    return map_rows(
        partial(row_likelihood, subject.params, images, index, key),
        len(index),
        batch_size,
        description=f"log-likelihood, K = {num_samples:,}",
        done=done,
        keep=keep,
    )


def measure_latent(subject: Subject) -> Finding:
    """Measure the use of each latent dimension: whether it is active, and its KL in nats."""
    images, key = subject.images[subject.trained_on], make_key(subject.seed, Purpose.TEST)
    row_latent = partial(_row_latent, subject.params, images, key, model=subject.model)
    batch_size = _batch_size(subject.model)
    centre, kl = map_rows(row_latent, len(images.label), batch_size, description="latent")
    kl, is_active = kl.mean(axis=0), centre.var(axis=0) > ACTIVE_VARIANCE
    protocol = (
        f"of {len(is_active)}; the centre of q(z|x,y) varies by more than {ACTIVE_VARIANCE} over "
        f"{len(centre):,} test images, {subject.trained_on}"
    )
    active = Measurement(float(is_active.sum()), None, "dimensions", protocol)
    text = describe_latent(kl, is_active)
    details = {"kl_by_dimension": kl.tolist(), "is_active": is_active.tolist(), "latent_use": text}
    return Finding({"active units": active}, details, text)


@partial(jax.jit, static_argnames="model")
def _row_latent(
    params: Params, images: Dataset, key: jax.Array, row: jax.Array, *, model: Model
) -> tuple[jax.Array, jax.Array]:
    """Return the centre of q, (B, Z), and the KL of one draw, (B, G), of each image."""
    image, label, _ = take_batch(images, row)
    noise = example_noise(fold_in_each(key, row), model.latent_dim)
    centre = model.autoencode(params, image, label, jnp.zeros_like(noise)).latent
    return centre, model.autoencode(params, image, label, noise).kl


def describe_latent(kl: np.ndarray, is_active: np.ndarray) -> str:
    """Return in words whether the posterior has collapsed, from KL (G,) and activity (Z,)."""
    num_dims, num_idle = len(is_active), int((~is_active).sum())
    if num_idle == 0:
        return f"No posterior collapse: all {num_dims} latent dimensions are active."
    if num_idle == num_dims:
        return (
            "Complete posterior collapse: no latent dimension is active, every sample of a class "
            "looks the same."
        )
    text = f"Partial posterior collapse: {num_idle} of {num_dims} latent dimensions are not used"
    if len(kl) == num_dims:  # else the groups of KL are not single dimensions
        text += f"; together they carry {kl[~is_active].sum():.2f} of {kl.sum():.2f} nats"
    return f"{text}."


def _batch_size(model: Model) -> int:
    return images_at_a_time(math.prod(model.config.image_shape))
