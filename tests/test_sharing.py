"""What one has built and pushed nobody builds again; a remote that fails costs time, never a result."""

import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import commit, environment, run, stages_run, succeed


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


@pytest.mark.usefixtures("remote")
def test_after_a_push_a_fresh_clone_runs_nothing(clone: Path):
    succeed(clone, "dvc", "push")
    colleague = fresh_clone(clone)
    assert stages_run(succeed(colleague, "dvc", "repro", "--pull")) == []
    for name in ("data/tensors.npz", "models/linear.npz", "metrics/report.html"):
        assert (colleague / name).read_bytes() == (clone / name).read_bytes()
    assert succeed(colleague, "git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_the_same_through_s3(clone: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    with subprocess.Popen(["moto_server", "-p", str(port)], env=environment(), stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200
            succeed(clone, "dvc", "remote", "add", "--default", "store", "s3://bucket/digits")
            succeed(clone, "dvc", "remote", "modify", "store", "endpointurl", f"http://127.0.0.1:{port}")
            commit(clone, "share the cache")
            succeed(clone, "dvc", "push", **keys)
            colleague = fresh_clone(clone)
            assert stages_run(succeed(colleague, "dvc", "repro", "--pull", **keys)) == []
            assert (colleague / "models/linear.npz").read_bytes() == (clone / "models/linear.npz").read_bytes()
        finally:
            server.terminate()


@pytest.mark.slow
def test_where_the_remote_cannot_be_reached_a_fresh_clone_builds(clone: Path, remote: Path):
    succeed(clone, "dvc", "push")
    shutil.rmtree(remote)
    colleague = fresh_clone(clone)
    succeed(colleague, "dvc", "repro", "--pull")
    assert (colleague / "dvc.lock").read_bytes() == (clone / "dvc.lock").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("remote")
@pytest.mark.parametrize("seconds", [1.0, 1.3])
def test_a_push_killed_in_the_middle_and_then_repeated_is_whole(clone: Path, seconds: float):
    push = subprocess.Popen(
        ["dvc", "push"],
        cwd=clone,
        env=environment(HOME=str(clone.parent)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        push.wait(seconds)
    except subprocess.TimeoutExpired:
        push.send_signal(signal.SIGKILL)
        push.wait()
    succeed(clone, "dvc", "push")
    colleague = fresh_clone(clone)
    succeed(colleague, "dvc", "pull")
    assert run(colleague, "dvc", "status", "--quiet").returncode == 0


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
