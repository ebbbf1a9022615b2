"""Clones of the working tree, uncommitted edits included, built by `dvc repro`."""

import fcntl
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from hypothesis import settings

from stages.plumbing import runtime, workers
from stages.plumbing.tensors import Tensors, load_tensors

ROOT = Path(__file__).parents[1]
STAGES = ["download", "preprocess", "baseline", "train", "report"]
# The same cases on every run: a suite that passes by chance tells nothing.
# No deadline: a busy machine is slow at times.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
# JAX computes as in a stage, and keeps what it compiles for the next run of the tests.
os.environ.update(runtime.PINNED)

IF_ROOT = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] * (os.geteuid() == 0)
"""Drops root's capabilities: file permissions then hold for root as well."""
AUTHOR = ["-c", "user.name=A", "-c", "user.email=a@example.org"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return what `-n auto` means: one more than cores, since some tests wait."""
    return workers.available_processors() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start slow tests first, lest one of them runs alone in the end."""
    items.sort(key=lambda item: "slow" not in item.keywords)


def environment(**variables: str) -> dict[str, str]:
    """Return a clean environment: the caller's PATH, after this Python's programs."""
    folders = [os.path.join(sys.prefix, "bin"), os.environ.get("PATH", os.defpath)]
    path = os.pathsep.join(folders)
    return {"PATH": path, "LC_ALL": "C.UTF-8", "COLUMNS": "1000", **variables}


def home(folder: Path) -> dict[str, str]:
    """Keep what programs write for a user beside the clone."""
    parent = folder.parent
    return {
        "HOME": str(parent),
        "TMPDIR": str(parent),
        "DVC_SITE_CACHE_DIR": str(parent / "dvc"),
    }


def run(
    folder: Path, *command: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a clean environment; `python` is the one that runs the tests."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**{**home(folder), **variables}),
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )


def start(
    folder: Path,
    *command: str,
    limit: tuple[int, int] | None = None,
    **variables: str,
) -> subprocess.Popen[str]:
    """Start a command as `run` does, in its own session; `limit`: resource, value."""

    def set_limit() -> None:
        assert limit
        resource.setrlimit(limit[0], (limit[1], limit[1]))

    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**{**home(folder), **variables}),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=set_limit if limit else None,
    )


def succeed(folder: Path, *command: str, **variables: str) -> str:
    """Run a command that has to succeed, and return its stdout."""
    done = run(folder, *command, **variables)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commit(folder: Path, message: str = "a change") -> None:
    """Commit everything in a folder; make it a Git repository if it is none."""
    succeed(folder, "git", "-c", "init.defaultBranch=main", "init", "--quiet")
    succeed(folder, "git", "add", "--all")
    options = ["--quiet", "--allow-empty", "--message", message]
    succeed(folder, "git", *AUTHOR, "commit", *options)


def edit(file: Path, old: str, new: str) -> None:
    """Replace a text that a file holds exactly once."""
    text = file.read_text("utf-8")
    assert text.count(old) == 1, f"{file.name} holds {old!r} {text.count(old)} times"
    file.write_text(text.replace(old, new), "utf-8")


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    """Read all files below some folders of a folder, hidden ones too, by path."""
    paths = [path for name in names for path in (folder / name).rglob("*")]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def stages_run(stdout: str) -> list[str]:
    """Return the stages that `dvc repro` ran, from what it printed."""
    lines = [line for line in stdout.splitlines() if line.startswith("Running stage")]
    return [line.split("'")[1] for line in lines]


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the working tree into a Git repository of one commit, not built."""

    def copy_sources(folder: Path) -> None:
        command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.check_output(command, cwd=ROOT, text=True)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        commit(folder)

    return once(tmp_path_factory, "sources", copy_sources)


@pytest.fixture(scope="session")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `dvc repro` in a clone, once for all pytest-xdist workers; do not edit it."""

    def build(folder: Path) -> None:
        copy(sources, folder)
        succeed(folder, "dvc", "repro")
        commit(folder, "built")

    return once(tmp_path_factory, "built", build)


@pytest.fixture(scope="session")
def mnist(built: Path) -> Tensors:
    """Load the tensors of the bundled archive."""
    with chdir(built):
        return load_tensors()


def once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]
) -> Path:
    """Make a clone once for all pytest-xdist workers, and return its folder."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            make(shared / "a clone")
            (shared / "done").touch()
    return shared / "a clone"


def copy(folder: Path, target: Path) -> Path:
    """Copy a clone, cache included."""
    return shutil.copytree(folder, target, symlinks=True, copy_function=copy_file)


def copy_file(source: str, target: str) -> None:
    """Link what is read-only, as the objects of DVC and Git are; copy the rest."""
    if os.stat(source).st_mode & stat.S_IWUSR:
        shutil.copy2(source, target)
    else:
        os.link(source, target)


@pytest.fixture
def tree(sources: Path, tmp_path: Path) -> Path:
    """Copy the sources, not built, for one test alone."""
    return copy(sources, tmp_path / "a tree")


@pytest.fixture(scope="module")
def lent(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the built clone for tests that leave it as they found it."""
    return copy(built, tmp_path_factory.mktemp("lent") / "a clone")


@pytest.fixture
def clone(built: Path, tmp_path: Path) -> Iterator[Path]:
    """Copy the built clone for one test alone."""
    yield copy(built, tmp_path / "a clone")
    shutil.rmtree(tmp_path)
