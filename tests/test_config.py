import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from cvae_jax.config import LARGEST_COUNT, LARGEST_DIM, LARGEST_SEED, ModelConfig, TrainConfig
from cvae_jax.options import RunOptions, SampleOptions
from cvae_jax.types import ConfigError

BOUNDS: dict[tuple[type[Any], str], tuple[float, float]] = {
    (TrainConfig, "batch_size"): (1, LARGEST_COUNT),
    (TrainConfig, "learning_rate"): (1e-30, 1e30),
    (TrainConfig, "hidden_dim"): (1, LARGEST_DIM),
    (TrainConfig, "latent_dim"): (1, LARGEST_DIM),
    (TrainConfig, "seed"): (0, LARGEST_SEED),
    (RunOptions, "epochs"): (1, LARGEST_COUNT),
    (RunOptions, "sample_every"): (1, LARGEST_COUNT),
    (RunOptions, "checkpoint_every"): (1, LARGEST_COUNT),
    (RunOptions, "num_devices"): (1, LARGEST_COUNT),
    (RunOptions, "data_memory"): (1e-9, 1e9),
    (SampleOptions, "num"): (1, LARGEST_COUNT),
    (SampleOptions, "seed"): (0, LARGEST_SEED),
    (SampleOptions, "step"): (0, LARGEST_COUNT),
}
# What bounds the class to draw is the model, and a process's number is one of three that belong
# together.
UNBOUNDED = {
    (SampleOptions, "digit"),
    (RunOptions, "num_processes"),
    (RunOptions, "process_id"),
}


def test_every_number_has_its_bounds() -> None:
    numbers = {
        (settings, field.name)
        for settings in (TrainConfig, RunOptions, SampleOptions)
        for field in dataclasses.fields(settings)
        if field.type in (int, float, int | None, float | None)
    }
    assert numbers == set(BOUNDS) | UNBOUNDED


@pytest.mark.parametrize(("settings", "name"), BOUNDS)
def test_a_number_is_taken_up_to_its_bounds_and_refused_beyond(
    settings: type[Any], name: str
) -> None:
    least, most = BOUNDS[settings, name]
    for value in (least, most):
        assert getattr(settings(**{name: value}), name) == value
    step = 1 if isinstance(least, int) else least / 2
    for value in (least - step, -most, most + most / 2, math.nan, math.inf, -math.inf):
        expected = (
            f"--{name.replace('_', '-')} {value} can't be used; choose a .* {least} to {most}"
        )
        with pytest.raises(ConfigError, match=f"^{expected.replace('+', '.')}$"):
            settings(**{name: value})


@pytest.mark.parametrize("name", ["hidden_dim", "latent_dim", "num_classes", "image_shape"])
def test_a_model_is_no_larger_than_it_can_be_asked_for(name: str) -> None:
    sizes: dict[str, Any] = {"image_shape": (28, 28, 1), "num_classes": 10}
    for fine in (1, LARGEST_DIM):
        value = (fine, 1, 1) if name == "image_shape" else fine
        ModelConfig(**sizes | {name: value})
    for bad in (0, -1, LARGEST_DIM + 1):
        value = (1, 1, bad) if name == "image_shape" else bad
        with pytest.raises(ConfigError, match=f"^{name} .* choose whole numbers from 1 to 65536$"):
            ModelConfig(**sizes | {name: value})


@pytest.mark.parametrize("out", ["a.png", "a.PNG", "a/b c.png", "~/ü.png"])
def test_the_end_of_a_name_says_what_is_in_the_file(out: str) -> None:
    assert SampleOptions(out=Path(out)).out == Path(out)
    npz = Path(out).with_suffix(".NPZ")
    assert SampleOptions(npz=npz).npz == npz
    with pytest.raises(ConfigError, match=r"^--npz .*; choose a name that ends in \.npz"):
        SampleOptions(npz=Path(out))
    with pytest.raises(ConfigError, match=r"^--out .*; choose a name that ends in \.png"):
        SampleOptions(out=npz)


def test_the_processes_are_named_by_three_options_that_belong_together() -> None:
    options = RunOptions(coordinator_address="[::1]:1234", num_processes=4, process_id=3)
    assert options.process_id == 3
    for some in ({"num_processes": 2}, {"process_id": 0}, {"coordinator_address": "host:1"}):
        with pytest.raises(ConfigError, match="belong together; give all three, or none"):
            RunOptions(**some)
    for index in (-1, 4):
        with pytest.raises(ConfigError, match=f"--process-id {index} .* from 0 to 3"):
            RunOptions(coordinator_address="host:1", num_processes=4, process_id=index)
    with pytest.raises(ConfigError, match=r"--num-processes 0 .* from 1"):
        RunOptions(coordinator_address="host:1", num_processes=0, process_id=0)
    for address in ("host", ":1", "host:", "host:0", "host:65536", "host:x", "host:²"):
        with pytest.raises(
            ConfigError, match=r"--coordinator-address .*, such as 10\.0\.0\.1:1234"
        ):
            RunOptions(coordinator_address=address, num_processes=4, process_id=0)
