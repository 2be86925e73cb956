from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cvae_jax import objective
from cvae_jax.models import CVAE
from cvae_jax.types import ElboTerms, Params, Splits


def test_kl_of_the_standard_normal_is_zero() -> None:
    kl = objective.kl_to_standard_normal(jnp.zeros((3, 7)), jnp.zeros((3, 7)))
    np.testing.assert_array_equal(kl, np.zeros(3))


def test_kl_agrees_with_monte_carlo() -> None:
    mean = jnp.array([[0.5, -1.0, 2.0]])
    logvar = jnp.array([[0.3, -0.7, -2.0]])
    latent = objective.sample_latent(
        jax.random.key(0), jnp.tile(mean, (200_000, 1)), jnp.tile(logvar, (200_000, 1))
    )
    log_q = jax.scipy.stats.norm.logpdf(latent, mean, jnp.exp(0.5 * logvar)).sum(-1)
    log_p = jax.scipy.stats.norm.logpdf(latent).sum(-1)
    difference = np.asarray(log_q - log_p)
    standard_error = difference.std() / len(difference) ** 0.5
    kl = float(objective.kl_to_standard_normal(mean, logvar)[0])
    assert abs(difference.mean() - kl) < 4 * standard_error


def test_log_likelihood_agrees_with_numpy_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    logits, image = rng.normal(scale=5, size=(6, 4, 3, 1)), rng.uniform(size=(6, 12))
    p = 1 / (1 + np.exp(-logits.reshape(6, 12)))
    expected = (image * np.log(p) + (1 - image) * np.log1p(-p)).sum(axis=1)
    actual = objective.bernoulli_log_likelihood(
        jnp.asarray(logits, jnp.float32), jnp.asarray(image, jnp.float32)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("logit", [-1e30, -110.0, -17.0, 0.0, 17.0, 110.0, 1e30])
@pytest.mark.parametrize("pixel", [0.0, 0.5, 1.0])
def test_log_likelihood_and_its_gradient_are_finite_at_any_logit(
    logit: float, pixel: float
) -> None:
    def log_likelihood(logits: jax.Array) -> jax.Array:
        return objective.bernoulli_log_likelihood(logits, jnp.full((1, 1), pixel))[0]

    value, gradient = jax.value_and_grad(log_likelihood)(jnp.full((1, 1), logit))
    assert np.isfinite(value)
    assert gradient[0, 0] == pytest.approx(pixel - 1 / (1 + np.exp(-np.clip(logit, -700, 700))))


def test_gradients_agree_with_finite_differences() -> None:
    mean, logvar = jnp.array([[0.5, -1.0]]), jnp.array([[0.3, -0.7]])
    logits, image = jnp.array([[-3.0, 0.0, 2.0]]), jnp.array([[0.0, 0.3, 1.0]])
    key = jax.random.key(0)
    for function, arguments in (
        (objective.kl_to_standard_normal, (mean, logvar)),
        (objective.bernoulli_log_likelihood, (logits, image)),
        (partial(objective.sample_latent, key), (mean, logvar)),
    ):
        check_grads(function, arguments, order=2, modes=["fwd", "rev"], rtol=1e-2)


def test_terms_of_an_example_do_not_depend_on_its_neighbours(
    model: CVAE, params: Params, small_splits: Splits
) -> None:
    image = jnp.asarray(small_splits.train.image[:8], jnp.float32) / 255
    label = jnp.asarray(small_splits.train.label[:8])
    keys = jax.random.split(jax.random.key(0), 8)
    together = objective.elbo_terms(model, params, keys, image, label)
    for i in (0, 5):
        alone = objective.elbo_terms(
            model, params, keys[i : i + 1], image[i : i + 1], label[i : i + 1]
        )
        np.testing.assert_allclose(together.log_likelihood[i], alone.log_likelihood[0], rtol=1e-5)
        np.testing.assert_allclose(together.kl[i], alone.kl[0], rtol=1e-5)


def test_one_noise_for_each_key() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    latent = objective.sample_latent(keys, jnp.zeros((3, 4)), jnp.zeros((3, 4)))
    for key, row in zip(keys, latent, strict=True):
        np.testing.assert_array_equal(row, jax.random.normal(key, (4,)))


def test_masked_examples_are_left_out_of_every_sum() -> None:
    terms = ElboTerms(log_likelihood=jnp.array([-1.0, -2.0, -4.0]), kl=jnp.array([8.0, 16.0, 32.0]))
    sums = objective.loss_sums(terms, jnp.array([1.0, 0.0, 1.0]))
    assert [float(value) for value in sums] == [5.0, 40.0, 2.0]
