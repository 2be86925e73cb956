import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cvae_jax.config import ModelConfig
from cvae_jax.keys import Purpose, fold_in_each, make_key
from cvae_jax.models import build_model
from cvae_jax.models.objective import bernoulli_log_likelihood, kl_to_standard_normal
from cvae_jax.noise import batch_noise, example_noise


def test_kl_agrees_with_monte_carlo_and_vanishes_at_the_prior() -> None:
    mean, logvar = jnp.array([[0.5, -1.0, 2.0]]), jnp.array([[0.3, -0.7, -2.0]])
    latent = mean + jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.key(0), (200_000, 3))
    log_q = jax.scipy.stats.norm.logpdf(latent, mean, jnp.exp(0.5 * logvar))
    difference = np.asarray(log_q - jax.scipy.stats.norm.logpdf(latent))
    error = difference.std(axis=0) / len(difference) ** 0.5
    kl = np.asarray(kl_to_standard_normal(mean, logvar)[0])
    assert (np.abs(difference.mean(axis=0) - kl) < 4 * error).all()
    assert not kl_to_standard_normal(jnp.zeros((1, 3)), jnp.zeros((1, 3))).any()


def test_log_likelihood_agrees_with_numpy_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    logits, image = rng.normal(scale=5, size=(6, 4, 3, 1)), rng.uniform(size=(6, 12))
    p = 1 / (1 + np.exp(-logits.reshape(6, 12)))
    expected = (image * np.log(p) + (1 - image) * np.log1p(-p)).sum(axis=1)
    actual = bernoulli_log_likelihood(
        jnp.asarray(logits, jnp.float32), jnp.asarray(image, jnp.float32)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("pixel", [0.0, 0.5, 1.0])
def test_log_likelihood_and_its_gradient_are_finite_at_any_logit(pixel: float) -> None:
    logits = jnp.array([[-1e30], [-110.0], [-17.0], [0.0], [17.0], [110.0], [1e30]])

    def log_likelihood(logits: jax.Array) -> jax.Array:
        return bernoulli_log_likelihood(logits, jnp.full((7, 1), pixel)).sum()

    value, gradient = jax.value_and_grad(log_likelihood)(logits)
    assert np.isfinite(value)
    expected = pixel - 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -700, 700)))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_gradients_agree_with_finite_differences() -> None:
    mean, logvar = jnp.array([[0.5, -1.0]]), jnp.array([[0.3, -0.7]])
    logits, image = jnp.array([[-3.0, 0.0, 2.0]]), jnp.array([[0.0, 0.3, 1.0]])
    check_grads(kl_to_standard_normal, (mean, logvar), 2, ["fwd", "rev"], rtol=1e-2)
    check_grads(bernoulli_log_likelihood, (logits, image), 2, ["fwd", "rev"], rtol=1e-2)


def test_weights_start_uniform_within_one_over_root_fan_in() -> None:
    params = build_model(ModelConfig((28, 28, 1), 10)).init(jax.random.key(1))
    assert jax.tree.map(jnp.shape, params) == {
        "encoder_hidden": {"kernel": (794, 600), "bias": (600,)},
        "encoder_moments": {"kernel": (600, 100), "bias": (100,)},
        "decoder_hidden": {"kernel": (60, 600), "bias": (600,)},
        "decoder_logits": {"kernel": (600, 784), "bias": (784,)},
    }
    for layer in params.values():
        bound = layer["kernel"].shape[0] ** -0.5
        for values in layer.values():
            assert jnp.abs(values).max() <= bound
            # A uniform variable on ±b has the standard deviation b/√3; the smallest array,
            # 100 biases, has a relative standard error of 4.5 %.
            assert jnp.std(values) == pytest.approx(bound / 3**0.5, rel=0.2)


def test_purposes_and_seeds_have_keys_of_their_own() -> None:
    keys = [make_key(seed, purpose) for seed in (0, 1, 2**32 - 1) for purpose in Purpose]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == 3 * len(Purpose)


def test_noise_is_normal_and_that_of_an_example_its_own() -> None:
    noise = np.asarray(batch_noise(jax.random.key(0), 2000, 50))
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, abs=0.01)
    keys = fold_in_each(jax.random.key(0), jnp.arange(5))
    np.testing.assert_array_equal(example_noise(keys, 4)[3], example_noise(keys[3:4], 4)[0])
