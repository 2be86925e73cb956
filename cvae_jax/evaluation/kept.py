"""Results of a long measure, kept while it runs, so that a stopped evaluation can go on."""

import hashlib
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cvae_jax.runtime.files import write_arrays

FOLDER = "evaluation.partial"

_SECONDS = 20  # between two writes


class Kept:
    """The results so far of one measure of one model with one set of settings."""

    def __init__(self, folder: Path, *settings: object) -> None:
        """Name a file below `folder` after all that the results depend on.

        Args:
            folder: where evaluation.json is going to be.
            settings: trees of arrays, and values whose `repr` says all.
        """
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(settings):
            is_array = isinstance(leaf, np.ndarray | jax.Array)
            digest.update(np.asarray(leaf).tobytes() if is_array else repr(leaf).encode())
        self._path = folder / FOLDER / f"{digest.hexdigest()[:32]}.npz"
        self._written = time.monotonic()

    def load(self, kind: Callable[..., Any]) -> Any:
        """Return what was saved last as `kind`; None where there is nothing, or it is damaged."""
        try:
            with np.load(self._path) as file:
                return kind(*(file[name] for name in file.files))
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, found: Iterable[np.ndarray]) -> None:
        """Write the results so far, a tuple of arrays, unless that was done a moment ago."""
        if time.monotonic() - self._written > _SECONDS:
            write_arrays(self._path, **{f"arr_{i}": array for i, array in enumerate(found)})
            self._written = time.monotonic()
