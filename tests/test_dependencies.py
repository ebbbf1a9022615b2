"""Each stage declares what it uses: no less, no more, and the kernel agrees."""

import ast
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

import hermetic
from hermetic.declaration import declaration
from stages.plumbing import runtime
from tests.conftest import ROOT, STAGES, succeed


def imported_files(file: Path) -> set[Path]:
    """Return the files of this repository that a Python file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {f"{alias.name}.__init__" for alias in node.names}
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, f"{node.module}.__init__"}
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    files = {ROOT / f"{name.replace('.', '/')}.py" for name in names}
    return {file for file in files if file.exists()}


def imported_units(*files: Path) -> set[str]:
    """Return the scripts and packages that files are in or import, in turn."""
    found: set[Path] = set()
    todo = set(files)
    while todo:
        found |= todo
        todo = {new for file in todo for new in imported_files(file)} - found
    paths = [file.relative_to(ROOT) for file in found]
    return {
        str(path if path.parent == Path("stages") else path.parent) for path in paths
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_exactly_the_scripts_and_packages_it_imports(stage):
    """DVC runs no stage for a line that was removed, so a stage cannot find that."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    code = re.compile(r"hermetic|stages/.*\.py|stages/\w+")
    declared = set(filter(code.fullmatch, stages[stage]["deps"]))
    files = [ROOT / "stages/__main__.py", ROOT / f"stages/{stage}.py"]
    assert imported_units(*files) == declared


def test_the_stages_read_everything_that_they_declare(lent):
    """DVC would rerun one for nothing when what it does not read changes."""
    shown = succeed(lent, "python", "-m", "hermetic", "check")
    assert re.findall(r"\n(\w+)\n  ", shown) == STAGES


CALLS = [
    *("openat", "open", "creat", "rename", "renameat", "renameat2", "unlink"),
    *("unlinkat", "mkdir", "mkdirat", "rmdir", "link", "symlink", "truncate"),
]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("stage", STAGES)
def test_the_kernel_sees_no_file_that_is_not_declared(lent, tmp_path, stage):
    """Including the files that C code opens by itself, which strace shows."""
    log = tmp_path / "log"
    options = ["-f", "-qq", "-y", "-s", "4096", "-e", f"trace={','.join(CALLS)}"]
    command = ["python", "-m", "stages", stage]
    succeed(lent, "strace", *options, "-o", str(log), *command)
    declared = declaration(stage, lent)
    assert declared is not None
    temporaries = {hermetic.temporary(out) for out in declared.outs}
    paths = declared.deps | declared.outs | temporaries
    # The folders are opened to look for modules, and to lock those of the outs.
    names = [".", "dvc.yaml", "params.yaml", "stages", "data", "models", "metrics"]
    # hermetic's settings, and the parsed files that it keeps.
    kept = [f".dvc/tmp/hermetic/{name}" for name in ("", "dvc.yaml", "params.yaml")]
    names += ["pyproject.toml", *kept]
    own = {
        os.path.normpath(lent / name)
        for name in [*names, ".dvcignore", "stages/__pycache__"]
    }
    if stage == "preprocess":
        own |= {str(lent / runtime.SCRATCH)}
    if stage == "download":
        own |= {str(lent / "data/mnist_sample.tgz")}

    def is_declared(name: str) -> bool:
        return any(name == path or name.startswith(f"{path}/") for path in paths)

    seen = set()
    for line in log.read_text("utf-8", "replace").splitlines():
        if line.endswith(")") or "= -1 " in line or "resumed" in line:
            continue
        opened = re.search(r"= \d+<(.+)>$", line)
        named = re.findall(r'(?:<([^>]*)>, )?"([^"]*)"', line)
        found = [opened[1]] if opened else [os.path.join(*pair) for pair in named]
        seen |= {os.path.normpath(lent / name) for name in found}
    inside = {
        re.sub(r"__pycache__/(\w+)\.[^/]*$", r"\1.py", name)  # a .pyc is its source
        for name in seen
        if name == str(lent) or name.startswith(f"{lent}/")
    }
    assert f"{lent}/hermetic/hook.py" in inside
    assert {name for name in inside if not is_declared(name)} - own == set()
