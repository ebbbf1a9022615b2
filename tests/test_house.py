"""The repository stays easy to read: short lines, a short dvc.yaml, one direction."""

import ast
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT


def test_dvc_yaml_is_short():
    text = (ROOT / "dvc.yaml").read_text("utf-8")
    assert len(text.splitlines()) <= 134
    stages = yaml.safe_load(text)["stages"].values()
    assert sum(len(stage["deps"]) for stage in stages) <= 42


# What files may import of the repository, by prefix.
ALLOWED = {
    "hermetic/*.py": ["hermetic"],
    "stages/plumbing/*.py": ["stages.plumbing", "hermetic"],
    "stages/images/*.py": ["stages.images", "stages.plumbing"],
    "stages/model.py": ["stages.plumbing"],
    "stages/evaluation/*.py": ["stages.evaluation", "stages.model", "stages.plumbing"],
    "stages/page/*.py": ["stages.page", "stages.evaluation", "stages.plumbing"],
    "stages/*.py": [
        *("stages.page", "stages.evaluation", "stages.images", "stages.model"),
        "stages.plumbing",
    ],
}


def imported_names(file: Path) -> set[str]:
    """Return the full names of the modules and objects that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("files", ALLOWED)
def test_imports_go_down_only(files):
    """Stages use packages, these use plumbing; nothing uses tools, bench or tests."""
    ours = {"stages", "hermetic", "tools", "bench", "tests"}
    allowed = tuple(f"{prefix}." for prefix in ALLOWED[files])
    found = sorted(ROOT.glob(files))
    assert found
    for file in found:
        names = {n for n in imported_names(file) if n.partition(".")[0] in ours}
        upward = {name for name in names if not f"{name}.".startswith(allowed)}
        assert upward == set(), file
