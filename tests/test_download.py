"""The download stage against a server on this machine: the archive, or one line."""

import hashlib
import json
import random
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import download
from stages.plumbing.errors import one_line
from tests.builders import refusal
from tests.conftest import contents, edit, start, succeed

CONTENT = random.Random(3).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request, which gets the next answer; the last answer is for all the rest."""

    server: "Site"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def log_message(self, *_: Any) -> None:
        """Do nothing."""


class Site(ThreadingHTTPServer):
    """A server that records the paths it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answers: list[Answer] = []
        self.asked: list[str] = []
        self.closing = threading.Event()

    def url(self, path: str = "/digits.tgz") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: Any) -> None:
        """Do nothing: some tests are about clients that hang up."""


def reply(status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    """Answer with a status, headers (`_` for `-`) and a body, then close."""
    headers = {"Content_Length": str(len(body)), **headers}

    def answer(request: Request) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def reset(request: Request) -> None:
    """Send half of the content, then reset the connection."""
    reply(200, CONTENT[:150_000], Content_Length=str(len(CONTENT)))(request)
    linger = struct.pack("ii", 1, 0)
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    request.connection.close()


def hang_up(request: Request) -> None:
    """Close the connection without an answer."""
    request.close_connection = True


def silent(request: Request) -> None:
    """Keep the connection open without an answer."""
    request.server.closing.wait()


def drip(request: Request) -> None:
    """Send a byte now and then, for ever."""
    reply(200, b"", Content_Length=str(len(CONTENT)))(request)
    while not request.server.closing.wait(0.05):
        request.wfile.write(b"x")


GOOD = reply(200, CONTENT)
SHORT = reply(200, CONTENT[:-1], Content_Length=str(len(CONTENT)))
LABELLED = reply(200, CONTENT, Content_Encoding="x-gzip")


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
    """Record the seconds between attempts instead of sleeping."""
    seconds: list[float] = []
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(download, "TIMEOUT", (1, 1))
    return seconds


RETRIED = {str(status): [reply(status)] for status in (503, 429, 425, 408)}
RETRIED |= {"500 twice": [reply(500)] * 2, "reset": [reset], "hang_up": [hang_up]}
RETRIED |= {"silent": [silent], "short": [SHORT]}


@pytest.mark.parametrize("answers", RETRIED.values(), ids=RETRIED)
def test_temporary_failures_are_retried(site, waits, tmp_path, answers):
    site.answers = [*answers, GOOD]
    download.fetch(site.url(), tmp_path / "archive")
    assert (tmp_path / "archive").read_bytes() == CONTENT
    assert len(site.asked) == len(waits) + 1 == len(answers) + 1


REFUSED = {
    "(the server returned 404 Not Found": (reply(404), 1),
    "(the server returned 403 Forbidden": (reply(403), 1),
    "500 Server Error": (reply(500), 4),
    "1 more expected": (SHORT, 4),
    "Connection broken": (reset, 4),
    "without response": (hang_up, 4),
    "Read timed out": (silent, 4),
    "Exceeded 30 redirects": (reply(302, Location="/digits.tgz"), 4 * 31),
    "adapters were found for 'file:": (reply(302, Location="file:///etc/hostname"), 4),
    "many": (reply(200, CONTENT, Content_Length="many"), 4),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_permanent_failures_are_given_up_after_four_attempts(
    site, waits, tmp_path, reason
):
    answer, requests = REFUSED[reason]
    site.answers = [answer]
    line = refusal(download.fetch, site.url(), tmp_path / "archive")
    assert line.startswith(f"cannot fetch {site.url()} (")
    assert reason in line
    assert "check download.url and the network" in line
    assert len(site.asked) == requests
    assert sum(waits) <= 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["127.0.0.1:1", "127.0.0.1:99999", "a..b", "[::1", ""])
def test_an_address_where_nothing_answers_is_refused(waits, tmp_path, host):
    line = refusal(download.fetch, f"http://{host}/x", tmp_path / "archive")
    assert line.startswith(f"cannot fetch http://{host}/x (")
    assert len(waits) <= 3


def test_a_download_that_only_drips_is_given_up(site, tmp_path, monkeypatch):
    """Every piece comes in time, but all of them would take hours."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "DEADLINE", 1)
    site.answers = [drip]
    begun = time.monotonic()
    line = refusal(download.fetch, site.url(), tmp_path / "archive")
    assert "took over 1 s: fetch the archive by other means" in line
    assert time.monotonic() - begun < 5
    assert not list(tmp_path.iterdir())


# The stage itself, in a copy of the sources.


def run_stage(
    tree: Path,
    url: str,
    digest: str = DIGEST,
    *,
    earlier: bytes = b"",
    stop: Callable[[subprocess.Popen[str]], None] | None = None,
    variable: tuple[str, str] = ("LC_ALL", "C.UTF-8"),
) -> str:
    """Run the stage; return its error. No file is left but the archive, old or new."""
    archive = tree / "data/archive"
    if earlier:
        archive.write_bytes(earlier)
    before, beside = contents(tree, "data"), set(tree.parent.iterdir())
    params = tree / "params.yaml"
    old = re.search("[0-9a-f]{64}", params.read_text("utf-8"))
    assert old
    edit(params, "data/mnist_sample.tgz", json.dumps(url))
    edit(params, old[0], digest)
    stage = start(
        tree, "python", "-m", "stages", "download", limit=None, **dict([variable])
    )
    if stop:
        stop(stage)
    output, error = stage.communicate(timeout=30)
    assert output == ""
    assert set(tree.parent.iterdir()) == beside  # TMPDIR
    if stage.returncode:
        assert error.startswith("download: ")
        assert (stage.returncode, error.count("\n")) == (1, 1)
    else:
        assert error == ""
        before["data/archive"] = CONTENT
    assert contents(tree, "data") == before
    return error


SPACES = "/zwei Ziffern/größe 3.tgz?a=b c"
QUOTED = "/zwei%20Ziffern/gr%C3%B6%C3%9Fe%203.tgz?a=b%20c"
SUCCESSES = [
    (SPACES, [GOOD], [QUOTED]),
    (QUOTED, [GOOD], [QUOTED]),
    ("/called an encoding.tgz", [LABELLED], ["/called%20an%20encoding.tgz"]),
    ("/a", [reply(301, Location="/b%20c"), GOOD], ["/a", "/b%20c"]),
]


@pytest.mark.parametrize(("path", "answers", "asked"), SUCCESSES)
def test_the_archive_comes_whole(site, tree, path, answers, asked):
    site.answers = list(answers)
    assert run_stage(tree, site.url(path)) == ""
    assert site.asked == asked


def test_the_server_is_asked_for_the_file_as_it_is(site, tmp_path, monkeypatch):
    """Not compressed on the way, even if it would be."""
    monkeypatch.setenv("NO_PROXY", "*")

    def answer(request: Request) -> None:
        assert request.headers["Accept-Encoding"] == "identity"
        GOOD(request)

    site.answers = [answer]
    download.fetch(site.url(), tmp_path / "archive")


@pytest.mark.parametrize("variable", ["NETRC", "HOME"])
def test_a_password_in_netrc_is_used(site, tree, variable):
    def answer(request: Request) -> None:
        known = request.headers["Authorization"] == "Basic YW5uYTpnZWhlaW0="
        (GOOD if known else reply(401))(request)

    site.answers = [answer]
    file = tree.parent / (".netrc" if variable == "HOME" else "passwords")
    file.write_text("machine 127.0.0.1 login anna password geheim\n", "utf-8")
    file.chmod(0o600)
    path = tree.parent if variable == "HOME" else file
    assert run_stage(tree, site.url(), variable=(variable, str(path))) == ""


@pytest.mark.parametrize("variable", download.BUNDLES)
def test_the_certificates_that_the_caller_names_are_trusted(site, tree, variable):
    bundle = tree.parent / "company.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    names = ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(bundle), "-out", str(tree.parent / "certificate")]
    succeed(tree, *command.split(), *names, *files)
    with bundle.open("a", encoding="utf-8") as file:
        file.write((tree.parent / "certificate").read_text("utf-8"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(bundle)
    site.socket = server.wrap_socket(site.socket, server_side=True)
    site.answers = [GOOD]
    url = site.url().replace("http:", "https:")
    assert run_stage(tree, url, variable=(variable, str(bundle))) == ""


@pytest.mark.parametrize("variable", download.BUNDLES)
def test_certificates_that_are_missing_are_named(waits, monkeypatch, variable):
    for name in download.BUNDLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/nowhere/ca.pem")
    line = refusal(download.fetch, "https://127.0.0.1:1/x", Path("archive"))
    assert line == f"{variable}: there is no /nowhere/ca.pem: correct or unset it"
    assert not waits


def test_the_full_disk_is_the_one_for_temporary_files(site, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    site.answers = [GOOD]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failed:
            download.fetch(site.url(), tmp_path / "archive")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert one_line(failed.value) == f"{tmp_path}: File too large"


@pytest.mark.parametrize("outside", [False, True])
def test_a_path_may_have_spaces_and_lie_outside_the_repository(tree, outside):
    name = "my größen.tgz"
    file = tree.parent / name if outside else tree / name
    file.write_bytes(CONTENT)
    assert run_stage(tree, str(file) if outside else name) == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ftp://127.0.0.1/x.tgz", "only a path, http:// or https:// can be fetched"),
        ("file:///etc/hostname", "only a path, http:// or https:// can be fetched"),
        ("data/no such.tgz", "there is no file data/no such.tgz: give a path"),
        ("data", "there is no file data: give a path from the root of the"),
    ],
)
def test_what_is_neither_a_file_nor_on_the_web_is_refused(tree, source, message):
    assert message in run_stage(tree, source)


@pytest.mark.parametrize("earlier", [b"", b"earlier"], ids=["first", "again"])
def test_an_archive_with_another_digest_is_refused(site, tree, earlier):
    site.answers = [GOOD]
    line = run_stage(tree, site.url(), "ab" * 32, earlier=earlier)
    said = f"{site.url()} has SHA-256 {DIGEST}, but download.sha256 is {'ab' * 32}"
    assert f"{said}: if you trust this archive, put its digest into params.yaml" in line
    assert len(site.asked) == 1


def test_several_archives_come_as_a_folder_of_the_right_number(site, tree):
    """From the web and from the disk, after a longer list or a single archive."""
    others = {f"{i}.tgz": CONTENT[i:] for i in (1, 2)}
    params = {"url": [site.url(), *others], "sha256": [DIGEST]}
    for name, content in others.items():
        (tree / name).write_bytes(content)
        params["sha256"].append(hashlib.sha256(content).hexdigest())
    text = (tree / "params.yaml").read_text("utf-8")
    site.answers = [GOOD]
    for count in (3, 2, 0):  # 0: the list is what was in params.yaml before
        section = {key: values[:count] for key, values in params.items()}
        changed = yaml.safe_dump({"download": section}) if count else text
        (tree / "params.yaml").write_text(changed, "utf-8")
        assert succeed(tree, "python", "-m", "stages", "download") == ""
        expected = [CONTENT, *others.values()][:count]
        found = {f"archive/{i:04}": content for i, content in enumerate(expected)}
        if not count:
            found = {"archive": (tree / "data/mnist_sample.tgz").read_bytes()}
        archives = contents(tree / "data", ".")
        assert {k: v for k, v in archives.items() if "archive" in k} == found


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_of_several_archives_all_come_or_none(wrong):
    urls, digests = ["0.tar", "1.tar", "2.tar"], []
    for i, url in enumerate(urls):
        Path(url).write_bytes(CONTENT[i:])
        digests.append(hashlib.sha256(CONTENT[i + 3 * (i == wrong) :]).hexdigest())
    section = {"url": urls, "sha256": digests}
    Path("params.yaml").write_text(yaml.safe_dump({"download": section}), "utf-8")
    assert refusal(download.main).startswith(f"{wrong}.tar has SHA-256 ")
    assert not Path("data/archive").exists()


@pytest.mark.parametrize(
    ("number", "word"),
    [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")],
)
def test_a_download_that_is_stopped_leaves_nothing(site, tree, number, word):
    site.answers = [drip]

    def stop(stage: subprocess.Popen[str]) -> None:
        while not site.asked:
            assert stage.poll() is None
            time.sleep(0.01)
        stage.send_signal(number)

    assert word in run_stage(tree, site.url(), stop=stop)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path):
    path = tmp_path / "digits.tgz"
    oid = "oid sha256:" + DIGEST
    path.write_text(f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 300000\n")
    said = refusal(download.check_digest, path, "digits.tgz", DIGEST)
    assert said.endswith("is a pointer: install Git LFS, run git lfs pull")


@pytest.mark.parametrize("start", ["<!DOCTYPE html>", "\n  <html lang='en'>"])
def test_the_page_of_a_network_to_log_in_to_is_named(tmp_path: Path, start):
    """With the status 200, so nobody is to write its digest into params.yaml."""
    path = tmp_path / "archive"
    path.write_text(f"{start}<title>Welcome</title>")
    said = refusal(download.check_digest, path, "https://a.example/a.tgz", DIGEST)
    assert "a.tgz is a web page, not an archive: open it in a browser" in said
    assert "digest" not in said
