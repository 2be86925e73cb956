from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.config import ModelConfig
from cvae_jax.models import CVAE, decode, encode, init_params
from cvae_jax.types import Params


def test_original_has_the_layers_of_the_tutorial() -> None:
    model = CVAE(ModelConfig(image_shape=(28, 28, 1), num_classes=10))
    shapes = jax.tree.map(jnp.shape, init_params(jax.random.key(0), model))
    assert shapes == {
        "encoder_hidden": {"kernel": (794, 600), "bias": (600,)},
        "encoder_moments": {"kernel": (600, 100), "bias": (100,)},
        "decoder_hidden": {"kernel": (60, 600), "bias": (600,)},
        "decoder_logits": {"kernel": (600, 784), "bias": (784,)},
    }


def test_weights_start_uniform_within_one_over_root_fan_in() -> None:
    model = CVAE(ModelConfig(image_shape=(28, 28, 1), num_classes=10))
    for layer in init_params(jax.random.key(1), model).values():
        bound = layer["kernel"].shape[0] ** -0.5
        for values in layer.values():
            assert jnp.abs(values).max() <= bound
            # A uniform variable on ±b has the standard deviation b/√3; the smallest array,
            # 100 biases, has a relative standard error of 4.5 %.
            assert jnp.std(values) == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 4, 3)])
@pytest.mark.parametrize("num_classes", [2, 47])
def test_any_image_shape_and_number_of_classes(
    shape: tuple[int, int, int], num_classes: int
) -> None:
    model = CVAE(ModelConfig(shape, num_classes, hidden_dim=8, latent_dim=3))
    params = init_params(jax.random.key(0), model)
    label = jnp.array([0, num_classes - 1])
    mean, logvar = encode(model, params, jnp.ones((2, *shape)), label)
    assert mean.shape == logvar.shape == (2, 3)
    assert decode(model, params, mean, label).shape == (2, *shape)


def test_flat_and_shaped_images_encode_alike(model: CVAE, params: Params) -> None:
    image = jax.random.uniform(jax.random.key(0), (4, 28, 28, 1))
    label = jnp.arange(4)
    shaped = encode(model, params, image, label)
    flat = encode(model, params, image.reshape(4, -1), label)
    np.testing.assert_array_equal(shaped[0], flat[0])


def test_another_label_gives_another_code_and_another_image(model: CVAE, params: Params) -> None:
    image, latent = jnp.zeros((10, 784)), jnp.zeros((10, 5))
    label = jnp.arange(10)
    for output in (
        encode(model, params, image, label)[0],
        encode(model, params, image, label)[1],
        decode(model, params, latent, label).reshape(10, -1),
    ):
        assert len(np.unique(np.asarray(output), axis=0)) == 10


def test_bfloat16_is_of_the_products_alone(model: CVAE, params: Params) -> None:
    fast = CVAE(model.config, precision="bfloat16")
    image = jax.random.uniform(jax.random.key(1), (64, 28, 28, 1))
    label = jnp.arange(64) % 10

    def loss(module: CVAE, params: Params) -> jax.Array:
        mean, logvar = encode(module, params, image, label)
        logits = decode(module, params, mean, label)
        assert {array.dtype for array in (mean, logvar, logits)} == {jnp.dtype("float32")}
        return jnp.mean(logits**2) + jnp.mean(logvar**2)

    expected, gradient = jax.jit(jax.value_and_grad(partial(loss, model)))(params)
    found, fast_gradient = jax.jit(jax.value_and_grad(partial(loss, fast)))(params)
    assert found != expected
    assert found == pytest.approx(float(expected), rel=2e-2)
    for one, other in zip(*map(jax.tree.leaves, (fast_gradient, gradient)), strict=True):
        assert one.dtype == jnp.float32
        assert jnp.linalg.norm(one - other) < 0.02 * jnp.linalg.norm(other)
    assert jax.tree.all(
        jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, init_params(jax.random.key(0), fast))
    )
