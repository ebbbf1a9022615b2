"""Fetch the archive from a path or a URL, and check its digest."""

import hashlib
import os
import re
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from stages.plumbing import artifacts, parameters
from stages.plumbing.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The start of the file that Git checks out instead if Git LFS is not installed."""
WEB_PAGE = re.compile(rb"\s*<(!doctype\s+)?html", re.IGNORECASE)
"""The start of what a network sends instead of a file until the user has logged in."""
TIMEOUT = (10, 60)
"""Connect and read timeouts, in seconds."""
DEADLINE = 3600
"""Limit on the whole download in seconds, even if data keeps arriving."""
ATTEMPTS = 4
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Environment variables that name the certificates to trust, in order of precedence."""
# Request timeout, too early, too many requests. Every 5xx is retried, too.
RETRIED_4XX = {408, 425, 429}


def fetch(url: str, target: Path) -> None:
    """Download an http(s) URL to a file, with a progress bar on a terminal.

    Retries failed connections and transient HTTP errors, up to ATTEMPTS tries in all.
    On failure, removes the partial file and raises UserError.
    """
    import requests  # deferred: a local path needs neither
    import urllib3

    # While reading the body, requests lets urllib3's errors through. For an invalid
    # host or header, it raises ValueError.
    failures = (requests.RequestException, urllib3.exceptions.HTTPError, ValueError)
    deadline = time.monotonic() + DEADLINE
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _fetch_once(url, target, deadline)
            except failures as error:
                if attempt == ATTEMPTS:
                    raise _failure(url, str(error)) from None
            time.sleep(attempt)  # linear backoff
    except BaseException:  # Ctrl-C, too, must leave no partial file
        target.unlink(missing_ok=True)
        raise


def _fetch_once(url: str, target: Path, deadline: float) -> None:
    import requests
    from tqdm import tqdm

    # The digest is that of the file: not to be compressed on the way, and not to be
    # decompressed because a server calls the .gz in its name an encoding.
    headers = {"Accept-Encoding": "identity"}
    options: dict[str, Any] = {"stream": True, "timeout": TIMEOUT, "headers": headers}
    with requests.get(url, verify=_certificates(), **options) as response:
        status = response.status_code
        if 400 <= status < 500 and status not in RETRIED_4XX:
            # A UserError is not among `failures`, so it is not retried.
            raise _failure(url, f"the server returned {status} {response.reason}")
        response.raise_for_status()
        # Without a length (chunked encoding), tqdm shows no percentage.
        size = int(response.headers.get("Content-Length", 0)) or None
        bar = tqdm(
            None, "download", size, unit="B", unit_scale=True, delay=1, disable=None
        )
        # The folder for temporary files may be on another disk.
        full = artifacts.name_full_disk(str(target.parent))
        with full, target.open("wb") as file, bar:
            # read1 returns as soon as any data arrives, so the deadline is checked even
            # on a slow connection.
            while chunk := response.raw.read1(2**20, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the download took over {DEADLINE} s: fetch the archive by "
                        "other means and set download.url to its path"
                    )


def _certificates() -> str | bool:
    """Return the certificates that the caller names, or True for those of certifi."""
    for name in BUNDLES:
        if path := os.environ.get(name):
            if not os.path.exists(path):
                raise UserError(f"{name}: there is no {path}: correct or unset it")
            return path
    return True


def _failure(url: str, reason: str) -> UserError:
    return UserError(
        f"cannot fetch {url} ({reason}): "
        "check download.url and the network, then run dvc repro again"
    )


def check_digest(archive: Path, source: str, expected: str) -> None:
    """Raise UserError unless the SHA-256 of the file is the expected one."""
    with archive.open("rb") as file:  # read in chunks: it may be larger than memory
        actual = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        start = file.read(2**10)
    if actual == expected:
        return
    if start.startswith(LFS_POINTER):
        raise UserError(f"{source} is a pointer: install Git LFS, run git lfs pull")
    if WEB_PAGE.match(start):
        raise UserError(
            f"{source} is a web page, not an archive: open it in a browser to log in, "
            "or correct download.url"
        )
    raise UserError(
        f"{source} has SHA-256 {actual}, but download.sha256 is {expected}: "
        "if you trust this archive, put its digest into params.yaml; "
        "if not, find out who changed it"
    )


def find_archive(url: str) -> Path | None:
    """Return the path of a local archive, or None for an http(s) URL.

    Raises UserError for any other URL, and for a path that is not a file.
    """
    if url.startswith(("http://", "https://")):
        return None
    if "://" in url:
        raise UserError(
            f"download.url: {url}: only a path, http:// or https:// can be fetched"
        )
    if not Path(url).is_file():
        raise UserError(
            f"download.url: there is no file {url}: give a path from the root of the "
            "repository, or a URL; if Git ignores the file, copy it here, or run "
            f"dvc pull {artifacts.ARCHIVE} if there is a DVC remote"
        )
    return Path(url)


def sources(config: parameters.Download) -> dict[str, tuple[str, str]]:
    """Return the URL and the digest of each archive, by the path to write it to."""
    paths = [artifacts.ARCHIVE]
    if not isinstance(config.url, str):
        paths = artifacts.numbered(artifacts.ARCHIVE, len(config.url))
    return dict(zip(paths, config.digests.items(), strict=True))


def main() -> None:
    """Write data/archive: a file or, for a list of archives, a folder of files."""
    config = parameters.load(parameters.Download)
    remove_folder = partial(shutil.rmtree, artifacts.ARCHIVE, ignore_errors=True)
    remove_folder()  # as DVC does: the list may have been longer
    try:
        # The first one last: preprocess refuses a folder without it.
        for path, (url, digest) in reversed(sources(config).items()):
            with tempfile.TemporaryDirectory() as folder:
                archive = find_archive(url)
                if not archive:
                    archive = Path(folder, "archive")
                    fetch(url, archive)
                check_digest(archive, url, digest)
                # Copied even if local, so that preprocess depends on a fixed path.
                artifacts.publish({path: archive})
    except BaseException:  # Ctrl-C, too, must leave no part of a folder
        remove_folder()
        raise
