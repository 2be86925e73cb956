"""Adam, with the schedule, the momentum and the clipping that a run asks for."""

import jax
import jax.numpy as jnp
import optax

from cvae_jax.config import TrainConfig


def build_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer of a run; without options it is `optax.adam`, bit for bit.

    Args:
        config: the settings; a cosine schedule needs its `decay_epochs`.
        steps_per_epoch: batches of an epoch.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    rate: optax.ScalarOrSchedule = peak
    if config.schedule == "cosine":
        num_steps = (config.decay_epochs or 1) * steps_per_epoch
        warmup = min(warmup, num_steps - 1)
        rate = optax.cosine_decay_schedule(peak, num_steps - warmup)
    elif warmup:
        rate = optax.constant_schedule(peak)
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rate], [warmup])
    if config.nesterov is None:
        optimizer = optax.adam(rate)
    else:
        optimizer = optax.nadam(rate, b1=config.nesterov)
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.skip_norm is not None:
        optimizer = optax.chain(_skip_above(config.skip_norm), optimizer)
    return optimizer


def _skip_above(limit: float) -> optax.GradientTransformation:
    """Return a transformation that takes a gradient of a larger norm as zero.

    After Child 2021, "Very Deep VAEs", which skips such steps.
    """

    def skip(gradient: optax.Updates, _: optax.Params | None) -> optax.Updates:
        is_kept = optax.tree.norm(gradient) <= limit
        return jax.tree.map(lambda leaf: jnp.where(is_kept, leaf, 0), gradient)

    return optax.stateless(skip)
