"""What one has built and pushed nobody builds again; a remote that fails costs time, never a result."""

import getpass
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import commit, edit, environment, run, stages_run, succeed


@pytest.fixture
def remote(clone: Path, tmp_path: Path) -> Path:
    """An empty folder that is the default remote of the clone, whose own cache is full."""
    folder = tmp_path / "the remote"
    succeed(clone, "dvc", "remote", "add", "--default", "store", str(folder))
    commit(clone, "share the cache")
    return folder


def fresh_clone(clone: Path) -> Path:
    """What a colleague gets: the commits, and no cache."""
    colleague = clone.parent / "colleague"
    succeed(clone, "git", "clone", "--quiet", str(clone), str(colleague))
    return colleague


def assert_same_outputs(folder: Path, other: Path) -> None:
    for name in ("data/tensors.npz", "models/linear.npz", "metrics/report.html"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()


def assert_nothing_runs_after_a_push(clone: Path, **variables: str) -> None:
    """In a fresh clone, which has the same outputs then."""
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


def wait_for(port: int) -> None:
    """Until a server listens, for half a minute at most."""
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.1)


@pytest.mark.slow
def test_the_same_through_s3(clone: Path):
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    with subprocess.Popen(["moto_server", "-p", str(port)], env=environment(), stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200
            succeed(clone, "dvc", "remote", "add", "--default", "store", "s3://bucket/digits")
            succeed(clone, "dvc", "remote", "modify", "store", "endpointurl", f"http://127.0.0.1:{port}")
            commit(clone, "share the cache")
            assert_nothing_runs_after_a_push(clone, **keys)
        finally:
            server.terminate()


SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@pytest.mark.slow
@pytest.mark.skipif(not SSHD, reason="OpenSSH's server is not installed")
def test_the_same_through_ssh(clone: Path, tmp_path: Path):
    for name in ("host", "user"):
        succeed(tmp_path, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
    (tmp_path / "authorized").write_text((tmp_path / "user.pub").read_text())
    port = free_port()
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host", "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": tmp_path / "authorized", "StrictModes": "no", "Subsystem": "sftp internal-sftp",
    }  # fmt: skip
    (tmp_path / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    with subprocess.Popen([str(SSHD), "-D", "-f", str(tmp_path / "config")], stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            remote = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/remote"
            succeed(clone, "dvc", "remote", "add", "--default", "store", remote)
            succeed(clone, "dvc", "remote", "modify", "store", "keyfile", str(tmp_path / "user"))
            commit(clone, "share the cache")
            assert_nothing_runs_after_a_push(clone)
        finally:
            server.terminate()


@pytest.mark.slow
def test_where_the_remote_cannot_be_reached_a_fresh_clone_builds(clone: Path, remote: Path):
    succeed(clone, "dvc", "push")
    shutil.rmtree(remote)
    colleague = fresh_clone(clone)
    succeed(colleague, "dvc", "repro", "--pull")
    assert (colleague / "dvc.lock").read_bytes() == (clone / "dvc.lock").read_bytes()


def kill_after(seconds: float, folder: Path, *command: str) -> None:
    """Start a command and kill it, if it has not ended by then."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment(HOME=str(folder.parent)),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("remote")
@pytest.mark.parametrize("seconds", [1.0, 1.3])
def test_a_push_and_a_pull_killed_in_the_middle_and_then_repeated_are_whole(clone: Path, seconds: float):
    kill_after(seconds, clone, "dvc", "push")
    succeed(clone, "dvc", "push")
    colleague = fresh_clone(clone)
    kill_after(seconds, colleague, "dvc", "pull")
    succeed(colleague, "dvc", "pull")
    assert run(colleague, "dvc", "status", "--quiet").returncode == 0
    assert_same_outputs(clone, colleague)


@pytest.mark.slow
@pytest.mark.usefixtures("remote")
def test_with_the_run_cache_a_colleague_gets_what_an_earlier_commit_made(clone: Path):
    """Other classes, tried and put back: their tensors are shared, but no stage with metrics, which are Git's."""
    other = ('classes: ["3", "7"]', 'classes: ["7", "3"]')
    edit(clone / "params.yaml", *other)
    succeed(clone, "dvc", "repro")
    tried = (clone / "data/tensors.npz").read_bytes()
    commit(clone, "try")
    succeed(clone, "git", "checkout", "--quiet", "HEAD~1", ".")
    succeed(clone, "dvc", "checkout")
    commit(clone, "put back")
    succeed(clone, "dvc", "push", "--run-cache", "--all-commits")
    colleague = fresh_clone(clone)
    succeed(colleague, "dvc", "fetch", "--run-cache", "--all-commits")
    edit(colleague / "params.yaml", *other)
    assert stages_run(succeed(colleague, "dvc", "repro", "--pull")) == ["baseline", "train", "report"]
    assert (colleague / "data/tensors.npz").read_bytes() == tried


def test_a_damaged_object_in_the_remote_is_not_taken(clone: Path, remote: Path):
    succeed(clone, "dvc", "push")
    wanted = (clone / "models/linear.npz").read_bytes()
    for path in remote.rglob("*"):
        if path.is_file() and path.read_bytes() == wanted:
            path.chmod(0o644)
            path.write_bytes(b"damaged")
    colleague = fresh_clone(clone)
    run(colleague, "dvc", "repro", "--pull")
    assert (colleague / "models/linear.npz").read_bytes() == wanted
