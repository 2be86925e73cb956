import numpy as np
import pytest
import scipy.linalg

from cvae_jax.evaluation.distances import frechet_distance, precision_recall


def whitened(number: int, num_dims: int, seed: int) -> np.ndarray:
    """Return points whose mean is 0 and whose covariance is the identity, to rounding."""
    points = np.random.default_rng(seed).normal(size=(number, num_dims))
    points -= points.mean(axis=0)
    root = np.linalg.cholesky(np.cov(points, rowvar=False))
    return np.linalg.solve(root, points.T).T


def test_the_frechet_distance_of_two_known_gaussians() -> None:
    # For covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2.
    points = whitened(500, 4, seed=0)
    mean, one, other = np.array([1.0, -2, 0, 3]), np.array([1.0, 2, 3, 0]), np.array([2.0, 2, 1, 5])
    found = frechet_distance(points * one, points[::-1] * other + mean)
    assert found == pytest.approx((mean**2).sum() + ((one - other) ** 2).sum(), rel=1e-10)


def test_the_frechet_distance_is_what_scipy_makes_of_its_formula() -> None:
    random = np.random.default_rng(1)
    one, other = (random.normal(size=(n, 6)) @ random.normal(size=(6, 6)) for n in (90, 70))
    other += 1
    first, second = (np.cov(x, rowvar=False) for x in (one, other))
    root = scipy.linalg.sqrtm(first @ second)
    gap = one.mean(axis=0) - other.mean(axis=0)
    expected = gap @ gap + np.trace(first + second - 2 * root.real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-8)


def test_a_set_is_at_no_distance_from_itself_even_if_flat() -> None:
    points = np.random.default_rng(2).normal(size=(50, 5)).astype(np.float32)
    points[:, 3:] = 0  # as features that never fire
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(points[:, :1], points[:, :1] + 2) == pytest.approx(4)


def test_precision_and_recall_of_sets_that_can_be_counted() -> None:
    # On a line, neighbours 1 apart: the third nearest of an end is 3 away, of any other 2.
    real = np.arange(10.0)[:, np.newaxis]
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)
    # Half of the samples are among the real ones, which they cover from 0 to 4 and, by their
    # radii, up to 7; those of the far ones reach nothing.
    samples = np.concatenate([np.arange(5.0), 1000 + np.arange(5.0)])[:, np.newaxis]
    assert precision_recall(samples, real) == (0.5, 0.8)
    # Samples in one place: all of them good, and far from all there is.
    one_place = np.full((10, 1), 4.5)
    assert precision_recall(one_place, real) == (1, 0)


@pytest.mark.parametrize("num_neighbors", [1, 5])
def test_precision_agrees_with_its_definition(num_neighbors: int) -> None:
    random = np.random.default_rng(3)
    samples, real = random.normal(size=(1500, 3)) * 1.3, random.normal(size=(1100, 3))
    radii = np.array(
        [np.sort(np.linalg.norm(real - centre, axis=1))[num_neighbors] for centre in real]
    )
    expected = np.mean([(np.linalg.norm(real - point, axis=1) <= radii).any() for point in samples])
    found, _ = precision_recall(samples, real, num_neighbors)
    assert found == pytest.approx(expected, abs=1e-12)
