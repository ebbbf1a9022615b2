"""Nobody rebuilds what a colleague has pushed, and a broken remote costs only time."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import commit, run, stages_run, succeed


@pytest.fixture
def remote(clone: Path, tmp_path: Path) -> Path:
    """An empty folder that is the default remote of the clone, whose cache is full."""
    folder = tmp_path / "the remote"
    with (clone / ".dvc/config").open("a", encoding="utf-8") as config:  # of [core]
        config.write(f"remote = store\n['remote \"store\"']\nurl = {folder}\n")
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


def test_a_fresh_clone_builds_if_the_remote_cannot_be_reached(
    clone: Path, remote: Path
):
    succeed(clone, "dvc", "push")
    shutil.rmtree(remote)
    colleague = fresh_clone(clone)
    built = stages_run(succeed(colleague, "dvc", "repro", "--pull", "preprocess"))
    assert built == ["download", "preprocess"]
    for name in ("data/tensors.npz", "dvc.lock"):
        assert (colleague / name).read_bytes() == (clone / name).read_bytes()


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
