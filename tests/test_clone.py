"""A clone on the machine of another person, with other programs and settings."""

import sys
from importlib import metadata
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.plumbing import errors
from tests.conftest import contents, run, succeed

DROPPINGS = [
    *(".DS_Store", "._train.py", "Thumbs.db", "train.py~", ".train.py.swp", "#t.py#"),
    *(".#train.py", "train.py.orig", ".idea/x.xml", ".ruff_cache/x", ".nfs0001"),
]
"""What macOS, Windows, editors, Git, linters and NFS leave in a folder."""


def test_what_other_programs_leave_is_no_dependency(sources: Path):
    repo = Repo(str(sources))
    for folder in ("hermetic", "stages/page", "stages/plumbing"):
        paths = [f"{sources}/{folder}/{name}" for name in DROPPINGS]
        ignored = repo.dvcignore.is_ignored
        assert [path for path in paths if not ignored(repo.fs, path)] == []
    kept = succeed(sources, "git", "ls-files", "hermetic/*.py", "stages").splitlines()
    ignored_ones = [name for name in kept if ignored(repo.fs, str(sources / name))]
    assert all("/tests/" in name for name in ignored_ones)


def test_git_converts_no_line_ends(sources: Path, tmp_path: Path):
    options = ["--quiet", "--config", "core.autocrlf=true"]
    succeed(tmp_path, "git", "clone", *options, str(sources), "x")
    folders = ("docs", "hermetic", "stages")
    assert contents(tmp_path / "x", *folders) == contents(sources, *folders)
    for name in ("params.yaml", "requirements.txt", "dvc.lock"):
        assert (tmp_path / "x" / name).read_bytes() == (sources / name).read_bytes()


def test_packages_are_installed_with_their_bytecode():
    """Where Python may not write it, every run would compile what it imports."""
    files = [str(file.locate()) for file in metadata.files("jax") or []]
    modules = [file for file in files if file.endswith(".py")]
    assert len(modules) > 300
    assert [m for m in modules if not Path(cache_from_source(m)).exists()] == []


TOOLS = ["check", "compare", "cross_validation", "pack", "predict", "verify"]
COMMANDS = [f"tools.{name}" for name in TOOLS] + ["stages download", "stages train"]


@pytest.mark.parametrize("command", COMMANDS)
def test_without_its_environment_a_program_says_so(tree: Path, command):
    """With -S, Python finds no installed packages."""
    done = run(tree, sys.executable, "-S", "-m", *command.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.endswith(": activate .venv, which make creates\n")


def test_in_the_environment_a_missing_module_is_a_bug(tmp_path: Path, monkeypatch):
    """Of a model that imports what requirements.txt lacks, say."""
    error = ModuleNotFoundError("No module named 'flax'", name="flax")
    monkeypatch.chdir(tmp_path)
    assert "flax is not installed" in str(errors.one_line(error))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    assert errors.one_line(error) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named '_lzma'", name="_lzma"), "built without"),
        (
            RuntimeError("This version of jaxlib was built using AVX instructions, …"),
            "JAX needs a processor with AVX: use another computer",
        ),
    ],
    ids=["a Python without a module", "an old processor"],
)
def test_what_the_computer_lacks_is_one_line(error, said):
    line = errors.one_line(error)
    assert line is not None
    assert said in line
    assert "activate" not in line
