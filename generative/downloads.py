"""Files from the internet: each is whole and of the published digest, or not there."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from generative.runs import claimed, written_whole

BLOCK = 2**16  # bytes
TIMEOUT = 30  # seconds without a byte


def download(addresses: Sequence[str], path: Path, md5: str) -> None:
    """Fetch a file to `path` from the first address that gives it.

    What has come so far stays in a file beside `path`, `NAME.part`. The next call asks only for the
    rest of it, if the server can send a part of a file.

    Parameters
    ----------
    addresses : sequence of str
        Where the same file is.
    md5 : str
        The MD5 digest of the whole file, in hexadecimal.

    Raises
    ------
    ValueError
        If no address gives the file, if its digest is another one, or if its folder cannot be
        written to or another process downloads to it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}") from None
    part = path.with_name(path.name + ".part")
    reasons = []
    with claimed(path.parent):
        for address in addresses:
            try:
                _fetch_whole(address, part, md5)
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                reasons.append(f"{address} ({error})")
                continue
            with written_whole(path) as temporary:
                part.replace(temporary)
            return
    raise ValueError(
        f"cannot download {path.name}: {'; '.join(reasons)}; put the file into {path.parent}"
    )


def _fetch_whole(address: str, part: Path, md5: str) -> None:
    """Complete a file of this digest; what is there of another file is fetched anew."""
    resumed = part.exists()
    _fetch(address, part)
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found == md5:
        return
    part.unlink()
    if not resumed:
        raise OSError("what it sends is not the published file: its MD5 is another one")
    _fetch_whole(address, part, md5)


def _fetch(address: str, part: Path) -> None:
    """Add to what there is of a file until it is complete."""
    had = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={had}-"} if had else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # there is no more of it
            error.close()
            return
        raise
    with answer:
        if answer.status != http.client.PARTIAL_CONTENT:
            had = 0
        length = answer.headers.get("Content-Length")
        total = had + int(length) if length else None
        name = part.stem
        with (
            open(part, "ab" if had else "wb") as file,
            tqdm(total=total, initial=had, unit="B", unit_scale=True, desc=name) as progress,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                progress.update(len(block))
            if total is not None and file.tell() < total:
                raise http.client.HTTPException("the connection broke off")
