"""The repository stays easy to read: short lines, a short dvc.yaml, one direction."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

LINE = 88


def python_files() -> list[Path]:
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.py"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def test_no_line_of_python_is_too_long():
    lines = [
        f"{file.relative_to(ROOT)}:{i}"
        for file in python_files()
        for i, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if len(line) > LINE
    ]
    assert lines == []


def test_dvc_yaml_is_short():
    text = (ROOT / "dvc.yaml").read_text("utf-8")
    assert len(text.splitlines()) <= 130
    stages = yaml.safe_load(text)["stages"].values()
    assert sum(len(stage["deps"]) for stage in stages) <= 36


# What the modules of a folder may import of the repository, by prefix.
ALLOWED = {
    "stages/plumbing": ["stages.plumbing"],
    "stages/images": ["stages.images", "stages.plumbing"],
    "stages/model": ["stages.model", "stages.plumbing"],
    "stages/page": ["stages.page", "stages.plumbing"],
    "stages": ["stages.page", "stages.model", "stages.images", "stages.plumbing"],
}


def imported_names(file: Path) -> set[str]:
    """Return the full names of the modules and objects that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_go_down_only(folder):
    """Stages use the rooms, rooms the plumbing; nothing uses tools, bench or tests."""
    files = sorted((ROOT / folder).glob("*.py"))
    assert files
    ours = ("stages.", "tools.", "bench.", "tests.")
    allowed = tuple(f"{prefix}." for prefix in ALLOWED[folder])
    for file in files:
        names = {name for name in imported_names(file) if name.startswith(ours)}
        upward = {name for name in names if not name.startswith(allowed)}
        assert upward == set(), file
