from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax import evaluation, objective
from cvae_jax.batches import put_on_device
from cvae_jax.models import CVAE
from cvae_jax.types import Params, Splits


@pytest.mark.parametrize("batch_size", [1, 7, 100, 300, 1000])
def test_padded_chunked_and_whole_evaluation_agree(
    batch_size: int, model: CVAE, params: Params, small_splits: Splits
) -> None:
    test_set, key = put_on_device(small_splits.test), jax.random.key(3)
    program = jax.jit(partial(evaluation.evaluate, model=model, batch_size=batch_size))
    sums = program(params, key, test_set)
    assert float(sums.num_examples.sum()) == 300

    keys = jax.vmap(partial(jax.random.fold_in, key))(np.arange(300))
    image = jnp.asarray(test_set.image, jnp.float32) / 255
    terms = objective.elbo_terms(model, params, keys, image, jnp.asarray(test_set.label))
    np.testing.assert_allclose(sums.reconstruction.sum(), -terms.log_likelihood.sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.kl.sum(), terms.kl.sum(), rtol=1e-5)
