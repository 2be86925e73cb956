"""JAX's own cache of compiled programs, kept in the user's cache folder between commands."""

import os
import warnings
from pathlib import Path
from typing import Any

import jax

from cvae_jax.runtime.files import cache_folder

_MOST_BYTES = 100_000_000  # a command's programs take 50 to 300 kB; the least recently used go
# On a CPU these versions print a kilobyte of false alarm for each program that they load.
_FIRST_NOISY, _FIRST_QUIET = (0, 8), (0, 10, 2)


def keep() -> None:
    """Keep what this process compiles from now on for later processes.

    JAX's own settings take precedence: where JAX_COMPILATION_CACHE_DIR is set they apply
    unchanged, and with JAX_ENABLE_COMPILATION_CACHE=false nothing is kept. An entry that can't be
    read is compiled again without a warning.
    """
    config: Any = jax.config
    is_ours = config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache
    is_noisy = _FIRST_NOISY <= jax.__version_info__ < _FIRST_QUIET
    folder = _private_folder() if is_ours and not is_noisy else None
    if folder is None:
        return
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": _MOST_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0,  # ours take less than JAX's 1
        # XLA's own cache on a GPU has no bound, and fails the run where it can't be written.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            config.update(name, value)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _private_folder() -> Path | None:
    """Return the folder of the cache; None where others could write the programs that JAX runs."""
    root = cache_folder()
    if root is None:
        return None
    folder = root / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError:
        return None
    is_private = os.name == "nt" or (about.st_uid == os.getuid() and not about.st_mode & 0o022)
    return folder if is_private and os.access(folder, os.R_OK | os.W_OK | os.X_OK) else None
