"""Git works on this repository, whatever hooks, configuration and owner say."""

import re
from hashlib import md5
from pathlib import Path

import pytest

from tests.builders import refusal
from tests.conftest import commit, succeed
from tools import compare, verify

LOCK = """schema: '2.0'
stages:
  copy:
    cmd: cp a b
    outs: [{path: b, md5: %s}]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commit a pipeline of one stage in a folder of a repository; go there."""
    folder = tmp_path / "repository/of several/project"
    (folder / ".dvc").mkdir(parents=True)
    files = {
        "a": "a file",
        "dvc.yaml": "stages: {copy: {cmd: cp a b, deps: [a], outs: [b]}}",
        "params.yaml": f"download: {{url: 'https://a.example', sha256: {'a' * 64}}}",
        "dvc.lock": LOCK % md5(b"a file").hexdigest(),
        ".dvc/config": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    commit(tmp_path / "repository")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc"))
    return folder


def test_verify_rebuilds_in_a_hook_and_leaves_the_index_alone(
    project: Path, tmp_path: Path, monkeypatch, capsys
):
    """In a folder of a repository; a hook fails, and the user forbids all protocols."""
    hook = tmp_path / "template/hooks/post-checkout"
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    config = f"[init]\ntemplateDir = {hook.parents[1]}\n[protocol]\nallow = never\n"
    (tmp_path / ".gitconfig").write_text(config, "utf-8")
    (project / "a").write_text("an edit", "utf-8")
    succeed(project, "git", "add", "a")
    before = succeed(project, "git", "status", "--porcelain")
    top = project.parents[1]
    monkeypatch.setenv("GIT_INDEX_FILE", str(top / ".git/index"))
    monkeypatch.setenv("GIT_DIR", str(top / ".git"))
    monkeypatch.setenv("GIT_PREFIX", "of several/")
    assert verify.main() == 0
    assert "1 of 1 outputs have the bytes" in capsys.readouterr().out
    assert succeed(project, "git", "status", "--porcelain") == before
    assert before == 'M  "of several/project/a"\n'


@pytest.mark.parametrize("run", [verify.main, lambda: compare.load("HEAD")])
def test_git_itself_says_why_it_refuses_a_repository(
    project: Path, tmp_path: Path, monkeypatch, run
):
    with monkeypatch.context() as patch:
        patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        said = refusal(run)
    assert "dubious ownership" in said
    assert "git config --global --add safe.directory" in said
    config = tmp_path / ".gitconfig"
    config.write_text("[user", "utf-8")
    assert re.search(f"bad config line . in file {config}", refusal(run))
    config.unlink()
    (project.parents[1] / ".git").rename(project.parents[1] / "git")
    said = refusal(run)
    assert said.startswith("this needs a clone of the repository: ")
    assert "not a git repository" in said


def test_a_lock_that_is_not_committed_or_in_conflict_is_named(project: Path):
    (project / "dvc.lock").write_text("<<<<<<< HEAD\nstages:\n", "utf-8")
    commit(project)
    said = refusal(verify.main)
    assert said.startswith("dvc.lock of this commit cannot be read (")
    (project / "dvc.lock").unlink()
    commit(project)
    assert "(it is missing)" in refusal(verify.main)
