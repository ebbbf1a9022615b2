"""Fetch the archive from a path or over http(s), and make sure that it is the one that was meant."""

import hashlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from stages import hermetic, parameters
from stages.artifacts import ARCHIVE, publish
from stages.running import Refusal

TIMEOUT = (10, 60)
"""Seconds to wait for a connection, and then for the next piece."""
DEADLINE = 3600
"""Seconds after which a download is given up, however steadily it drips."""
RETRIES = 3
TRANSIENT = {408, 425, 429}


def download(url: str, folder: str) -> Path:
    """Fetch an http(s) URL into `folder`, with a progress bar on a terminal.

    Connections that fail or break and answers that say "later" are tried three times more. Raises Refusal
    for what does not come.
    """
    import pooch
    import requests

    def fetch(url: str, output_file: str, _: object) -> None:
        try:
            pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)(url, output_file, None)
        except requests.HTTPError as error:
            answer = error.response
            if answer is not None and answer.status_code < 500 and answer.status_code not in TRANSIENT:
                raise Refusal(_failure(url, f"the server answers {answer.status_code} {answer.reason}")) from None
            raise

    pooch.get_logger().setLevel("ERROR")
    source = pooch.create(folder, "", registry={"archive": None}, urls={"archive": url}, retry_if_failed=RETRIES)
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(DEADLINE)
    try:
        return Path(source.fetch("archive", downloader=fetch))
    except (requests.RequestException, ValueError) as error:  # ValueError: a host or a header that makes no sense
        raise Refusal(_failure(url, str(error))) from None
    finally:
        signal.alarm(0)


def check_digest(archive: Path, source: str, wanted: str) -> None:
    """Raise Refusal unless the SHA-256 of the file is the wanted one."""
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != wanted:
        msg = (
            f"{source} has SHA-256 {actual}, but download.sha256 wants {wanted}: "
            "if you trust this archive, put its digest into params.yaml; if not, find out who changed it"
        )
        raise Refusal(msg)


def _failure(url: str, reason: str) -> str:
    return f"cannot fetch {url} ({reason}): check download.url and the network, then run dvc repro again"


def _too_slow(*_: object) -> None:
    msg = f"the download took over {DEADLINE} s: fetch the archive by other means and set download.url to its path"
    raise Refusal(msg)


def main() -> None:
    """Write data/archive."""
    chosen = parameters.load(parameters.Download)
    hermetic.permit(chosen.url)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.url.startswith(("http://", "https://")):
            archive = download(chosen.url, folder)
        elif "://" in chosen.url:
            msg = f"download.url: {chosen.url}: only a path, http:// or https:// can be fetched"
            raise Refusal(msg)
        elif os.path.isfile(chosen.url):
            archive = Path(chosen.url)
        else:
            msg = f"download.url: there is no file {chosen.url}: give a path from the root of the repository, or a URL"
            raise Refusal(msg)
        check_digest(archive, chosen.url, chosen.sha256)
        publish({ARCHIVE: archive})


if __name__ == "__main__":
    main()
