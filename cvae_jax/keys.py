"""Random keys: one for each purpose, each a function of the seed alone."""

import enum

import jax


class Purpose(enum.IntEnum):
    """What a key is for. The numbers never change: the results of old runs depend on them."""

    WEIGHTS = 0
    ORDER = 1
    NOISE = 2
    TEST = 3
    SAMPLES = 4
    BINARIZE = 5  # the training images, step by step
    TEST_BINARIZE = 6  # the test images, once
    LIKELIHOOD = 7
    TRAIN_SAMPLES = 8  # a training set of samples alone
    JUDGE = 9
    CHOICE = 10  # of images to compare
    SAMPLES_JUDGE = 11  # the judge that is trained on samples alone
    RECONSTRUCTIONS = 12  # of training images
    PIXELS = 13  # black and white, of samples


def make_key(seed: int | jax.Array, purpose: Purpose) -> jax.Array:
    """Return the key of a purpose: the seed's root key with the purpose folded in.

    Nothing is drawn from the root key itself. The generator is always Threefry, whatever JAX's
    default is, because its bits are the same on every device and for every sharding.

    Args:
        seed: from 0 to 2**32 - 1; a uint32 where it is traced.
        purpose: what the key is for.
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), purpose)


def fold_in_each(key: jax.Array, index: jax.Array) -> jax.Array:
    """Return one key for each index, (B,), so that no example's noise depends on its batch."""
    return jax.vmap(lambda one: jax.random.fold_in(key, one))(index)
