"""The bound, the likelihood and the latent, also of a toy whose log p(x|y) is known exactly."""

import dataclasses
from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from cvae_jax.config import ModelConfig
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.evaluation import density, kept
from cvae_jax.evaluation.density import (
    NUM_DRAWS,
    describe_latent,
    measure_elbo,
    measure_latent,
    measure_likelihood,
)
from cvae_jax.evaluation.likelihood import Likelihood, importance_log_likelihood
from cvae_jax.evaluation.subject import Subject
from cvae_jax.keys import Purpose, fold_in_each, make_key
from cvae_jax.models import build_model
from cvae_jax.models.family import Model, Params
from cvae_jax.models.objective import elbo_terms, log_weights
from cvae_jax.noise import example_noise
from tests.helpers import TOY, toy_log_likelihood, toy_model

# Every black and white image there is, under every label.
IMAGES = np.array([*product([0, 1], repeat=6)] * 3, np.float32)
LABELS = np.repeat(np.arange(3, dtype=np.int32), 64)
TOY_MODEL = toy_model()
TOY_PARAMS = TOY_MODEL.init(jax.random.key(5))
EXACT = toy_log_likelihood(TOY_PARAMS, IMAGES, LABELS)


def estimate(num_samples: int, chunk_size: int, number: int = len(LABELS)) -> Likelihood:
    program = partial(
        importance_log_likelihood, model=TOY_MODEL, num_samples=num_samples, chunk_size=chunk_size
    )
    keys = fold_in_each(jax.random.key(0), jnp.arange(number))
    return jax.jit(program)(TOY_PARAMS, IMAGES[:number], LABELS[:number], keys)


@pytest.fixture
def toy() -> Subject:
    """Return the toy model with all its images as a test set, black and white already."""
    image = (255 * IMAGES).astype(np.uint8).reshape(-1, *TOY.image_shape)
    splits = Splits(Dataset(image, LABELS), Dataset(image, LABELS), TOY.num_classes)
    return Subject(TOY_MODEL, TOY_PARAMS, splits, "", num_importance_samples=300)


def subject(model: Model, params: Params, splits: Splits) -> Subject:
    return Subject(model, params, splits, "", seed=3, num_importance_samples=30)


def test_the_exact_likelihood_is_a_distribution() -> None:
    np.testing.assert_allclose(np.exp(EXACT).reshape(3, 64).sum(axis=1), 1, rtol=1e-6)


def test_many_importance_samples_give_the_exact_likelihood() -> None:
    found = estimate(20_000, 1000)
    # The relative deviation of a mean of weights, by their effective number.
    error = 1 / np.sqrt(np.asarray(found.effective_samples))
    assert error.max() < 0.25
    assert (np.abs(np.asarray(found.log_likelihood) - EXACT) < 5 * error + 1e-3).all()


def test_the_bound_rises_with_the_number_of_samples_to_the_exact_likelihood() -> None:
    means = [float(estimate(number, number).log_likelihood.mean()) for number in (1, 5, 100)]
    assert means[0] < means[1] < means[2] < EXACT.mean() + 0.02


def test_one_sample_is_the_weight_of_one_latent() -> None:
    keys = fold_in_each(jax.random.key(0), jnp.arange(192))
    first = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    noise = example_noise(first, 1)
    image, label = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    expected = log_weights(TOY_PARAMS, image, label, noise[jnp.newaxis], model=TOY_MODEL)[0]
    found = estimate(1, 1)
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-5)
    np.testing.assert_allclose(found.effective_samples, 1, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_chunks_and_neighbours_change_nothing_but_rounding(chunk_size: int) -> None:
    whole, in_chunks = estimate(30, 30), estimate(30, chunk_size, number=50)
    np.testing.assert_allclose(in_chunks.log_likelihood, whole.log_likelihood[:50], rtol=1e-5)
    np.testing.assert_allclose(in_chunks.effective_samples, whole.effective_samples[:50], rtol=1e-3)


def test_the_measured_likelihood_is_the_exact_one_and_lies_above_the_bound(toy: Subject) -> None:
    (measured,) = measure_likelihood(toy).measurements.values()
    error = EXACT.std(ddof=1) / np.sqrt(len(EXACT))
    assert measured.value == pytest.approx(-EXACT.mean(), abs=0.02)
    assert measured.standard_error == pytest.approx(error, rel=0.02)
    assert "K = 300, 192 test images" in measured.protocol
    assert measured.value < measure_elbo(toy).measurements["negative ELBO, binarised"].value


def test_a_stopped_estimate_goes_on_where_it_was(
    toy: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density, "IMAGES_AT_A_TIME", 50)  # four rows
    monkeypatch.setattr(kept, "_SECONDS", -1)
    number, save = 0, kept.Kept.save

    def counted(self: kept.Kept, found: tuple[np.ndarray, ...]) -> None:
        nonlocal number
        save(self, found)
        number += 1
        if number == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(kept.Kept, "save", counted)
    subject = dataclasses.replace(toy, kept_in=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        measure_likelihood(subject)
    assert measure_likelihood(subject) == measure_likelihood(toy)
    assert number == 4
    (file,) = (tmp_path / kept.FOLDER).iterdir()
    file.write_bytes(b"damaged")
    measure_likelihood(subject)
    measure_likelihood(dataclasses.replace(subject, seed=1))  # keeps its own
    assert number == 12


def test_a_large_model_gets_fewer_latents_and_as_many_for_a_few_images(
    toy: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density, "_LARGE", 1)
    monkeypatch.setattr(density, "_FEW_IMAGES", 40)
    found = measure_likelihood(dataclasses.replace(toy, num_importance_samples=None)).measurements
    fewer, many = found.values()
    assert "K = 1,000, 192 test images" in fewer.protocol
    assert "K = 5,000, 40 test images" in many.protocol
    few = toy.choose_test(40)
    assert many.value == pytest.approx(-EXACT[few].mean(), abs=0.02)


def test_the_bound_is_the_mean_over_its_draws(
    model: Model, params: Params, small_splits: Splits
) -> None:
    found = measure_elbo(subject(model, params, small_splits)).measurements
    (image, label), index = small_splits.test, jnp.arange(300)
    grey = jnp.asarray(image, jnp.float32) / 255
    draws = []
    for draw in range(NUM_DRAWS):
        keys = fold_in_each(jax.random.fold_in(make_key(3, Purpose.TEST), draw), index)
        noise = example_noise(keys, model.latent_dim)
        draws.append(elbo_terms(params, grey, jnp.asarray(label), noise, model=model))
    reconstruction = -np.mean([terms.log_likelihood for terms in draws], axis=0)
    kl = np.asarray(draws[0].kl).sum(axis=-1)
    loss = found["negative ELBO, grey levels"]
    assert loss.value == pytest.approx((reconstruction + kl).mean(), rel=1e-5)
    spread = (reconstruction + kl).std(ddof=1) / np.sqrt(300)
    assert loss.standard_error == pytest.approx(spread, rel=1e-3)
    assert found["KL, grey levels"].value == pytest.approx(kl.mean(), rel=1e-5)
    assert loss.protocol == "300 test images, grey levels, 10 latents each"


def test_a_quick_look_takes_a_fixed_random_part_of_the_test_set(
    model: Model, params: Params, small_splits: Splits
) -> None:
    whole = subject(model, params, small_splits)
    part, other = (dataclasses.replace(whole, num_test=100, seed=seed) for seed in (3, 4))
    index = [
        int(np.flatnonzero((np.asarray(whole.test.image) == image).all(axis=1))[0])
        for image in np.asarray(part.images["grey levels"].image)
    ]
    assert len(set(index)) == 100
    assert max(index) > 250  # not the first ones
    for kind in ("grey levels", "binarised"):
        chosen = np.asarray(whole.images[kind].image)[index]
        np.testing.assert_array_equal(part.images[kind].image, chosen)
    np.testing.assert_array_equal(
        part.images["grey levels"].image, other.images["grey levels"].image
    )
    assert "100 test images" in measure_latent(part).measurements["active units"].protocol


def test_a_collapsed_posterior_is_found_and_described(
    model: Model, params: Params, small_splits: Splits
) -> None:
    moments = jax.tree.map(jnp.zeros_like, params["encoder_moments"])  # q is the prior
    none = measure_latent(subject(model, params | {"encoder_moments": moments}, small_splits))
    assert none.measurements["active units"].value == 0
    np.testing.assert_allclose(none.details["kl_by_dimension"], 0)
    assert none.text.startswith("Complete posterior collapse")

    moments |= {"kernel": moments["kernel"].at[:, 2].set(1.0)}  # one centre of five varies
    one = measure_latent(subject(model, params | {"encoder_moments": moments}, small_splits))
    assert one.details["is_active"] == [False, False, True, False, False]
    kl = np.array(one.details["kl_by_dimension"])
    assert kl[2] > 0
    assert one.text.startswith("Partial posterior collapse: 4 of 5")
    assert f"carry 0.00 of {kl.sum():.2f} nats" in one.text
    assert "No posterior collapse: all 5" in describe_latent(kl, np.ones(5, bool))


def test_groups_of_latents_are_described_without_their_share() -> None:
    # As of a hierarchy: two levels, five dimensions.
    text = describe_latent(np.array([3.0, 1.0]), np.array([True, False, True, True, True]))
    assert text == "Partial posterior collapse: 1 of 5 latent dimensions are not used."


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_estimate_lowers_for_accelerators_in_full_precision(platform: str) -> None:
    model = build_model(ModelConfig((28, 28, 1), 10))
    key = jax.random.key(0)
    with jax.default_matmul_precision("highest"):
        program = jax.jit(
            partial(importance_log_likelihood, model=model, num_samples=5000, chunk_size=1000)
        )
        lowered = export.export(program, platforms=[platform])(
            jax.eval_shape(model.init, key),
            jax.ShapeDtypeStruct((100, 784), jnp.float32),
            jax.ShapeDtypeStruct((100,), jnp.int32),
            jax.eval_shape(lambda: jax.random.split(key, 100)),
        )
    products = [
        line for line in lowered.mlir_module().splitlines() if "= stablehlo.dot_general" in line
    ]
    assert len(products) == 4  # the encoder's two are there once
    assert all("HIGHEST" in line for line in products)
    encoder = [line for line in products if "tensor<100x794xf32>" in line]
    assert len(encoder) == 1
