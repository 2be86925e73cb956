import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvae_jax.data.batches import put_on_device
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.evaluation import judge
from cvae_jax.models.family import Params
from tests.helpers import assert_trees_equal

SHAPE = (9, 8, 1)


def stripes(number: int = 300, seed: int = 0) -> Dataset:
    """Return images of horizontal (0) and of vertical (1) stripes, with noise."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, number, np.int32)
    image = random.integers(0, 100, (number, *SHAPE), np.uint8)
    image[label == 0, ::2] += 150
    image[label == 1, :, ::2] += 150
    return Dataset(image, label)


SPLITS = Splits(stripes(16), stripes(8, seed=1), 2)


@pytest.fixture(scope="module")
def params() -> Params:
    return judge.init_judge(jax.random.key(0), SHAPE, 2)


@pytest.fixture(scope="module")
def content(params: Params) -> bytes:
    """Return what a file of a judge holds."""
    return judge.encode(params, "its data")


def test_it_learns_from_its_training_set_and_the_key_alone() -> None:
    on_device = put_on_device(stripes())
    first, again = (
        judge.train_judge(
            on_device, jax.random.key(0), image_shape=SHAPE, num_classes=2, num_steps=30
        )
        for _ in range(2)
    )
    unseen = stripes(seed=1)
    verdict = judge.judge_all(first, put_on_device(unseen), image_shape=SHAPE, num_classes=2)
    assert np.mean(np.argmax(verdict.logits, axis=-1) == unseen.label) > 0.95
    assert_trees_equal(first, again)


def test_all_images_are_judged_as_by_themselves(params: Params) -> None:
    dataset = stripes(1100)  # a batch and a part of one
    found = judge.judge_all(params, put_on_device(dataset), image_shape=SHAPE, num_classes=2)
    expected = judge.judge(params, jnp.asarray(dataset.image, jnp.float32) / 255, 2)
    assert found.features.shape == (1100, judge.NUM_FEATURES)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_only_training_drops_features(params: Params) -> None:
    image = jnp.asarray(stripes(5).image, jnp.float32) / 255
    whole = judge.judge(params, image, 2)
    dropped = judge.judge(params, image, 2, jax.random.key(1))
    np.testing.assert_array_equal(whole.features, dropped.features)
    assert (np.asarray(whole.logits) != dropped.logits).any()


def test_images_are_shifted_each_by_its_own_and_by_two_pixels_at_most() -> None:
    image = np.zeros((200, 28, 28, 1), np.float32)
    image[:, 14, 14] = 1
    shifted = np.asarray(judge.shift(jnp.asarray(image), jax.random.key(0)))
    number, row, column, _ = np.nonzero(shifted)
    np.testing.assert_array_equal(number, np.arange(200))
    assert set(row) == set(column) == {12, 13, 14, 15, 16}
    assert len({*zip(row, column, strict=True)}) == 25
    small = jnp.ones((3, 5, 4, 2))
    np.testing.assert_array_equal(judge.shift(small, jax.random.key(0)), small)


def test_the_judge_of_mnist_ships_with_the_package(mnist: Splits) -> None:
    assert judge.BUNDLED.stat().st_size <= 2_000_000
    params = judge.find_judge(mnist, mnist.fingerprint())  # trained here it would take minutes
    verdict = judge.judge_all(
        params, put_on_device(mnist.test), image_shape=mnist.image_shape, num_classes=10
    )
    assert np.mean(np.argmax(verdict.logits, axis=-1) == mnist.test.label) == 0.9958
    # Other images of the same shape and as many classes have a judge of their own.
    assert judge.read(judge.BUNDLED, mnist, "0" * 64) is None


def test_a_file_of_a_judge_is_read_as_it_was(
    params: Params, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "judge.npz"
    assert judge.read(path, SPLITS, "its data") is None
    path.write_bytes(content)
    assert_trees_equal(judge.read(path, SPLITS, "its data"), params)
    assert judge.read(path, SPLITS, "other data") is None


def test_where_nothing_can_be_kept_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(judge, "_FEWEST_STEPS", 20)
    (tmp_path / "cvae_jax").write_bytes(b"in the way")
    assert judge.find_judge(SPLITS, SPLITS.fingerprint())
    assert "has to train the judge again" in caplog.text


def damage(how: str, content: bytes, path: Path) -> None:
    middle = len(content) // 2
    if how == "short":
        path.write_bytes(content[:middle])
    elif how == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])
    else:
        path.write_bytes(content)
        with np.load(path) as file:
            arrays = dict(file)
        wrong: dict[str, np.ndarray] = {
            "pickle": np.array([print], object),
            "shape": np.ones((3, 4), np.float32),
            "nan": np.full_like(arrays["Dense_1.bias"], np.nan),
        }
        np.savez(path, **arrays | {"Dense_1.bias": wrong[how]})


@pytest.mark.parametrize("how", ["short", "flipped", "pickle", "shape", "nan"])
def test_a_damaged_one_is_not_taken(
    how: str, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "judge.npz"
    damage(how, content, path)
    with caplog.at_level(logging.WARNING):
        assert judge.read(path, SPLITS, "its data") is None
    assert f"{path} is damaged" in caplog.text


@pytest.mark.fuzz
@given(other=st.binary(max_size=300), place=st.integers(0, 2**20), is_whole=st.booleans())
def test_any_file_is_read_or_not_taken(
    other: bytes,
    place: int,
    is_whole: bool,
    content: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    place %= len(content)
    path.write_bytes(other if is_whole else content[:place] + other + content[place + 1 :])
    found = judge.read(path, SPLITS, "its data")
    assert found is None or judge.encode(found, "its data") == content
