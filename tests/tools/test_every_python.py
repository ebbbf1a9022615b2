"""`make test` on every Python that is found; scripts stand in for Python and make."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT, copy, run, succeed

Variables = Mapping[str, str]
NONE: Variables = {}
PYTHON = """\
#!/bin/sh
echo {is_own} {version} {path}
"""
MAKE = """\
#!/bin/sh
# Records how it was called; the suite of some versions fails.
{ echo "$@"; pwd; ls; env; } >> "$RECORD"
echo "a thousand lines"
case "$*" in
    */broken/*) echo "E assert 1 == 2" && echo "== 1 failed in 3.10s ==" && exit 2 ;;
esac
echo "======== 5 passed, 2 skipped in 239.12s (0:03:59) ========"
"""


class Machine:
    """A commit, a home, and a PATH of nothing but git, make and fake Pythons."""

    def __init__(self, sources: Path, folder: Path) -> None:
        self.clone = copy(sources, folder / "clone")
        self.bin = folder / "bin"
        self.home = folder
        self.record = folder / "record"
        self.write("bin/make", MAKE)
        for name in ("git", "env", "ls", "sh"):
            (self.bin / name).symlink_to(shutil.which(name) or "")

    def write(self, name: str, text: str) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, path: str = "", is_own=True) -> str:
        path = path or str(self.home / name)
        self.write(name, PYTHON.format(is_own=is_own, version=version, path=path))
        return path

    def run(self, status: int = 0, variables: Variables = NONE) -> list[str]:
        """Run every Python's suite; return the lines printed."""
        added = {"RECORD": str(self.record), "PATH": str(self.bin), **variables}
        command = [sys.executable, "-m", "tools.every_python"]
        done = run(self.clone, *command, **added)
        assert done.returncode == status, done.stdout + done.stderr
        return (done.stdout + done.stderr).splitlines()


@pytest.fixture
def machine(sources: Path, tmp_path: Path) -> Machine:
    return Machine(sources, tmp_path)


def test_every_python_on_the_path_is_tested_and_gets_a_line(machine: Machine):
    old, new = machine.python("bin/python3.11", "3.11.2"), "/usr/local/bin/python3.14"
    machine.python("bin/python3.14", "3.14.8", new)
    closing = "======== 5 passed, 2 skipped in 239.12s (0:03:59) ========"
    assert machine.run() == [
        f"make test on Python 3.11.2, {old}",
        closing,
        f"make test on Python 3.14.8, {new}",
        closing,
        f"3.11.2   passed  {old}",
        "3.12     not found on PATH or under pyenv",
        "3.13     not found on PATH or under pyenv",
        f"3.14.8   passed  {new}",
    ]


def test_a_run_that_fails_is_shown_and_the_others_still_run(machine: Machine):
    bad = machine.python("bin/python3.12", "3.12.1", "/broken/python3.12")
    good = machine.python("bin/python3.13", "3.13.0")
    lines = machine.run(status=1)
    assert lines[1:4] == [
        "a thousand lines",
        "E assert 1 == 2",
        "== 1 failed in 3.10s ==",
    ]
    assert f"3.12.1   FAILED  {bad}" in lines
    assert f"3.13.0   passed  {good}" in lines


def test_two_patch_releases_on_the_path_are_two_pythons(machine: Machine):
    """Debian's 3.11.2 reads a tar by other functions than 3.11.7 does."""
    machine.python("bin/python3.11", "3.11.7")
    machine.python("other/python3.11", "3.11.2")
    machine.python("again/python3.11", "3.11.7")
    path = os.pathsep.join(str(machine.home / f) for f in ("bin", "other", "again"))
    lines = machine.run(variables={"PATH": path})
    assert [line.split()[0] for line in lines if " passed  " in line] == [
        "3.11.7",
        "3.11.2",
    ]


def test_what_does_not_start_or_is_an_environment_does_not_count(machine: Machine):
    machine.write("bin/python3.11", "#!/bin/sh\necho 'not set' >&2\nexit 127\n")
    machine.python("bin/python3.12", "3.12.1", is_own=False)
    machine.python("bin/python3.13", "3.12.1")
    machine.python("bin/python3.14", "3.14.0rc1")
    lines = machine.run(status=1)
    assert lines == [
        "every_python: there is no Python 3.11 to 3.14 on PATH or under pyenv"
    ]


@pytest.mark.parametrize("root", [".pyenv", "elsewhere"])
def test_the_newest_of_pyenv_is_taken_where_the_path_has_none(machine: Machine, root):
    machine.python("bin/python3.11", "3.11.2")
    machine.write("bin/python3.13", "#!/bin/sh\nexit 127\n")  # a shim
    for version in ("3.11.7", "3.13.2", "3.13.10"):
        machine.python(f"{root}/versions/{version}/bin/python", version)
    machine.write(f"{root}/versions/3.13.11/bin/python", "#!/bin/sh\nexit 1\n")
    variables = {} if root == ".pyenv" else {"PYENV_ROOT": str(machine.home / root)}
    lines = machine.run(variables=variables)
    tested = [line.split()[0] for line in lines if " passed  " in line]
    assert tested == ["3.11.2", "3.13.10"]


def test_make_gets_a_fresh_clone_and_nothing_of_who_called_it(machine: Machine):
    path = machine.python("bin/python3.12", "3.12.1")
    (machine.clone / "uncommitted").touch()
    own = os.path.join(sys.prefix, "bin")
    variables = {"PATH": f"{own}:{machine.bin}", "MAKEFLAGS": "n", "MAKELEVEL": "1"}
    machine.run(variables=variables)
    arguments, folder, *rest = machine.record.read_text("utf-8").splitlines()
    assert arguments == f"test PYTHON={path}"
    assert not Path(folder).exists()
    assert "params.yaml" in rest
    assert "uncommitted" not in rest
    assert f"PATH={machine.bin}" in rest
    assert [line for line in rest if line.startswith("MAKE")] == []


def test_no_file_is_written_beside_an_interpreter(machine: Machine):
    """Asking a real one for its version writes no bytecode."""
    machine.write("bin/python3.12", '#!/bin/sh\necho "$@" >> "$RECORD"\n')
    machine.run(status=1)
    assert machine.record.read_text("utf-8").startswith("-I -B -c ")


def test_the_runner_of_this_repository_tests_every_python():
    assert (ROOT / ".ci/run").read_text("utf-8").endswith("\nmake test-pythons\n")
    command = ["make", "--dry-run", "test-pythons"]
    shown = succeed(ROOT, *command)
    assert shown.endswith(".venv/bin/python -m tools.every_python\n")
