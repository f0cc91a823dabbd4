"""Downloads that resume after an interruption and are checked against a checksum."""

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cmcore.errors import DataError

CHUNK, TIMEOUT = 2**20, 30.0
Progress = Callable[[int, int], None]


def download(url: str, path: Path, sha256: str, size: int, progress: Progress | None = None) -> None:
    """Download `url` to `path`, through a partial file beside it that a later call resumes.

    Args:
        url: the address.
        path: the target; an existing file is left alone.
        sha256: the expected checksum.
        size: the expected bytes; no more are read.
        progress: called with (bytes so far, size).

    Raises:
        DataError: the download failed or the checksum differs; the message gives the manual alternative.
    """
    if path.exists():
        return
    partial = path.with_name(f"{path.name}.part")
    by_hand = f"fetch it by hand, put it at {path}, and go on"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, partial, size, progress or (lambda done, total: None))
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are of the first kind
        reason = getattr(error, "reason", error)
        raise DataError(f"{url}: cannot be downloaded ({reason}); try again to continue, or {by_hand}") from error
    with partial.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        partial.unlink()
        raise DataError(f"{url}: expected sha256 {sha256}, got {got}; try again, or {by_hand}")
    partial.rename(path)


def _fetch(url: str, partial: Path, size: int, progress: Progress) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    if done >= size:
        return  # the checksum decides
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        done = done if answer.status == http.client.PARTIAL_CONTENT else 0
        with partial.open("r+b" if done else "wb") as file:
            file.seek(done)
            while done < size and (chunk := answer.read(min(CHUNK, size - done))):
                file.write(chunk)
                done += len(chunk)
                progress(done, size)
            file.flush()
            os.fsync(file.fileno())
    if done < size:
        raise OSError(f"it ended after {done} of {size} bytes")
