"""Clones of the working tree, uncommitted edits included, that the real `dvc repro` has built."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ["download", "preprocess", "baseline", "train", "report"]


def environment(**variables: str) -> dict[str, str]:
    """Nothing of the caller's but PATH, in which the programs beside this Python come first."""
    path = os.pathsep.join([os.path.join(sys.prefix, "bin"), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, "LC_ALL": "C.UTF-8", "COLUMNS": "1000", **variables}


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with a clean environment; `python` is the one that runs the tests."""
    site = {"HOME": str(folder.parent), "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc")}
    return subprocess.run(
        command, cwd=folder, env=environment(**{**site, **variables}), text=True, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=300, check=False,
    )  # fmt: skip


def succeed(folder: Path, *command: str, **variables: str) -> str:
    """The stdout of a command that has to succeed."""
    done = run(folder, *command, **variables)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commit(folder: Path, message: str = "a change") -> None:
    """Commit everything in a folder, which becomes a Git repository if it is none."""
    succeed(folder, "git", "init", "--quiet")
    succeed(folder, "git", "add", "--all")
    person = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    succeed(folder, "git", *person, "commit", "--quiet", "--allow-empty", "--message", message)


def edit(file: Path, old: str, new: str) -> None:
    """Replace a text that a file holds exactly once."""
    text = file.read_text("utf-8")
    assert text.count(old) == 1, f"{file.name} holds {old!r} {text.count(old)} times"
    file.write_text(text.replace(old, new), "utf-8")


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    """The files below some folders of a folder, hidden ones too, by path."""
    paths = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "__pycache__" not in path.parts}


def stages_run(stdout: str) -> list[str]:
    """The stages that `dvc repro` ran, from what it printed."""
    return [line.split("'")[1] for line in stdout.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the working tree in a Git repository of one commit, never built."""
    folder = tmp_path_factory.mktemp("sources") / "a clone"
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    commit(folder)
    return folder


@pytest.fixture(scope="session")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which `dvc repro` has run, once for all workers of pytest-xdist; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            copy(sources, shared / "a clone")
            succeed(shared / "a clone", "dvc", "repro")
            commit(shared / "a clone", "built")
            (shared / "done").touch()
    return shared / "a clone"


def copy(folder: Path, target: Path) -> Path:
    """A copy of a clone, cache included."""
    return shutil.copytree(folder, target, symlinks=True)


@pytest.fixture(scope="module")
def lent(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for tests that leave it as they found it."""
    return copy(built, tmp_path_factory.mktemp("lent") / "a clone")


@pytest.fixture
def clone(built: Path, tmp_path: Path) -> Iterator[Path]:
    """The test's own copy of the built clone."""
    yield copy(built, tmp_path / "a clone")
    shutil.rmtree(tmp_path)
