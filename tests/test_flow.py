import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cvae_jax
from cvae_jax.data.dataset import Splits
from cvae_jax.models import build_model
from cvae_jax.models.family import Params
from cvae_jax.models.flow import Flow

FLOW = Flow(6, 3)


def forward(params: Params, latent: jax.Array, label: jax.Array) -> Any:
    return FLOW.apply({"params": params}, latent, label)


def invert(params: Params, latent: jax.Array, label: jax.Array) -> Any:
    return FLOW.apply({"params": params}, latent, label, method="invert")


@pytest.fixture(scope="module")
def started() -> Params:
    label = jnp.zeros((1,), jnp.int32)
    return FLOW.init(jax.random.key(0), jnp.zeros((1, 6)), label)["params"]


@pytest.fixture(scope="module")
def moved(started: Params) -> Params:
    """Return weights with which the flow is far from the identity."""
    leaves, structure = jax.tree.flatten(started)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    changed = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, changed)


def test_it_starts_as_the_identity_and_its_inverse_undoes_it(
    started: Params, moved: Params
) -> None:
    latent, label = jax.random.normal(jax.random.key(2), (100, 6)), jnp.arange(100) % 3
    # A fixed permutation of the dimensions is all that the untrained flow does.
    np.testing.assert_allclose(np.sort(forward(started, latent, label)), np.sort(latent), atol=1e-5)
    for params in (started, moved):
        again, _ = invert(params, forward(params, latent, label), label)
        np.testing.assert_allclose(again, latent, atol=1e-3)
    assert np.abs(np.sort(forward(moved, latent, label)) - np.sort(latent)).mean() > 0.1


def test_the_trained_one_in_the_package_is_undone_on_every_test_image(mnist: Splits) -> None:
    trained = cvae_jax.load("best")
    size = trained.model.latent_dim
    flow = Flow(size, 10)
    base = build_model(dataclasses.replace(trained.run.model, prior="normal"))

    @jax.jit
    def differ(image: jax.Array, label: jax.Array, noise: jax.Array) -> jax.Array:
        """Return how far posterior samples are from where they come back to, (N, Z)."""
        latent = base.autoencode(trained.params["base"], image, label, noise).latent
        params = {"params": trained.params["flow"]}
        before, _ = flow.apply(params, latent, label, method="invert")
        return jnp.asarray(flow.apply(params, before, label)) - latent

    image, label = (np.asarray(array) for array in mnist.test)
    noise = np.random.default_rng(0).standard_normal((len(label), size), np.float32)
    for rows in np.split(np.arange(len(label)), 10):
        difference = differ(image[rows] / np.float32(255), label[rows], noise[rows])
        assert jnp.abs(difference).max() < 1e-3


def test_its_log_determinant_is_that_of_the_jacobian(moved: Params) -> None:
    latent, label = jax.random.normal(jax.random.key(3), (6,)), jnp.array([2])

    def inverse(latent: jax.Array) -> jax.Array:
        result: jax.Array = invert(moved, latent[jnp.newaxis], label)[0][0]
        return result

    _, log_det = invert(moved, latent[jnp.newaxis], label)
    _, expected = np.linalg.slogdet(jax.jacobian(inverse)(latent))
    assert log_det[0] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_each_class_has_a_prior_of_its_own(moved: Params) -> None:
    latent = jnp.zeros((3, 6))
    found = np.asarray(forward(moved, latent, jnp.arange(3)))
    assert len(np.unique(found.round(4), axis=0)) == 3
