from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cvae_jax.models.layers import convolve, depth_to_space, space_to_depth


def test_gradients_by_hand_are_those_of_autodiff() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.normal(keys[0], (3, 7, 6, 4))
    kernel, weight = jax.random.normal(keys[1], (3, 3, 4, 5)), jax.random.normal(keys[2], (5,))

    def plain(image: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=layout)

    def loss(function: Callable[..., jax.Array], image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sin(function(image, kernel) @ weight).sum()

    np.testing.assert_allclose(convolve(image, kernel), plain(image, kernel), atol=1e-5)
    found, expected = (
        jax.grad(lambda *args, f=function: loss(f, *args), argnums=(0, 1))(image, kernel)
        for function in (convolve, plain)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_blocks_of_pixels_become_channels_and_come_back() -> None:
    image = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    deep = space_to_depth(image)
    assert deep.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(deep[0, 0, 0], image[0, :2, :2].reshape(-1))
    np.testing.assert_array_equal(depth_to_space(deep), image)
