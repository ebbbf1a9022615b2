"""The download stage against a real server on this machine: what comes is what was meant, or one line says why not."""

import gzip
import hashlib
import json
import random
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stages import download, running
from tests.conftest import contents, copy, edit, environment, run

CONTENT = random.Random(3).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request: the first answer that is left, and the last one for ever."""

    server: "Site"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_: Any) -> None:
        pass


class Site(ThreadingHTTPServer):
    """A server that keeps the paths it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answers: list[Answer] = []
        self.asked: list[str] = []
        self.closing = threading.Event()

    def url(self, path: str = "/digits.tgz") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what some tests are about."""


def reply(status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    """An answer with a status, headers (`_` for `-`), and a body that ends with the connection."""

    def answer(request: Request) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def reset(request: Request) -> None:
    """Half of the content, then the connection is cut."""
    reply(200, CONTENT[:150_000], Content_Length=str(len(CONTENT)))(request)
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def hang_up(request: Request) -> None:
    """No answer: the connection ends."""
    request.close_connection = True


def silent(request: Request) -> None:
    """No answer: the connection stays."""
    request.server.closing.wait()


def drip(request: Request) -> None:
    """A byte now and then, for ever."""
    reply(200, b"", Content_Length=str(len(CONTENT)))(request)
    while not request.server.closing.wait(0.05):
        request.wfile.write(b"x")


GOOD = reply(200, CONTENT)
SHORT = reply(200, CONTENT[:-1], Content_Length=str(len(CONTENT)))
LOOP = reply(302, Location="/digits.tgz")
PACKED = reply(200, gzip.compress(CONTENT), Content_Encoding="gzip")


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds slept between the tries, which nobody waits for here."""
    seconds: list[float] = []
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(download, "TIMEOUT", (1, 1))
    return seconds


RETRIED = {"500 twice": [reply(500), reply(500)], "503": [reply(503)], "429": [reply(429)], "408": [reply(408)]} | {
    each.__name__: [each] for each in (reset, hang_up, silent)
}


@pytest.mark.parametrize("answers", [*RETRIED.values(), [SHORT]], ids=[*RETRIED, "short"])
def test_what_may_come_later_is_tried_again(site, waits, tmp_path, answers):
    site.answers = [*answers, GOOD]
    assert download.download(site.url(), str(tmp_path)).read_bytes() == CONTENT
    assert len(site.asked) == len(answers) + 1
    assert len(waits) == len(answers)


REFUSED = [
    (reply(404), 1, "the server answers 404 Not Found"),
    (reply(403), 1, "the server answers 403 Forbidden"),
    (reply(410), 1, "the server answers 410 Gone"),
    (reply(500), 4, "500 Server Error"),
    (SHORT, 4, "1 more expected"),
    (reset, 4, "Connection broken"),
    (hang_up, 4, "without response"),
    (silent, 4, "Read timed out"),
    (LOOP, 4 * 31, "Exceeded 30 redirects"),
    (reply(302, Location="file:///etc/hostname"), 4, "No connection adapters were found for 'file:"),
    (reply(302, Location="ftp://127.0.0.1/x"), 4, "No connection adapters were found for 'ftp:"),
    (reply(200, CONTENT, Content_Encoding="gzip"), 4, "failed to decode it"),
    (reply(200, CONTENT, Content_Length="many"), 4, "many"),
]


@pytest.mark.parametrize(("answer", "requests", "reason"), REFUSED, ids=[case[2] for case in REFUSED])
def test_what_does_not_come_is_given_up_after_four_tries(site, waits, tmp_path, answer, requests, reason):
    site.answers = [answer]
    with pytest.raises(running.Refusal) as refused:
        download.download(site.url(), str(tmp_path))
    line = running.one_line(refused.value)
    assert line is not None
    assert line.startswith(f"cannot fetch {site.url()} ({reason}" if requests == 1 else f"cannot fetch {site.url()} (")
    assert reason in line
    assert "check download.url and the network" in line
    assert len(site.asked) == requests
    assert sum(waits) <= 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["127.0.0.1:1", "127.0.0.1:99999", "a..b", "[::1", ""])
def test_an_address_where_nothing_answers_is_refused(waits, tmp_path, host):
    with pytest.raises(running.Refusal, match="cannot fetch"):
        download.download(f"http://{host}/x", str(tmp_path))
    assert len(waits) <= 3


def test_a_download_that_only_drips_is_given_up_in_time(site, tmp_path, monkeypatch):
    """The pieces come in time, but all of it would take an hour."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "DEADLINE", 1)
    site.answers = [drip]
    start = time.monotonic()
    with pytest.raises(running.Refusal, match="took over 1 s: fetch the archive by other means"):
        download.download(site.url(), str(tmp_path))
    assert time.monotonic() - start < 5
    assert signal.alarm(0) == 0
    assert not list(tmp_path.iterdir())


# The stage itself, started by hand in a copy of the sources.


@pytest.fixture
def tree(sources: Path, tmp_path: Path) -> Path:
    """A copy of the sources; whatever the stage makes besides its output goes to a folder beside it."""
    (tmp_path / "tmp").mkdir()
    return copy(sources, tmp_path / "a tree")


def start(tree: Path, url: str, digest: str = DIGEST) -> subprocess.CompletedProcess[str]:
    choose(tree, url, digest)
    return run(tree, "python", "-m", "stages.download", TMPDIR=str(tree.parent / "tmp"))


def choose(tree: Path, url: str, digest: str = DIGEST) -> None:
    file = tree / "params.yaml"
    old = next(line.split()[1] for line in file.read_text("utf-8").splitlines() if "sha256:" in line)
    edit(file, "data/mnist_sample.tgz", json.dumps(url))
    edit(file, old, digest)


def refused(done: subprocess.CompletedProcess[str], tree: Path, before: dict[str, bytes]) -> str:
    """The one line of a stage that failed and left nothing behind."""
    assert (done.returncode, done.stdout) == (1, "")
    assert contents(tree, "data") == before
    assert not list((tree.parent / "tmp").iterdir())
    assert done.stderr.startswith("download: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def written(done: subprocess.CompletedProcess[str], tree: Path) -> bytes:
    """What a stage that succeeded wrote; it wrote nothing else."""
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list((tree.parent / "tmp").iterdir())
    assert not list((tree / "data").glob(".*.tmp"))
    return (tree / "data/archive").read_bytes()


@pytest.mark.parametrize(
    ("path", "answers", "asked"),
    [
        ("/digits.tgz", [GOOD], ["/digits.tgz"]),
        ("/zwei Ziffern/größe 3.tgz?a=b c", [GOOD], ["/zwei%20Ziffern/gr%C3%B6%C3%9Fe%203.tgz?a=b%20c"]),
        ("/%20%C3%B6.tgz", [GOOD], ["/%20%C3%B6.tgz"]),
        ("/digits.tgz", [PACKED], ["/digits.tgz"]),
        ("/a", [reply(301, Location="/b%20c"), GOOD], ["/a", "/b%20c"]),
        ("/digits.tgz", [reply(500), reset, GOOD], ["/digits.tgz"] * 3),
    ],
    ids=["plain", "spaces and letters", "quoted", "gzip'd on the way", "redirected", "broken twice"],
)
def test_the_archive_comes_whole(site, tree, path, answers, asked):
    site.answers = answers
    assert written(start(tree, site.url(path)), tree) == CONTENT
    assert site.asked == asked


@pytest.mark.parametrize("outside", [False, True])
def test_a_path_may_have_spaces_and_lie_anywhere(tree, outside):
    file = tree.parent / "my größen.tgz" if outside else tree / "my größen.tgz"
    file.write_bytes(CONTENT)
    assert written(start(tree, str(file) if outside else file.name), tree) == CONTENT


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://127.0.0.1/x.tgz", "only a path, http:// or https:// can be fetched"),
        ("file:///etc/hostname", "only a path, http:// or https:// can be fetched"),
        (
            "data/no such.tgz",
            "there is no file data/no such.tgz: give a path from the root of the repository, or a URL",
        ),
        ("data", "there is no file data: give a path"),
    ],
)
def test_what_cannot_be_fetched_is_refused(tree, url, reason):
    before = contents(tree, "data")
    assert reason in refused(start(tree, url), tree, before)


def test_a_failure_keeps_the_earlier_archive(site, tree):
    (tree / "data/archive").write_bytes(b"earlier")
    before = contents(tree, "data")
    site.answers = [reply(404)]
    assert "the server answers 404 Not Found" in refused(start(tree, site.url()), tree, before)


@pytest.mark.parametrize("local", [False, True], ids=["URL", "path"])
@pytest.mark.parametrize("earlier", [False, True], ids=["first", "again"])
def test_an_archive_that_was_not_meant_is_refused(site, tree, local, earlier):
    (tree / "other.tgz").write_bytes(CONTENT)
    if earlier:
        (tree / "data/archive").write_bytes(b"earlier")
    before = contents(tree, "data")
    site.answers = [GOOD]
    source, wanted = "other.tgz" if local else site.url(), "ab" * 32
    line = refused(start(tree, source, wanted), tree, before)
    assert f"{source} has SHA-256 {DIGEST}, but download.sha256 wants {wanted}" in line
    assert "if you trust this archive, put its digest into params.yaml" in line
    assert len(site.asked) == (not local)


@pytest.mark.parametrize(("sign", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_a_download_that_is_stopped_leaves_nothing(site, tree, sign, word):
    choose(tree, site.url())
    before = contents(tree, "data")
    site.answers = [drip]
    with subprocess.Popen(
        ["python", "-m", "stages.download"], cwd=tree, env=environment(TMPDIR=str(tree.parent / "tmp")),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as stage:  # fmt: skip
        while not site.asked:
            assert stage.poll() is None
            time.sleep(0.01)
        stage.send_signal(sign)
        output, errors = stage.communicate(timeout=20)
    done = subprocess.CompletedProcess(stage.args, stage.returncode, output, errors)
    assert word in refused(done, tree, before)
