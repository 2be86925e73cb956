"""Convolutions that are fast in a loop on a CPU, and the moves between pixels and channels."""

import jax
import jax.numpy as jnp
from flax import linen as nn

_NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve images (B, H, W, C) with a kernel (h, w, C, C'), stride 1, padding SAME.

    On a CPU the gradients are written as forward convolutions: those that autodiff writes take
    twenty times as long in the body of a loop, which XLA does not rewrite. They rule out forward
    mode there. Kernels have odd sides.
    """
    if jax.default_backend() == "cpu":
        return _convolve_on_cpu(image, kernel)
    return _convolve(image, kernel)


def _convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)


@jax.custom_vjp
def _convolve_on_cpu(image: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve(image, kernel)


def _forward(image: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(image, kernel), (image, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    image, kernel = saved
    height, width = kernel.shape[:2]
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    padding = ((height // 2, height // 2), (width // 2, width // 2))
    by_kernel = jax.lax.conv_general_dilated(
        image.transpose(3, 1, 2, 0),  # channels as the batch, examples as the channels
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        dimension_numbers=_NHWC,
    )
    return _convolve(cotangent, flipped), by_kernel.transpose(1, 2, 0, 3)


_convolve_on_cpu.defvjp(_forward, _backward)


class Conv(nn.Module):
    """A convolution with bias; parameters are float32, products of type `dtype`."""

    features: int
    size: int
    dtype: str
    is_zero: bool = False  # start from zeros, so that a residual block starts as the identity

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Map (B, H, W, C) to (B, H, W, features)."""
        shape = (self.size, self.size, image.shape[-1], self.features)
        start = nn.initializers.zeros if self.is_zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", start, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        image = image.astype(self.dtype)
        if self.size == 1:
            return image @ kernel[0, 0] + bias[jnp.newaxis, jnp.newaxis, jnp.newaxis]
        return convolve(image, kernel) + bias[jnp.newaxis, jnp.newaxis, jnp.newaxis]


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with SiLU around a skip; it starts as the identity."""

    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Map (B, H, W, C) to the same shape."""
        features = image.shape[-1]
        hidden = Conv(features, 3, self.dtype)(nn.silu(image))
        return image + Conv(features, 3, self.dtype, is_zero=True)(nn.silu(hidden))


def space_to_depth(image: jax.Array) -> jax.Array:
    """Move blocks of 2 × 2 pixels into channels: (B, H, W, C) to (B, H / 2, W / 2, 4 C)."""
    batch, height, width, channels = image.shape
    blocks = image.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return blocks.swapaxes(2, 3).reshape(batch, height // 2, width // 2, 4 * channels)


def depth_to_space(image: jax.Array) -> jax.Array:
    """Undo `space_to_depth`: (B, H, W, 4 C) to (B, 2 H, 2 W, C)."""
    batch, height, width, channels = image.shape
    blocks = image.reshape(batch, height, width, 2, 2, channels // 4)
    return blocks.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4)
