"""Nobody rebuilds what a colleague has pushed, and a broken remote costs only time."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import commit, edit, run, stages_run, succeed


@pytest.fixture
def remote(clone: Path, tmp_path: Path) -> Path:
    """An empty folder that is the default remote of the clone, whose cache is full."""
    folder = tmp_path / "the remote"
    succeed(clone, "dvc", "remote", "add", "--default", "store", str(folder))
    commit(clone, "share the cache")
    return folder


def fresh_clone(clone: Path) -> Path:
    """Clone as a colleague would: the commits, and no cache."""
    colleague = clone.parent / "colleague"
    succeed(clone, "git", "clone", "--quiet", str(clone), str(colleague))
    return colleague


@pytest.mark.usefixtures("remote")
def test_after_a_push_a_fresh_clone_runs_nothing(clone: Path):
    succeed(clone, "dvc", "push")
    colleague = fresh_clone(clone)
    assert stages_run(succeed(colleague, "dvc", "repro", "--pull")) == []
    for name in ("data/tensors.npz", "models/model.npz", "metrics/report.html"):
        assert (colleague / name).read_bytes() == (clone / name).read_bytes()
    assert succeed(colleague, "git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_fresh_clone_builds_if_the_remote_cannot_be_reached(
    clone: Path, remote: Path
):
    succeed(clone, "dvc", "push")
    shutil.rmtree(remote)
    colleague = fresh_clone(clone)
    succeed(colleague, "dvc", "repro", "--pull")
    assert (colleague / "dvc.lock").read_bytes() == (clone / "dvc.lock").read_bytes()


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
