"""Run `make test` on every Python from 3.11 to 3.14 that is found on this machine.

`make test-pythons` runs it. Every interpreter gets a fresh clone of this commit and its
own environment. It takes those on PATH and, for a version that PATH lacks, the newest
one of pyenv. Prints a line per result, and the whole output of a run that failed.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stages.plumbing import runtime
from stages.plumbing.errors import UserError

MINORS = range(11, 15)
PROBE = """\
import ensurepip, platform, sys, venv
print(sys.prefix == sys.base_prefix, platform.python_version(), sys.executable)
"""
"""Fails where `python -m venv` would; tells the environments that others made."""
CLOSING = r"^=* ?.*\b(?:passed|failed|errors?|skipped)\b.* in [\d.]+s\b.*$"
"""The line with which pytest ends."""


class Python(NamedTuple):
    """An interpreter that can make an environment."""

    version: str
    path: str


def find_pythons(minor: int) -> list[Python]:
    """Return the interpreters of version 3.`minor`: one of each patch release."""
    on_path = [Path(path, f"python3.{minor}") for path in os.get_exec_path()]
    found: dict[str, Python] = {}
    for python in _working(on_path, minor):
        found.setdefault(python.version, python)
    if found:
        return list(found.values())
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    installed = sorted(
        pyenv.glob(f"3.{minor}.*/bin/python"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", path.parts[-3])],
        reverse=True,
    )
    return list(_working(installed, minor))[:1]


def _working(paths: list[Path], minor: int) -> Iterator[Python]:
    """Yield those that start, which a shim of pyenv may not, and are no environment."""
    for path in paths:
        command = [str(path), "-I", "-B", "-c", PROBE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        is_own, _, rest = done.stdout.strip().partition(" ")
        version, _, executable = rest.partition(" ")
        if is_own == "True" and re.fullmatch(rf"3\.{minor}\.\d+\+?", version):
            yield Python(version, executable)


def run_suite(python: Python, root: Path) -> tuple[bool, str]:
    """Run `make test` in a fresh clone; return if it succeeded, and what it printed."""
    own = os.path.join(sys.prefix, "bin")
    path = os.pathsep.join(folder for folder in os.get_exec_path() if folder != own)
    # Not what the make that runs this has told its children.
    kept = {k: v for k, v in os.environ.items() if not re.match("MAKE|MFLAGS", k)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        clone = Path(folder, "project")
        subprocess.run(["git", "clone", "--quiet", root, clone], check=True)
        done = subprocess.run(
            ["make", "test", f"PYTHON={python.path}"],
            cwd=clone,
            env={**kept, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    return done.returncode == 0, done.stdout


def main() -> int:
    """Print the results; return 1 if a run failed."""
    root = Path(__file__).resolve().parent.parent
    found = {minor: find_pythons(minor) for minor in MINORS}
    if not any(found.values()):
        raise UserError("there is no Python 3.11 to 3.14 on PATH or under pyenv")
    results: list[str] = []
    failed = False
    for minor, pythons in found.items():
        for python in pythons:
            print(f"make test on Python {python.version}, {python.path}", flush=True)
            succeeded, output = run_suite(python, root)
            closing = re.findall(CLOSING, output, re.MULTILINE)[-1:]
            print(*(closing if succeeded else [output]), flush=True)
            verdict = "passed" if succeeded else "FAILED"
            results.append(f"{python.version:8} {verdict}  {python.path}")
            failed |= not succeeded
        if not pythons:
            results.append(f"3.{minor:<6} not found on PATH or under pyenv")
    print("\n".join(results))
    return int(failed)


if __name__ == "__main__":
    runtime.explain_errors("every_python")
    sys.exit(main())
