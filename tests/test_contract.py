"""What every model promises, whichever family it is of; see `cvae_jax.models.family`."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.config import ModelConfig
from cvae_jax.models import FAMILIES, build_model
from cvae_jax.models.family import Autoencoding, Model, Params
from cvae_jax.models.objective import elbo_terms, log_weights
from tests.helpers import random_params, toy_log_likelihood, toy_model

SHAPE, NUM_CLASSES, BATCH = (8, 8, 1), 3, 6


def small(name: str, prior: str = "normal") -> Model:
    sizes = {"hidden_dim": 16, "channels": 4, "latent_dim": 4}
    config = ModelConfig(SHAPE, NUM_CLASSES, name=name, prior=prior, **sizes)  # type: ignore[arg-type]
    return build_model(config)


MODELS: dict[str, Callable[[], Model]] = {
    "toy": toy_model,
    **{name: lambda name=name: small(name) for name in FAMILIES},  # type: ignore[misc]
    "mlp with flow": lambda: small("mlp", "flow"),
    "conv with flow": lambda: small("conv", "flow"),
}


class Case:
    """A model with weights that are not those of the start, and a batch for it."""

    def __init__(self, name: str) -> None:
        self.model = MODELS[name]()
        shape = self.model.config.image_shape
        self.params = random_params(self.model)
        keys = jax.random.split(jax.random.key(0))
        self.image = jax.random.bernoulli(keys[0], 0.4, (BATCH, *shape)).astype(jnp.float32)
        self.label = jnp.arange(BATCH) % NUM_CLASSES
        self.noise = jax.random.normal(keys[1], (BATCH, self.model.latent_dim))
        self.autoencode = jax.jit(self.model.autoencode)

    def found(self) -> Autoencoding:
        return self.autoencode(self.params, self.image, self.label, self.noise)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_shapes_and_types(case: Case) -> None:
    found, size = case.found(), case.model.latent_dim
    shapes = [leaf.shape for leaf in found]
    assert shapes[:3] == [(BATCH, size), (BATCH, *case.model.config.image_shape), (BATCH,)]
    assert found.kl.ndim == 2
    assert len(found.kl) == BATCH
    assert {leaf.dtype for leaf in jax.tree.leaves((found, case.params))} == {np.dtype("float32")}


def test_decoding_the_latent_gives_the_logits(case: Case) -> None:
    found = case.found()
    logits = case.model.decode(case.params, found.latent, case.label)
    np.testing.assert_allclose(logits, found.logits, rtol=1e-4, atol=1e-4)


def test_importance_weights_without_an_image_have_mean_one(case: Case) -> None:
    # The mean over q of p(z | y) / q(z | x, y) is the integral of p(z | y): 1.
    noise = jax.random.normal(jax.random.key(5), (20_000, case.model.latent_dim))
    image, label = (jnp.repeat(x[:1], len(noise), axis=0) for x in (case.image, case.label))
    ratio = np.exp(-np.asarray(case.autoencode(case.params, image, label, noise).log_ratio))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5


def test_kl_is_the_mean_of_the_log_ratio(case: Case) -> None:
    noise = jax.random.normal(jax.random.key(6), (20_000, case.model.latent_dim))
    image, label = (jnp.repeat(x[:1], len(noise), axis=0) for x in (case.image, case.label))
    found = case.autoencode(case.params, image, label, noise)
    difference = np.asarray(found.log_ratio - found.kl.sum(axis=-1))
    assert abs(difference.mean()) < 5 * difference.std() / len(difference) ** 0.5 + 1e-5


def test_an_example_does_not_depend_on_its_neighbours(case: Case) -> None:
    together = case.found()
    alone = case.autoencode(case.params, case.image[2:3], case.label[2:3], case.noise[2:3])
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one[2], other[0], rtol=1e-4, atol=1e-5)


def test_flat_and_shaped_images_are_the_same(case: Case) -> None:
    flat = case.autoencode(case.params, case.image.reshape(BATCH, -1), case.label, case.noise)
    np.testing.assert_array_equal(flat.latent, case.found().latent)


def test_the_label_matters_to_encoder_and_decoder(case: Case) -> None:
    other = (case.label + 1) % NUM_CLASSES
    found = case.found()
    encoded = case.autoencode(case.params, case.image, other, case.noise)
    decoded = case.model.decode(case.params, found.latent, other)
    assert (jnp.abs(encoded.latent - found.latent).max(axis=-1) > 1e-6).all()
    assert (jnp.abs(decoded - found.logits).max(axis=(1, 2, 3)) > 1e-6).all()


def test_weights_repeat_what_one_latent_gives(case: Case) -> None:
    noise = jnp.stack([case.noise, case.noise[::-1]])
    weights = jax.jit(partial(log_weights, model=case.model))(
        case.params, case.image, case.label, noise
    )
    terms = jax.jit(partial(elbo_terms, model=case.model))(
        case.params, case.image, case.label, noise[1]
    )
    ratio = case.autoencode(case.params, case.image, case.label, noise[1]).log_ratio
    np.testing.assert_allclose(weights[1], terms.log_likelihood - ratio, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_inside_is_float32_outside_and_nearly_the_same(name: str) -> None:
    case = Case(name)
    fast = build_model(case.model.config, "bfloat16")

    def bound(model: Model, params: Params) -> jax.Array:
        terms = elbo_terms(params, case.image, case.label, case.noise, model=model)
        return (terms.log_likelihood - terms.kl.sum(axis=-1)).sum()

    value, gradient = jax.jit(jax.value_and_grad(lambda p: bound(case.model, p)))(case.params)
    found, fast_gradient = jax.jit(jax.value_and_grad(lambda p: bound(fast, p)))(case.params)
    assert found != value
    assert float(found) == pytest.approx(float(value), rel=2e-2)
    for one, other in zip(*map(jax.tree.leaves, (fast_gradient, gradient)), strict=True):
        assert one.dtype == jnp.float32
        assert jnp.linalg.norm(one - other) < 0.05 * jnp.linalg.norm(other) + 1e-3


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 12, 3)])
def test_any_image_shape_and_number_of_classes(name: str, shape: tuple[int, int, int]) -> None:
    config = ModelConfig(shape, 47, name=name, hidden_dim=8, latent_dim=3)  # type: ignore[arg-type]
    model = build_model(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image, noise = jnp.ones((2, *shape)), jnp.zeros((2, model.latent_dim))
    found = jax.eval_shape(model.autoencode, params, image, jnp.array([0, 46]), noise)
    assert found.logits.shape == (2, *shape)


def test_the_toys_weights_average_to_its_exact_likelihood() -> None:
    case = Case("toy")
    noise = jax.random.normal(jax.random.key(7), (50_000, BATCH, 1))
    weights = np.exp(log_weights(case.params, case.image, case.label, noise, model=case.model))
    exact = toy_log_likelihood(
        case.params, np.asarray(case.image).reshape(BATCH, -1), np.asarray(case.label)
    )
    error = weights.std(axis=0) / len(weights) ** 0.5
    assert (np.abs(weights.mean(axis=0) - np.exp(exact)) < 5 * error).all()
