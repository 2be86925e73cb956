"""How good a model is on data it was not trained on."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from cvae_jax import objective
from cvae_jax.batches import binarize, in_rows, in_turn, take_batch
from cvae_jax.keys import fold_in_each
from cvae_jax.models import CVAE, encode
from cvae_jax.types import Batch, Dataset, ElboTerms, Gathered, LossSums, Params

_Results = TypeVar("_Results")


class Likelihood(NamedTuple):
    """An estimate of log p(x|y) for each example, in nats, and how far to trust it."""

    log_likelihood: jax.Array  # (B,)
    # (B,), from 1 to K: of equal weights so many would be as good; near 1 the estimate is low.
    effective_samples: jax.Array


def importance_log_likelihood(
    params: Params,
    key: jax.Array,
    image: jax.Array,
    label: jax.Array,
    *,
    model: CVAE,
    num_samples: int,
    chunk_size: int,
) -> Likelihood:
    """Estimate log p(x|y) by importance sampling: log of the mean of K weights.

    In expectation a lower bound, which rises with K to the likelihood itself (Burda et al. 2016,
    theorem 1). Only for binary images is it the logarithm of a probability.

    Args:
        params: the model's parameters.
        key: typed keys (B,), one for each example, so that its estimate is its own.
        image: (B, ...) float32 in [0, 1].
        label: (B,) int32.
        model: the module that `params` belong to.
        num_samples: K.
        chunk_size: how many latents of an example are decoded at a time; memory grows with it
            and with B, not with K. It changes the estimate by rounding alone.
    """

    def add_chunk(
        sums: tuple[jax.Array, jax.Array], start: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        index = start + jnp.arange(chunk_size)
        keys = jax.vmap(lambda one: fold_in_each(one, index))(key)  # (B, chunk)
        noise = jax.vmap(
            jax.vmap(lambda one: jax.random.normal(one, (model.config.latent_dim,))),
            in_axes=1,
        )(keys)  # (chunk, B, Z)
        log_weight = objective.log_weights(model, params, noise, image, label)
        log_weight = jnp.where((index < num_samples)[:, jnp.newaxis], log_weight, -jnp.inf)
        log_sum, log_square_sum = sums
        return (
            jnp.logaddexp(log_sum, logsumexp(log_weight, axis=0)),
            jnp.logaddexp(log_square_sum, logsumexp(2 * log_weight, axis=0)),
        ), None

    nothing = jnp.full(label.shape, -jnp.inf)
    starts = jnp.arange(0, num_samples, chunk_size)
    (log_sum, log_square_sum), _ = jax.lax.scan(add_chunk, (nothing, nothing), starts)
    return Likelihood(
        log_likelihood=log_sum - jnp.log(num_samples),
        effective_samples=jnp.exp(2 * log_sum - log_square_sum),
    )


def elbo_per_example(
    params: Params,
    key: jax.Array,
    dataset: Dataset,
    *,
    model: CVAE,
    batch_size: int,
    num_draws: int,
) -> ElboTerms:
    """Give both terms of the bound for each example of a data set, (N,), in nats.

    Args:
        params: the model's parameters.
        key: fixes the noise, which does not depend on the batch size.
        dataset: the data set on the device.
        model: the module that `params` belong to.
        batch_size: examples at a time; memory grows with it.
        num_draws: latents of each example that the terms are averaged over.
    """

    def terms(batch: Batch, row: jax.Array) -> ElboTerms:
        def one_draw(draw: jax.Array) -> ElboTerms:
            keys = fold_in_each(jax.random.fold_in(key, draw), row)
            return objective.elbo_terms(model, params, keys, batch.image, batch.label)

        draws = jax.lax.map(one_draw, jnp.arange(num_draws))
        return jax.tree.map(lambda values: values.mean(axis=0), draws)

    return _for_each_example(terms, dataset, batch_size)


def posteriors(
    params: Params, dataset: Dataset, *, model: CVAE, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Give the mean and the log-variance of q(z|x,y) for each example of a data set, (N, Z)."""

    def moments(batch: Batch, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        return encode(model, params, batch.image, batch.label)

    return _for_each_example(moments, dataset, batch_size)


def _for_each_example(
    function: Callable[[Batch, jax.Array], _Results], dataset: Dataset, batch_size: int
) -> _Results:
    """Apply a function of a batch and its indices to all of a data set; results (N, ...)."""
    num_examples = len(dataset.label)
    rows = in_rows(jnp.arange(num_examples), batch_size)
    results = jax.lax.map(lambda row: function(take_batch(dataset, row), row), rows)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_examples], results)


def evaluate(
    params: Params,
    key: jax.Array,
    examples: Dataset | Gathered,
    order: jax.Array,
    *,
    model: CVAE,
    binarize_key: jax.Array | None = None,
) -> LossSums:
    """Give the loss of every batch of a data set, each example once, one draw of noise each.

    Made to be bound and compiled by the caller, like `training.train_step`.

    Args:
        params: the model's parameters.
        key: fixes the noise; that of example i depends on the key and i alone, so the batch
            size changes nothing but rounding.
        examples: the data set on the device, or what `order` takes of it.
        order: (S, B) indices of the examples, from `batches.in_rows`; memory grows with B.
        model: the module that `params` belong to.
        binarize_key: the images are drawn black and white from it, image i from it and i alone.
            None: their grey levels are used as they are.

    Returns:
        Sums for each batch, (S,), in nats.
    """
    entries, make_batch = in_turn(examples, order)

    def batch_sums(inputs: tuple[Any, jax.Array]) -> LossSums:
        entry, row = inputs
        batch = make_batch(entry)
        if binarize_key is not None:
            keys = fold_in_each(binarize_key, row)
            batch = batch._replace(image=jax.vmap(binarize)(keys, batch.image))
        return objective.batch_loss(model, params, fold_in_each(key, row), batch)

    sums: LossSums = jax.lax.map(batch_sums, (entries, order))
    return sums
