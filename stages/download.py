"""Fetch the archive from a path or a URL, and check its digest."""

import hashlib
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from stages.plumbing import artifacts, hermetic, parameters
from stages.plumbing.errors import UserError

TIMEOUT = (10, 60)
"""Seconds to wait for a connection, and for the next piece."""
DEADLINE = 3600
"""Seconds after which the content is given up, however steadily it drips."""
ATTEMPTS = 4
TRANSIENT = {408, 425, 429}


def fetch(url: str, target: Path) -> None:
    """Download an http(s) URL to a file, with a progress bar on a terminal.

    A connection that fails or breaks and an answer that says "later" are tried four
    times in all. Raises UserError for what does not come, and leaves no file then.
    """
    import requests
    import urllib3

    # ValueError: a host or a header that makes no sense.
    failures = (requests.RequestException, urllib3.exceptions.HTTPError, ValueError)
    deadline = time.monotonic() + DEADLINE
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _fetch_once(url, target, deadline)
            except failures as error:
                if attempt == ATTEMPTS:
                    raise _failure(url, str(error)) from None
            time.sleep(attempt)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _fetch_once(url: str, target: Path, deadline: float) -> None:
    import requests

    with requests.get(url, stream=True, timeout=TIMEOUT) as answer:
        code = answer.status_code
        if 400 <= code < 500 and code not in TRANSIENT:
            raise _failure(url, f"the server answers {code} {answer.reason}")
        answer.raise_for_status()
        size = int(answer.headers.get("Content-Length", 0)) or None
        bar = tqdm(
            None, "download", size, unit="B", unit_scale=True, delay=1, disable=None
        )
        with target.open("wb") as file, bar:
            # read1 returns what has come, so that a slow server meets the deadline.
            while piece := answer.raw.read1(2**20, decode_content=True):
                file.write(piece)
                bar.update(len(piece))
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the download took over {DEADLINE} s: fetch the archive by "
                        "other means and set download.url to its path"
                    )


def _failure(url: str, reason: str) -> UserError:
    return UserError(
        f"cannot fetch {url} ({reason}): "
        "check download.url and the network, then run dvc repro again"
    )


def check_digest(archive: Path, source: str, expected: str) -> None:
    """Raise UserError unless the SHA-256 of the file is the expected one."""
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise UserError(
            f"{source} has SHA-256 {actual}, but download.sha256 wants {expected}: "
            "if you trust this archive, put its digest into params.yaml; "
            "if not, find out who changed it"
        )


def main() -> None:
    """Write data/archive."""
    params = parameters.load(parameters.Download)
    url = params.url
    hermetic.permit(url)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(url)
        if url.startswith(("http://", "https://")):
            archive = Path(folder, "archive")
            fetch(url, archive)
        elif "://" in url:
            raise UserError(
                f"download.url: {url}: only a path, http:// or https:// can be fetched"
            )
        elif not archive.is_file():
            raise UserError(
                f"download.url: there is no file {url}: "
                "give a path from the root of the repository, or a URL"
            )
        check_digest(archive, url, params.sha256)
        artifacts.publish({artifacts.ARCHIVE: archive})
