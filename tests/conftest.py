"""Fixtures: real MNIST, and a small part of it with a small model where a test trains."""

import os

# Before JAX is imported: the tests are of the arithmetic, which is the CPU's on every machine.
os.environ["JAX_PLATFORMS"] = "cpu"

import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from hypothesis import settings

from cvae_jax.batches import epoch_order, put_on_device
from cvae_jax.config import ModelConfig, RunConfig, TrainConfig
from cvae_jax.data import load_dataset
from cvae_jax.models import CVAE, init_params
from cvae_jax.training import init_state
from cvae_jax.types import Dataset, Params, Splits, TrainState

# A shell's job in the background, as these tests may be, ignores Ctrl-C; so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")
NUM_DEVICES = 8
"""Of the CPU; a test uses the first one alone, unless it says otherwise."""
jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
# What one test has compiled is there for all; most of their time went into compiling the same.
_CACHE = tempfile.TemporaryDirectory(prefix="cvae_jax-tests-")
# Scripts that tests start keep theirs there as well, and never in the user's own folder.
os.environ |= {"XDG_CACHE_HOME": _CACHE.name, "MPLCONFIGDIR": matplotlib.get_cachedir()}
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The same inputs in every run; `FUZZ_EXAMPLES=100000 python -m pytest -m fuzz` tries more of them.
settings.register_profile(
    "ours",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "200")),
    derandomize=True,
    deadline=None,
    database=None,
)
settings.load_profile("ours")

SMALL = ModelConfig(image_shape=(28, 28, 1), num_classes=10, hidden_dim=32, latent_dim=5)


@pytest.fixture
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script that is left at once raise SystemExit in these tests' own process."""
    monkeypatch.setattr(os, "_exit", sys.exit)


@pytest.fixture(scope="session")
def mnist() -> Splits:
    return load_dataset("mnist", source="bundled")


@pytest.fixture(scope="session")
def small_splits(mnist: Splits) -> Splits:
    """Give the first 1,000 training and 300 test images: eight batches of 128, one short."""
    train, test = mnist.train, mnist.test
    return Splits(
        Dataset(train.image[:1000], train.label[:1000]),
        Dataset(test.image[:300], test.label[:300]),
        num_classes=10,
    )


@pytest.fixture(scope="session")
def small_run(small_splits: Splits) -> RunConfig:
    return RunConfig(
        train=TrainConfig(hidden_dim=SMALL.hidden_dim, latent_dim=SMALL.latent_dim, seed=0),
        image_shape=SMALL.image_shape,
        num_classes=SMALL.num_classes,
        data_sha256=small_splits.fingerprint(),
    )


@pytest.fixture(scope="session")
def train_set(small_splits: Splits) -> Dataset:
    return put_on_device(small_splits.train)


@pytest.fixture(scope="session")
def model() -> CVAE:
    return CVAE(SMALL)


@pytest.fixture(scope="session")
def optimizer() -> optax.GradientTransformation:
    return optax.adam(1e-3)


@pytest.fixture(scope="session")
def params(model: CVAE) -> Params:
    return init_params(jax.random.key(0), model)


@pytest.fixture
def make_state(model: CVAE, optimizer: optax.GradientTransformation) -> Callable[[], TrainState]:
    """Give a function that makes a fresh state, since a donated one is gone."""
    return partial(init_state, jax.random.key(0), model, optimizer)


def assert_trees_equal(left: object, right: object) -> None:
    """Compare two pytrees to the bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)  # type: ignore[operator]
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def patched_script(module: str, **values: object) -> str:
    """Make code for `python -c` that runs the script named after it with other values in a module.

    Args:
        module: of `cvae_jax`.
        values: by their names in it.
    """
    patches = "; ".join(f"{module}.{name} = {value!r}" for name, value in values.items())
    return (
        f"import runpy, sys; from cvae_jax import {module}; {patches}; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )


def epoch_shapes(model: CVAE, optimizer: optax.GradientTransformation, batch_size: int) -> Any:
    """Give the shapes of what an epoch of all MNIST takes: state, key, data set and order."""
    key = jax.random.key(0)
    order = partial(epoch_order, num_examples=60_000, batch_size=batch_size)
    return (
        jax.eval_shape(partial(init_state, model=model, optimizer=optimizer), key),
        jax.eval_shape(lambda: key),
        jax.eval_shape(
            lambda: Dataset(jnp.zeros((60_000, 784), jnp.uint8), jnp.zeros((60_000,), jnp.int32))
        ),
        jax.eval_shape(order, key, 0),
    )
