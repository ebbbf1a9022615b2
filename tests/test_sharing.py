"""Nobody rebuilds what a colleague has pushed, and a broken remote costs only time."""

import getpass
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from dvc.repo import Repo

from tests.conftest import commit, edit, environment, home, run, stages_run, succeed


def add_remote(clone: Path, **options: str) -> None:
    """Make a DVC remote the default of a clone, and commit that."""
    config = clone / ".dvc/config"
    edit(config, "[core]\n", "[core]\n    remote = store\n")
    with config.open("a", encoding="utf-8") as file:
        file.write("['remote \"store\"']\n")
        file.writelines(f"    {name} = {value}\n" for name, value in options.items())
    commit(clone, "share the cache")


@pytest.fixture
def remote(clone: Path, tmp_path: Path) -> Path:
    """An empty folder that is the default remote of the clone, whose cache is full."""
    folder = tmp_path / "the remote"
    add_remote(clone, url=str(folder))
    return folder


def fresh_clone(clone: Path) -> Path:
    """Clone as a colleague would: the commits, and no cache."""
    colleague = clone.parent / "colleague"
    succeed(clone, "git", "clone", "--quiet", str(clone), str(colleague))
    return colleague


def assert_same_outputs(folder: Path, other: Path) -> None:
    for name in ("data/tensors.npz", "models/model.npz", "metrics/report.html"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()


def assert_nothing_runs_after_a_push(clone: Path, **variables: str) -> None:
    """In a fresh clone, which then has the same outputs."""
    succeed(clone, "dvc", "push", **variables)
    colleague = fresh_clone(clone)
    assert stages_run(succeed(colleague, "dvc", "repro", "--pull", **variables)) == []
    assert_same_outputs(clone, colleague)
    assert succeed(colleague, "git", "status", "--porcelain") == ""


@pytest.mark.usefixtures("remote")
def test_after_a_push_a_fresh_clone_runs_nothing(clone: Path):
    assert_nothing_runs_after_a_push(clone)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(port: int, *command: str) -> Iterator[None]:
    """Run a server, from when it listens (for half a minute at most)."""
    with subprocess.Popen(
        command, env=environment(), stderr=subprocess.DEVNULL
    ) as server:
        try:
            for _ in range(300):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


@pytest.mark.slow
def test_the_same_through_s3(clone: Path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    keys = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with serving(port, "moto_server", "-p", str(port)):
        request = urllib.request.Request(f"{address}/bucket", method="PUT")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        add_remote(clone, url="s3://bucket/digits", endpointurl=address)
        assert_nothing_runs_after_a_push(clone, **keys)


SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@pytest.mark.slow
@pytest.mark.skipif(not SSHD, reason="OpenSSH's server is not installed")
def test_the_same_through_ssh(clone: Path, tmp_path: Path):
    for name in ("host", "user"):
        succeed(tmp_path, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
    (tmp_path / "authorized").write_text((tmp_path / "user.pub").read_text())
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "PidFile": "none",
        "UsePAM": "no",
        "AuthorizedKeysFile": tmp_path / "authorized",
        "StrictModes": "no",
        "Subsystem": "sftp internal-sftp",
    }
    lines = [f"{key} {value}\n" for key, value in settings.items()]
    (tmp_path / "config").write_text("".join(lines))
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    with serving(port, str(SSHD), "-D", "-f", str(tmp_path / "config")):
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/remote"
        add_remote(clone, url=url, keyfile=str(tmp_path / "user"))
        assert_nothing_runs_after_a_push(clone)


@pytest.mark.slow
def test_a_fresh_clone_builds_if_the_remote_cannot_be_reached(
    clone: Path, remote: Path
):
    succeed(clone, "dvc", "push")
    shutil.rmtree(remote)
    colleague = fresh_clone(clone)
    succeed(colleague, "dvc", "repro", "--pull")
    assert (colleague / "dvc.lock").read_bytes() == (clone / "dvc.lock").read_bytes()


def kill_after(seconds: float, folder: Path, *command: str) -> None:
    """Start a command, and kill it if it has not ended by then."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**home(folder)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("remote")
@pytest.mark.parametrize("seconds", [1.0, 1.3])
def test_a_push_and_a_pull_killed_midway_and_then_repeated_are_whole(
    clone: Path, seconds: float
):
    """DVC's index may name what a killed push never sent (DVC 3.67): it is removed."""
    index = Path(home(clone)["DVC_SITE_CACHE_DIR"])
    kill_after(seconds, clone, "dvc", "push")
    shutil.rmtree(index, ignore_errors=True)
    succeed(clone, "dvc", "push")
    colleague = fresh_clone(clone)
    kill_after(seconds, colleague, "dvc", "pull")
    shutil.rmtree(index, ignore_errors=True)
    succeed(colleague, "dvc", "pull")
    assert Repo(str(colleague)).status() == {}
    assert_same_outputs(clone, colleague)


@pytest.mark.slow
@pytest.mark.usefixtures("remote")
def test_with_the_run_cache_a_colleague_gets_what_an_earlier_commit_made(clone: Path):
    """Other classes, tried and put back.

    Their tensors are shared, but no stage with metrics, which are in Git.
    """
    other = ('classes: ["3", "7"]', 'classes: ["7", "3"]')
    edit(clone / "params.yaml", *other)
    succeed(clone, "dvc", "repro")
    tried = (clone / "data/tensors.npz").read_bytes()
    commit(clone, "try")
    succeed(clone, "git", "checkout", "--quiet", "HEAD~1", ".")
    commit(clone, "put back")
    succeed(clone, "dvc", "push", "--run-cache", "--all-commits")
    colleague = fresh_clone(clone)
    succeed(colleague, "dvc", "fetch", "--run-cache", "--all-commits")
    edit(colleague / "params.yaml", *other)
    rerun = stages_run(succeed(colleague, "dvc", "repro", "--pull"))
    assert rerun == ["baseline", "train", "report"]
    assert (colleague / "data/tensors.npz").read_bytes() == tried


def test_a_damaged_object_in_the_remote_is_not_taken(clone: Path, remote: Path):
    succeed(clone, "dvc", "push")
    wanted = (clone / "models/model.npz").read_bytes()
    for path in remote.rglob("*"):
        if path.is_file() and path.read_bytes() == wanted:
            path.chmod(0o644)
            path.write_bytes(b"damaged")
    colleague = fresh_clone(clone)
    run(colleague, "dvc", "repro", "--pull")
    assert (colleague / "models/model.npz").read_bytes() == wanted
