import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from cvae_jax import likelihoods
from cvae_jax.batches import binarize_dataset, in_rows, put_on_device
from cvae_jax.config import ModelConfig
from cvae_jax.evaluation import evaluate, importance_log_likelihood
from cvae_jax.keys import Purpose, make_key
from cvae_jax.models import CVAE, init_params
from cvae_jax.types import Dataset, Params, Splits


@pytest.fixture
def test_set(small_splits: Splits) -> Dataset:
    return put_on_device(small_splits.test)


def without_encoder(params: Params) -> Params:
    """Give parameters of which q(z|x,y) is the prior: a posterior that has collapsed."""
    return params | {"encoder_moments": jax.tree.map(jnp.zeros_like, params["encoder_moments"])}


def test_the_bound_is_that_of_training_over_more_draws(
    model: CVAE, params: Params, test_set: Dataset
) -> None:
    found = likelihoods.measure_elbo("grey levels", params, 3, test_set, model)
    names = ("negative ELBO", "reconstruction", "KL")
    loss, reconstruction, kl = (found[f"{name}, grey levels"] for name in names)
    assert loss.value == pytest.approx(reconstruction.value + kl.value, rel=1e-6)
    key = make_key(3, Purpose.TEST)
    order = in_rows(np.arange(300), 1)
    draws = [
        evaluate(params, jax.random.fold_in(key, i), test_set, order, model=model)
        for i in range(likelihoods.NUM_DRAWS)
    ]
    expected = np.mean([float(sums.reconstruction.sum()) for sums in draws]) / 300
    assert reconstruction.value == pytest.approx(expected, rel=1e-5)
    assert kl.value == pytest.approx(float(draws[0].kl.sum()) / 300, rel=1e-5)
    assert {one.unit for one in found.values()} == {"nats per image"}
    assert "300 test images" in loss.protocol
    of_each = np.mean([sums.loss for sums in draws], axis=0)
    spread = of_each.std(ddof=1) / math.sqrt(300)
    assert loss.standard_error == pytest.approx(spread, rel=1e-4)


@pytest.mark.parametrize(("pixels", "images"), [(1, 1), (784 * 7, 7), (10**6, 100), (10**9, 1000)])
def test_the_log_likelihood_does_not_depend_on_the_memory_it_may_use(
    pixels: int,
    images: int,
    model: CVAE,
    params: Params,
    test_set: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = binarize_dataset(jax.random.key(0), Dataset(test_set.image[:20], test_set.label[:20]))

    def measure() -> float:
        measured = likelihoods.measure_log_likelihood(params, 3, few, model, 30, iter)
        return measured["-log p(x|y), binarised"].value

    expected = measure()
    monkeypatch.setattr(likelihoods, "_PIXELS_CPU", pixels)
    monkeypatch.setattr(likelihoods, "_IMAGES_AT_A_TIME", images)
    assert measure() == pytest.approx(expected, rel=1e-6)


def test_the_log_likelihood_lies_above_the_bound(
    model: CVAE, params: Params, test_set: Dataset
) -> None:
    binary = binarize_dataset(jax.random.key(0), test_set)
    bound = likelihoods.measure_elbo("binarised", params, 0, binary, model)
    found = likelihoods.measure_log_likelihood(params, 0, binary, model, 100, iter)
    (one,) = found.values()
    assert one.value < bound["negative ELBO, binarised"].value
    assert "K = 100, 300 test images" in one.protocol


def test_a_collapsed_posterior_is_told_in_words(
    model: CVAE, params: Params, test_set: Dataset
) -> None:
    none = likelihoods.measure_latent_use("grey levels", without_encoder(params), test_set, model)
    assert none.measurements["active units"].value == 0
    np.testing.assert_array_equal(none.kl, 0)
    assert "Complete posterior collapse" in likelihoods.say_latent_use(none)

    # One dimension of five whose mean varies from image to image.
    moments = without_encoder(params)["encoder_moments"]
    kernel = moments["kernel"].at[:, 2].set(1.0)
    one = likelihoods.measure_latent_use(
        "grey levels", params | {"encoder_moments": moments | {"kernel": kernel}}, test_set, model
    )
    np.testing.assert_array_equal(one.is_active, [False, False, True, False, False])
    assert one.measurements["active units"].value == 1
    words = likelihoods.say_latent_use(one)
    assert "Partial posterior collapse: 4 of 5" in words
    assert f"carry 0.00 of {one.kl.sum():.2f} nats" in words
    every = one._replace(is_active=np.ones(5, bool))
    assert "No posterior collapse: all 5" in likelihoods.say_latent_use(every)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_estimate_for_the_original_lowers_for_accelerators(platform: str) -> None:
    model = CVAE(ModelConfig((28, 28, 1), 10))
    key = jax.random.key(0)
    with jax.default_matmul_precision("highest"):
        program = jax.jit(
            partial(importance_log_likelihood, model=model, num_samples=5000, chunk_size=1000)
        )
        lowered = export.export(program, platforms=[platform])(
            jax.eval_shape(lambda: init_params(key, model)),
            jax.eval_shape(lambda: jax.random.split(key, 100)),
            jax.ShapeDtypeStruct((100, 784), jnp.float32),
            jax.ShapeDtypeStruct((100,), jnp.int32),
        )
    assert lowered.platforms == (platform,)
    products = [
        line for line in lowered.mlir_module().splitlines() if "= stablehlo.dot_general" in line
    ]
    assert len(products) == 4
    assert all("HIGHEST" in line for line in products)
