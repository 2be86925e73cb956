"""Settings of all tests, and fixtures of real MNIST."""

import os

# Before JAX is imported: the tests check the arithmetic of a CPU, on every machine.
os.environ["JAX_PLATFORMS"] = "cpu"

import signal
import tempfile

import jax
import matplotlib
import pytest
from hypothesis import settings

from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.data.sources import load_dataset
from cvae_jax.models import build_model, conv, flow
from cvae_jax.models.family import Model, Params
from tests.helpers import NUM_DEVICES, SMALL

# A shell's job in the background, as these tests may be, ignores Ctrl-C; so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
# What one test has compiled serves all, in every process of pytest-xdist: most of their time would
# go into compiling the same. The first process makes the folder and deletes it at its end.
_FOLDER = "CVAE_JAX_TESTS_CACHE"
if _FOLDER not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="cvae_jax-tests-")
    os.environ[_FOLDER] = _CACHE.name
# Commands that tests start keep theirs there as well, and never in the user's own folder.
os.environ |= {"XDG_CACHE_HOME": os.environ[_FOLDER], "MPLCONFIGDIR": matplotlib.get_cachedir()}
jax.config.update("jax_compilation_cache_dir", os.environ[_FOLDER])
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


@pytest.fixture(scope="session")
def mnist() -> Splits:
    return load_dataset("mnist", source="bundled")


@pytest.fixture(scope="session")
def small_splits(mnist: Splits) -> Splits:
    """Return the first 1,000 training and 300 test images: eight batches of 128, one short."""
    train, test = mnist.train, mnist.test
    return Splits(
        Dataset(train.image[:1000], train.label[:1000]),
        Dataset(test.image[:300], test.label[:300]),
        num_classes=10,
    )


@pytest.fixture(scope="session")
def model() -> Model:
    """Return a small model for MNIST."""
    return build_model(SMALL)


@pytest.fixture(scope="session")
def params(model: Model) -> Params:
    return model.init(jax.random.key(0))


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make convolutional models and learnt priors shallow, so that they compile sooner."""
    monkeypatch.setattr(conv, "ENCODER_BLOCKS", (1, 1))
    monkeypatch.setattr(conv, "DECODER_BLOCKS", (1, 1))
    monkeypatch.setattr(flow, "_COUPLINGS", 2)
