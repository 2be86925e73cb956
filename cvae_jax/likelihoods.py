"""Measures of a model as a density: its bound, its log-likelihood, and the use of its latent."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cvae_jax import metrics
from cvae_jax.batches import images_at_a_time, in_rows, take_batch
from cvae_jax.evaluation import elbo_per_example, importance_log_likelihood, posteriors
from cvae_jax.keys import Purpose, fold_in_each, make_key
from cvae_jax.measures import Measurement, Measurements, mean
from cvae_jax.models import CVAE
from cvae_jax.objective import kl_per_dimension
from cvae_jax.types import Dataset, Params, Track

NUM_DRAWS = 10
"""Latents of each image that its evidence lower bound is averaged over."""

_FEW = 10  # effective samples, of which an estimate is still too high
_IMAGES_AT_A_TIME = 100
# Pixels decoded at a time: on a CPU few enough for its caches.
_PIXELS_CPU = 1_000_000
_PIXELS_ACCELERATOR = 100_000_000


class LatentUse(NamedTuple):
    """Which dimensions of the latent carry something."""

    measurements: Measurements
    kl: np.ndarray  # (Z,) nats per image
    is_active: np.ndarray  # (Z,) bool


def measure_elbo(name: str, params: Params, seed: int, test: Dataset, model: CVAE) -> Measurements:
    """Measure minus the evidence lower bound, in nats per image, and its two terms.

    Args:
        name: what the images are, "grey levels" or "binarised".
        params: the model's.
        seed: of the noise.
        test: the test set on the device.
        model: the module that `params` belong to.
    """
    program = jax.jit(
        partial(elbo_per_example, model=model, batch_size=_batch_size(model), num_draws=NUM_DRAWS)
    )
    terms = jax.device_get(program(params, make_key(seed, Purpose.TEST), test))
    protocol = f"{len(test.label):,} test images, {name}, {NUM_DRAWS} latents each"
    return {
        f"{what}, {name}": mean(values, "nats per image", protocol)
        for what, values in (
            ("negative ELBO", terms.kl - terms.log_likelihood),
            ("reconstruction", -terms.log_likelihood),
            ("KL", terms.kl),
        )
    }


def measure_log_likelihood(
    params: Params, seed: int, test: Dataset, model: CVAE, num_samples: int, track: Track
) -> Measurements:
    """Measure -log p(x|y) by importance sampling, in nats per image (Burda et al. 2016, eq. 8).

    Args:
        params: the model's.
        seed: of the latents.
        test: binarised images on the device.
        model: the module that `params` belong to.
        num_samples: K.
        track: goes through the batches.
    """
    num_images, num_pixels = len(test.label), math.prod(model.config.image_shape)
    on_cpu = jax.default_backend() == "cpu"
    at_a_time = max(1, (_PIXELS_CPU if on_cpu else _PIXELS_ACCELERATOR) // num_pixels)
    batch_size = min(_IMAGES_AT_A_TIME, num_images, at_a_time)

    @jax.jit
    def program(params: Params, key: jax.Array, test: Dataset, row: jax.Array) -> jax.Array:
        batch = take_batch(test, row)
        estimate = importance_log_likelihood(
            params,
            fold_in_each(key, row),
            batch.image,
            batch.label,
            model=model,
            num_samples=num_samples,
            chunk_size=min(num_samples, max(1, at_a_time // batch_size)),
        )
        return jnp.stack(estimate)

    rows, key = in_rows(jnp.arange(num_images), batch_size), make_key(seed, Purpose.LIKELIHOOD)
    parts = [np.asarray(program(params, key, test, rows[i])) for i in track(range(len(rows)))]
    log_likelihood, effective = np.concatenate(parts, axis=1)[:, :num_images]
    protocol = (
        f"importance sampling, K = {num_samples:,}, {num_images:,} test images, binarised once; "
        f"effective sample size {np.median(effective):,.0f} in the median, below {_FEW} for "
        f"{(effective < _FEW).mean():.1%}"
    )
    return {"-log p(x|y), binarised": mean(-log_likelihood, "nats per image", protocol)}


def measure_latent_use(name: str, params: Params, test: Dataset, model: CVAE) -> LatentUse:
    """Measure what each latent dimension carries.

    Args:
        name: as in `measure_elbo`.
        params: the model's.
        test: the test set on the device.
        model: the module that `params` belong to.
    """
    program = jax.jit(partial(posteriors, model=model, batch_size=_batch_size(model)))
    means, logvar = program(params, test)
    kl = np.asarray(kl_per_dimension(means, logvar).mean(axis=0))
    is_active = np.asarray(means).var(axis=0) > metrics.ACTIVE_VARIANCE
    protocol = (
        f"of {len(kl)}; the posterior mean varies by more than {metrics.ACTIVE_VARIANCE} over "
        f"{len(test.label):,} test images, {name}"
    )
    measurement = Measurement(float(is_active.sum()), None, "dimensions", protocol)
    return LatentUse({"active units": measurement}, kl, is_active)


def say_latent_use(latent: LatentUse) -> str:
    """Say in words whether the posterior has collapsed."""
    num_dims, num_active = len(latent.kl), int(latent.is_active.sum())
    idle = latent.kl[~latent.is_active].sum()
    if num_active == num_dims:
        return f"No posterior collapse: all {num_dims} latent dimensions are active."
    if num_active == 0:
        return (
            "Complete posterior collapse: no latent dimension is active, every sample of a class "
            "looks the same."
        )
    return (
        f"Partial posterior collapse: {num_dims - num_active} of {num_dims} latent dimensions are "
        f"not used; together they carry {idle:.2f} of {latent.kl.sum():.2f} nats."
    )


def _batch_size(model: CVAE) -> int:
    return images_at_a_time(math.prod(model.config.image_shape))
