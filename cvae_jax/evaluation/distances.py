"""Distances between two sets of images, from their features: NumPy alone, in double precision."""

import numpy as np

NUM_NEIGHBORS = 3
"""k of precision and recall, as in Kynkäänniemi et al. 2019."""

_ROWS = 1000  # of a matrix of distances, at a time


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the squared Fréchet distance of the Gaussians with two sets' means and covariances.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).
    It is biased upwards for small sets: compare sets of equal size only.

    Args:
        one: features (N, F), N at least 2.
        other: features (M, F), M at least 2.
    """
    sets = [np.asarray(features, np.float64) for features in (one, other)]
    gap = sets[0].mean(axis=0) - sets[1].mean(axis=0)
    first, second = (np.atleast_2d(np.cov(features, rowvar=False)) for features in sets)
    # (C1 C2)^(1/2) has the trace of (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ second @ root).clip(0)
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(product).sum()
    return float((gap**2).sum() + trace)


def precision_recall(
    samples: np.ndarray, real: np.ndarray, num_neighbors: int = NUM_NEIGHBORS
) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2).

    Precision is the share of samples that lie within a ball around a real image; recall is the
    share of real images within a ball around a sample. A ball reaches to the k-th nearest
    neighbour of its centre in the same set.

    Args:
        samples: features (N, F), N more than `num_neighbors`.
        real: features (M, F), M more than `num_neighbors`.
        num_neighbors: k.
    """
    samples, real = (np.asarray(features, np.float64) for features in (samples, real))
    sample_radii, real_radii = (_radii(points, num_neighbors) for points in (samples, real))
    is_precise = np.zeros(len(samples), bool)
    is_recalled = np.zeros(len(real), bool)
    for rows in _blocks(len(samples)):
        distances = _squared_distances(samples[rows], real)
        is_precise[rows] = (distances <= real_radii).any(axis=1)
        is_recalled |= (distances <= sample_radii[rows, np.newaxis]).any(axis=0)
    return float(is_precise.mean()), float(is_recalled.mean())


def _radii(points: np.ndarray, num_neighbors: int) -> np.ndarray:
    """Return the squared distance of each point to its k-th nearest neighbour in the set, (N,)."""
    blocks = (_squared_distances(points[rows], points) for rows in _blocks(len(points)))
    # The nearest of all is the point itself.
    nearest = (np.partition(block, num_neighbors)[:, num_neighbors] for block in blocks)
    return np.concatenate(list(nearest))


def _blocks(number: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, number, _ROWS)]


def _squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the squared distance of each of one set to each of the other, (N, M)."""
    distances = one @ (-2 * other.T)
    distances += (one**2).sum(axis=1)[:, np.newaxis]
    distances += (other**2).sum(axis=1)
    return distances
