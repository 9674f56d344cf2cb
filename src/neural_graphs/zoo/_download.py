"""Downloads that are either complete and verified or absent."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from neural_graphs._io import atomic_write
from neural_graphs._progress import progress
from neural_graphs.errors import RunError

_CHUNK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` into `path` and verify its MD5 (a check against damage, published with the data sets).

    Raises:
        RunError: no connection, a broken-off transfer, a wrong checksum or a full disk. `path` is untouched.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        for chunk in _chunks(url, path.name):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != md5:
            raise RunError(f"the download of {url} is damaged (MD5 {digest.hexdigest()}, expected {md5}): try again")


def _chunks(url: str, name: str) -> Iterator[bytes]:
    """The body of `url` piece by piece. Only reading happens here, so each OSError is the network's."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            with progress(f"downloading {name}", float(length) if length else None) as bar:
                while chunk := response.read(_CHUNK):
                    yield chunk
                    bar.advance(len(chunk))
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise RunError(f"cannot download {url}: {error}") from error
