"""What JAX compiles, kept on the disk from one run of a script to the next.

It is JAX's own persistent cache, given a place, a bound, and no way to fail a run: whatever goes
wrong with it costs time and nothing else.
"""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import jax

from cvae_jax.files import cache_folder

_MOST_BYTES = 100_000_000  # a script's programs are 50 to 300 kB; those used longest ago go first
# These versions, on a CPU, print a kilobyte of false alarm for each program that they load.
_FIRST_NOISY, _FIRST_QUIET = (0, 8), (0, 10, 2)


def keep() -> None:
    """From now on, have JAX keep what this process compiles in the user's cache folder.

    JAX's own settings come first: where JAX_COMPILATION_CACHE_DIR is set all is as JAX has it,
    with JAX_ENABLE_COMPILATION_CACHE=false nothing is kept, and its other variables are heeded.
    """
    config: Any = jax.config
    is_ours = config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache
    is_noisy = _FIRST_NOISY <= jax.__version_info__ < _FIRST_QUIET
    folder = _make_folder() if is_ours and not is_noisy else None
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
    _empty_when_damaged(folder)


def _make_folder() -> Path | None:
    """Make the folder; None where it can't be, or where the user has no place of their own.

    What lies there is run: nobody else may be able to write it.
    """
    root = cache_folder()
    if root is None:
        return None
    folder = root / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK) or not _is_private(folder):
        return None
    return folder


def _is_private(folder: Path) -> bool:
    if not hasattr(os, "getuid"):  # Windows
        return True
    about = folder.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def _empty_when_damaged(folder: Path) -> None:
    """Empty the cache in the place of JAX's warning that it can't be read or written.

    A full disk, or a process that is killed, leaves half a file. JAX would warn of it in every
    run, and never replace it.
    """
    show = warnings.showwarning

    def mend(message: Warning | str, *where: Any, **how: Any) -> None:
        if "persistent compilation cache" not in str(message):
            show(message, *where, **how)
            return
        for path in folder.glob("[!.]*"):  # all but JAX's lock
            with contextlib.suppress(OSError):
                path.unlink()

    warnings.showwarning = mend
