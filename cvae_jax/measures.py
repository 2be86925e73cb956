"""What a measure of a model is: a figure with its standard error, its unit and its protocol."""

import math
from typing import NamedTuple

import numpy as np

from cvae_jax import metrics


class Measurement(NamedTuple):
    """One figure of the table."""

    value: float
    standard_error: float | None
    unit: str
    protocol: str


Measurements = dict[str, Measurement]


def write(measurement: Measurement) -> str:
    """Write a figure with its standard error; a share in per cent."""
    value, error, unit, _ = measurement
    if unit == "share":
        value, error, unit = 100 * value, None if error is None else 100 * error, "%"
    if error is None:
        return f"{value:.0f}"
    # Two digits of the error, so that a small distance has some left.
    digits = 2 if error == 0 else max(2, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}{' %' if unit == '%' else ''}"


def table(measurements: Measurements) -> str:
    """Set all figures in columns: what, value and standard error, unit and protocol."""
    names = max(len(name) for name in measurements)
    lines = [
        f"{name:<{names}}  {write(one):>18}  "
        f"{'' if one.unit == 'share' else one.unit + '; '}{one.protocol}"
        for name, one in measurements.items()
    ]
    head = f"{'measure':<{names}}  {'value ± std. error':>18}  protocol"
    return "\n".join(["", head, *lines, ""])


def by_class(confusion: np.ndarray) -> list[Measurement | None]:
    """Give the accuracy of each class, a row of a confusion matrix; None of one without images."""
    return [
        share_of(float(row[i] / row.sum()), int(row.sum()), f"{row.sum():,} images")
        if row.any()
        else None
        for i, row in enumerate(confusion)
    ]


def table_of_classes(samples: np.ndarray, real: np.ndarray) -> str:
    """Set the accuracy of each class in columns: in samples, and that of the judge itself.

    Args:
        samples: (Y, Y) int, the confusion matrix of samples.
        real: (Y, Y) int, that of real images.
    """
    head = f"{'class':>5}  {'conditional accuracy':>20}  {'the judge on real images':>24}"
    rows = zip(by_class(samples), by_class(real), strict=True)
    cells = ([write(one) if one else "no images" for one in row] for row in rows)
    lines = [f"{i:>5}  {drawn:>20}  {of_judge:>24}" for i, (drawn, of_judge) in enumerate(cells)]
    return "\n".join([head, *lines, ""])


def mean(values: np.ndarray, unit: str, protocol: str) -> Measurement:
    """Measure the mean of independent values, (N,)."""
    value = float(np.mean(values, dtype=np.float64))
    return Measurement(value, metrics.standard_error(values), unit, protocol)


def share(is_so: np.ndarray, protocol: str) -> Measurement:
    """Measure how many of independent cases, (N,) bool, are so."""
    return share_of(float(is_so.mean()), len(is_so), protocol)


def share_of(value: float, number: int, protocol: str) -> Measurement:
    """Give a share of so many cases its standard error, that of a binomial."""
    return Measurement(value, math.sqrt(value * (1 - value) / number), "share", protocol)
