"""What a measure returns: figures with their standard errors, units and protocols."""

import math
from typing import Any, NamedTuple

import numpy as np

_Z95 = 1.96  # quantile of the normal distribution for an interval of 95 %


class Measurement(NamedTuple):
    """One figure of the table."""

    value: float
    standard_error: float | None
    unit: str
    protocol: str
    interval: tuple[float, float] | None = None  # of a share of 0 or 1, whose error would be 0

    def __str__(self) -> str:
        """Return the figure with its standard error or interval; a share in per cent."""
        value, error, unit, _, interval = self
        scale, sign = (100, " %") if unit == "share" else (1, "")
        if interval:
            low, high = (scale * bound for bound in interval)
            return f"{scale * value:.2f} ({low:.2f} to {high:.2f}){sign}"
        if error is None:
            return f"{scale * value:.0f}{sign}"
        # Two digits of the error, so that a small distance keeps some of its own.
        digits = 2 if error == 0 else max(2, 1 - math.floor(math.log10(scale * error)))
        return f"{scale * value:.{digits}f} ± {scale * error:.{digits}f}{sign}"


class Finding(NamedTuple):
    """The results of one measure, or of several."""

    measurements: dict[str, Measurement]
    details: dict[str, Any]  # more results, of JSON's types: the file keeps and the page draws them
    text: str = ""  # printed under the table


def mean(values: np.ndarray, unit: str, protocol: str) -> Measurement:
    """Return the mean of independent values, (N,), with its standard error; N is at least 2."""
    values = np.asarray(values, np.float64)
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    return Measurement(float(values.mean()), error, unit, protocol)


def share(value: float, number: int, protocol: str) -> Measurement:
    """Return a share of `number` cases with its binomial standard error.

    For a share of 0 or 1 that would be 0. It gets Wilson's interval of 95 % instead.
    """
    if 0 < value < 1:
        error = math.sqrt(value * (1 - value) / number)
        return Measurement(value, error, "share", protocol)
    width = _Z95**2 / (number + _Z95**2)
    interval = (0.0, width) if value == 0 else (1 - width, 1.0)
    return Measurement(value, None, "share", f"{protocol}; 95 % interval (Wilson)", interval)
