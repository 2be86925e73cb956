"""Ways through the latent space, in the coordinates in which the prior is N(0, I)."""

import numpy as np


def arc(start: np.ndarray, end: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return latents on the way from (R, Z) to (R, Z) at positions (T,) in [0, 1]: (T, R, Z).

    The way is an arc around 0 (Shoemake 1985), on which a latent stays as long as those at the
    ends. Half way along a straight line between two samples it is shorter by a factor of √2, which
    a sample of many dimensions hardly ever is. Ends on one line with 0 have a straight way.
    """
    share = np.asarray(position, np.float64).reshape(-1, 1, 1)
    lengths = [np.linalg.norm(latent, axis=-1, keepdims=True) for latent in (start, end)]
    product = (start * end).sum(axis=-1, keepdims=True)
    angle = np.arccos(np.clip(product / np.maximum(lengths[0] * lengths[1], 1e-12), -1, 1))
    is_straight = (np.sin(angle) < 1e-3) | (lengths[0] * lengths[1] == 0)
    angle = np.where(is_straight, np.pi / 2, angle)
    of_start, of_end = (
        np.where(is_straight, part, np.sin(part * angle) / np.sin(angle))
        for part in (1 - share, share)
    )
    return (of_start * start + of_end * end).astype(np.float32)


def circle(start: np.ndarray, through: np.ndarray, num: int) -> np.ndarray:
    """Return latents (T, R, Z) on circles around 0 that begin at (R, Z) and pass through others.

    cos(a) u + sin(a) v is standard normal where u and v are, so that each of them is a sample.
    """
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False).reshape(-1, 1, 1)
    return (np.cos(angle) * start + np.sin(angle) * through).astype(np.float32)


def principal_components(latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orthogonal directions of length 1, (Z, Z), and their shares of the variance, (Z,).

    Args:
        latent: (N, Z). The direction along which it varies most comes first.
    """
    covariance = np.cov(latent.astype(np.float64), rowvar=False).reshape(2 * latent.shape[1:])
    variance, direction = np.linalg.eigh(covariance)
    direction = direction[:, ::-1].T
    # Which of the two signs comes out depends on the library; the largest part shall be positive.
    largest = np.abs(direction).argmax(axis=1)
    direction *= np.sign(direction[np.arange(len(direction)), largest])[:, np.newaxis]
    return direction, variance[::-1] / max(float(variance.sum()), 1e-12)
