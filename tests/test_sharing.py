"""What one has built and pushed nobody builds again; a remote that fails costs time, never a result."""

import shutil
import signal
import subprocess
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
