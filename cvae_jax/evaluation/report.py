"""An evaluation: all measures in turn, and their findings as a table and as JSON."""

import json
import math
import textwrap
from collections.abc import Iterable
from importlib import import_module
from itertools import groupby
from typing import Any

from tqdm.auto import tqdm

from cvae_jax.errors import UserError
from cvae_jax.evaluation.measurement import Finding, Measurement
from cvae_jax.evaluation.measures import MEASURES
from cvae_jax.evaluation.subject import Subject

WIDTH = 100
"""Columns of the longest line of a table."""


def measure(subject: Subject, names: Iterable[str]) -> Finding:
    """Apply measures one after the other, with a progress bar, and join their findings.

    Raises:
        UserError: a figure is not finite.
    """
    joined = Finding({}, {})
    bar = tqdm(sorted(names, key=list(MEASURES).index), unit="measure")
    for name in bar:
        bar.set_description(f"measuring {name}")
        module, function = MEASURES[name]
        found: Finding = getattr(import_module(f"cvae_jax.evaluation.{module}"), function)(subject)
        for what, one in found.measurements.items():
            if not math.isfinite(one.value):
                raise UserError(
                    f"{what} of the model is {one.value}; choose an older --step, or train with a "
                    "smaller --learning-rate in another --workdir"
                )
        joined = Finding(
            joined.measurements | found.measurements,
            joined.details | found.details,
            "\n\n".join(filter(None, (joined.text, found.text))),
        )
    return joined


def table(finding: Finding) -> str:
    """Return the figures with their errors, and each protocol once, below its figures."""
    width = max(len(name) for name in finding.measurements)
    lines = [f"{'measure':<{width}}  {'value ± std. error':>26}"]

    def protocol(item: tuple[str, Measurement]) -> str:
        unit = "" if item[1].unit == "share" else f"{item[1].unit}; "
        return f"{unit}{item[1].protocol}"

    for words, items in groupby(finding.measurements.items(), key=protocol):
        lines += [f"{name:<{width}}  {one!s:>26}" for name, one in items]
        lines += textwrap.wrap(words, WIDTH, initial_indent="    ", subsequent_indent="    ")
    text = [textwrap.fill(line, WIDTH) for line in finding.text.splitlines()]
    return "\n".join([*lines, "", *text])


def to_json(settings: dict[str, Any], finding: Finding) -> bytes:
    """Return the contents of evaluation.json: the settings, the figures and their details."""
    measurements = {name: one._asdict() for name, one in finding.measurements.items()}
    content = settings | {"measurements": measurements} | finding.details
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
