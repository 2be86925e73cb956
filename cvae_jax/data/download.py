"""Downloads of files whose digests are known: with a bar, a time limit, and a place for copies."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from cvae_jax.errors import DataError
from cvae_jax.runtime.files import reason

_WAIT_SECONDS = 10  # for a connection, and for the next part of a download


def fetch(name: str, url: str, size: int, sha256: str, *, to: Path, copies: Sequence[Path]) -> Path:
    """Return the path of a file; download it unless one with its digest is there.

    Args:
        name: the data set, for errors.
        url: where to download it from.
        size: its bytes.
        sha256: its digest.
        to: its path after a download.
        copies: paths at which a user may have put it.

    Raises:
        DataError: it can't be downloaded, or has another digest.
    """
    import pooch

    try:
        for path in copies:
            if path.exists() and pooch.file_hash(str(path)) == sha256:
                return path
        pooch.get_logger().setLevel(logging.WARNING)
        with tqdm(total=size, desc=Path(url).name, unit="B", unit_scale=True, delay=1) as bar:
            downloader = pooch.HTTPDownloader(
                progressbar=bar,
                chunk_size=1 << 16,
                timeout=_WAIT_SECONDS,
                headers={"Accept-Encoding": "identity"},  # the digest is that of the packed file
            )
            where = {"path": to.parent, "fname": to.name}
            return Path(pooch.retrieve(url, sha256, downloader=downloader, **where))
    except Exception as error:  # of the network, of the disk, or another digest
        raise DataError(
            f"{name} is not prepared here and {url} can't be downloaded ({reason(error)}); try "
            f"again, or put the original {Path(url).name} of {name} into {copies[0].parent}"
        ) from error
