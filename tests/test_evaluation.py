from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from cvae_jax import evaluation, objective, training
from cvae_jax.batches import epoch_order, in_rows, put_on_device
from cvae_jax.config import ModelConfig
from cvae_jax.keys import fold_in_each
from cvae_jax.models import CVAE, decode, encode
from cvae_jax.types import Dataset, Params, Splits


@pytest.mark.parametrize("batch_size", [1, 7, 100, 300, 1000])
def test_padded_chunked_and_whole_evaluation_agree(
    batch_size: int, model: CVAE, params: Params, small_splits: Splits
) -> None:
    test_set, key = put_on_device(small_splits.test), jax.random.key(3)
    program = jax.jit(partial(evaluation.evaluate, model=model))
    sums = program(params, key, test_set, in_rows(jnp.arange(300), batch_size))
    assert float(sums.num_examples.sum()) == 300

    keys = jax.vmap(partial(jax.random.fold_in, key))(np.arange(300))
    image = jnp.asarray(test_set.image, jnp.float32) / 255
    terms = objective.elbo_terms(model, params, keys, image, jnp.asarray(test_set.label))
    np.testing.assert_allclose(sums.reconstruction.sum(), -terms.log_likelihood.sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.kl.sum(), terms.kl.sum(), rtol=1e-5)


# The likelihood by importance sampling.


@pytest.fixture(scope="module")
def tiny() -> CVAE:
    """Give a model with a latent of one dimension, whose likelihood an integral gives exactly."""
    return CVAE(ModelConfig((28, 28, 1), 10, hidden_dim=16, latent_dim=1))


@pytest.fixture(scope="module")
def tiny_params(tiny: CVAE, train_set: Dataset) -> Params:
    """Give its parameters, trained a little, so that the posterior is not the prior."""
    optimizer = optax.adam(1e-2)
    state = training.init_state(jax.random.key(3), tiny, optimizer)
    step = jax.jit(partial(training.train_steps, model=tiny, optimizer=optimizer))
    order = epoch_order(jax.random.key(0), 0, num_examples=1000, batch_size=50)
    for epoch in range(5):
        state, _ = step(state, jax.random.key(epoch), train_set, order)
    # A wide q: where it is narrower than the true posterior, no number of samples is enough.
    moments = state.params["encoder_moments"]
    wide = moments | {"bias": moments["bias"] + jnp.array([0.0, 4.0])}
    return state.params | {"encoder_moments": wide}


@pytest.fixture(scope="module")
def binary(train_set: Dataset) -> tuple[jax.Array, jax.Array]:
    """Give eight binarised digits and their labels."""
    grey = jnp.asarray(train_set.image[:8], jnp.float32) / 255
    image = jax.random.bernoulli(jax.random.key(4), grey).astype(jnp.float32)
    return image, jnp.asarray(train_set.label[:8])


def estimate(
    model: CVAE,
    params: Params,
    binary: tuple[jax.Array, jax.Array],
    num_samples: int,
    chunk_size: int = 50,
) -> evaluation.Likelihood:
    key = fold_in_each(jax.random.key(0), jnp.arange(len(binary[1])))
    program = jax.jit(
        partial(
            evaluation.importance_log_likelihood,
            model=model,
            num_samples=num_samples,
            chunk_size=chunk_size,
        )
    )
    return program(params, key, *binary)


@pytest.fixture(scope="module")
def exact(tiny: CVAE, tiny_params: Params, binary: tuple[jax.Array, jax.Array]) -> np.ndarray:
    """Give the integral of p(x|z,y) p(z) over a fine grid of z, in double precision."""
    image, label = binary
    grid = np.linspace(-8, 8, 20_001)
    values = []
    for one, y in zip(image, label, strict=True):
        latent = jnp.asarray(grid, jnp.float32)[:, jnp.newaxis]
        logits = decode(tiny, tiny_params, latent, jnp.full(len(grid), y))
        log_joint = np.asarray(
            objective.bernoulli_log_likelihood(logits, jnp.tile(one, (len(grid), 1))), np.float64
        ) - 0.5 * (grid**2 + np.log(2 * np.pi))
        values.append(scipy.special.logsumexp(log_joint) + np.log(grid[1] - grid[0]))
    return np.array(values)


def test_many_importance_samples_give_the_exact_likelihood(
    tiny: CVAE, tiny_params: Params, binary: tuple[jax.Array, jax.Array], exact: np.ndarray
) -> None:
    found = estimate(tiny, tiny_params, binary, num_samples=20_000, chunk_size=1000)
    # The relative deviation of a mean of weights, by their effective number.
    error = 1 / np.sqrt(np.asarray(found.effective_samples))
    assert error.max() < 0.2
    assert (np.abs(np.asarray(found.log_likelihood) - exact) < 4 * error + 2e-3).all()


def test_the_bound_rises_with_the_number_of_samples_to_the_exact_likelihood(
    tiny: CVAE, tiny_params: Params, binary: tuple[jax.Array, jax.Array], exact: np.ndarray
) -> None:
    image, label = (jnp.tile(x, (200,) + (1,) * (x.ndim - 1)) for x in binary)
    means = [
        float(estimate(tiny, tiny_params, (image, label), number).log_likelihood.mean())
        for number in (1, 5, 50)
    ]
    assert means[0] < means[1] < means[2] < exact.mean() + 0.02


def test_one_sample_is_the_evidence_lower_bound_under_the_same_noise(
    model: CVAE, params: Params, binary: tuple[jax.Array, jax.Array]
) -> None:
    image, label = binary
    key = fold_in_each(jax.random.key(0), jnp.arange(8))
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(one, 0), (5,)) for one in key])
    mean, logvar = encode(model, params, image, label)
    latent = mean + jnp.exp(logvar / 2) * noise
    log_q = jax.scipy.stats.norm.logpdf(latent, mean, jnp.exp(logvar / 2)).sum(axis=-1)
    log_p = jax.scipy.stats.norm.logpdf(latent).sum(axis=-1)
    logits = decode(model, params, latent, label)
    expected = objective.bernoulli_log_likelihood(logits, image) + log_p - log_q
    found = estimate(model, params, binary, num_samples=1, chunk_size=1)
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-5)
    np.testing.assert_allclose(found.effective_samples, 1, rtol=1e-5)


def test_its_expectation_is_the_evidence_lower_bound(
    model: CVAE, params: Params, binary: tuple[jax.Array, jax.Array]
) -> None:
    noise = jax.random.normal(jax.random.key(1), (20_000, 8, 5))
    values = jax.jit(lambda noise: objective.log_weights(model, params, noise, *binary))(noise)
    keys = jax.random.split(jax.random.key(2), 5000)
    draw = jax.jit(jax.vmap(lambda key: objective.elbo_terms(model, params, key, *binary)))
    terms = draw(keys)
    elbo = (terms.log_likelihood - terms.kl).mean(axis=0)
    error = values.std(axis=0) / np.sqrt(20_000) + terms.log_likelihood.std(axis=0) / np.sqrt(5000)
    assert (jnp.abs(values.mean(axis=0) - elbo) < 5 * error).all()


@pytest.mark.parametrize("chunk_size", [1, 7, 30, 64])
def test_chunks_and_neighbours_change_nothing_but_rounding(
    chunk_size: int, model: CVAE, params: Params, binary: tuple[jax.Array, jax.Array]
) -> None:
    whole = estimate(model, params, binary, num_samples=30, chunk_size=30)
    image, label = binary
    in_chunks = estimate(model, params, (image[:3], label[:3]), 30, chunk_size)
    np.testing.assert_allclose(in_chunks.log_likelihood, whole.log_likelihood[:3], rtol=1e-5)
    np.testing.assert_allclose(in_chunks.effective_samples, whole.effective_samples[:3], rtol=1e-3)
