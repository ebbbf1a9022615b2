"""Small pipelines with a copy of hermetic in them, and how to run them."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

import hermetic
from hermetic import landlock

PACKAGE = Path(hermetic.__file__).parent
needs_landlock = pytest.mark.skipif(
    not landlock.version(), reason="this kernel has no Landlock"
)


def pytest_report_header() -> str:
    """Say what the tests can test on this machine."""
    return f"hermetic: Landlock version {landlock.version()} (0: the audit hook alone)"


def run(
    folder: Path, *command: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a clean environment; `python` is the one that runs the tests."""
    path = os.pathsep.join([os.path.join(sys.prefix, "bin"), os.environ["PATH"]])
    home = str(folder.parent)
    clean = {"PATH": path, "LC_ALL": "C.UTF-8", "HOME": home, "TMPDIR": home}
    return subprocess.run(
        command,
        cwd=folder,
        env={**clean, "DVC_SITE_CACHE_DIR": f"{home}/dvc", **variables},
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def succeed(folder: Path, *command: str, **variables: str) -> str:
    """Run a command that has to succeed, and return its stdout."""
    done = run(folder, *command, **variables)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def edit(file: Path, old: str, new: str) -> None:
    """Replace a text that a file holds exactly once."""
    text = file.read_text("utf-8")
    assert text.count(old) == 1, f"{file.name} holds {old!r} {text.count(old)} times"
    file.write_text(text.replace(old, new), "utf-8")


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files by path, without the indentation of their texts."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), "utf-8")


def under_dvc(folder: Path) -> None:
    """Make a folder a repository of Git and DVC, and commit it."""
    files = {
        ".dvc/config": "[core]\nanalytics = false\n",
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".dvcignore": "__pycache__/\n",
        ".gitignore": "__pycache__/\n/out\n/.venv\n",
    }
    write(folder, files)
    succeed(folder, "git", "init", "--quiet")
    for key, value in {"user.name": "A", "user.email": "a@example.org"}.items():
        succeed(folder, "git", "config", key, value)
    succeed(folder, "git", "add", "--all")
    succeed(folder, "git", "commit", "--quiet", "--message", "a pipeline")


def copy_package(target: Path) -> None:
    """Copy hermetic without its tests, but with its compiled modules."""
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("tests"))


Make = Callable[..., Path]
Start = Callable[[Path], subprocess.CompletedProcess[str]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes a repository of files, with hermetic in `place`."""

    def make(files: Mapping[str, str], place: str = "src/hermetic") -> Path:
        folder = tmp_path / "a project"
        copy_package(folder / place)
        write(folder, files)
        return folder

    return make


FILES = {
    "data/file": "1",
    "data/folder/sub/file": "1",
    "data/other": "2",
    "dvc.yaml": """
        stages:
          probe:
            cmd: python probe.py
            deps: [data/file, data/folder, hermetic, probe.py]
            params: [mine, some.of]
            outs:
              - out/result
        """,
    "params.yaml": "{mine: 1, other: 2, some: {of: {a: 3}, others: 4}}",
    "helper.py": "VALUE = 1",
    "package/helper.py": "VALUE = 1",
}
PROBE = """
import hermetic
hermetic.enforce("probe"{allow})
import {modules}

def main():
{deed}
    os.makedirs("out", exist_ok=True)
    with open("out/result", "w") as file:
        file.write("done")

if __name__ == "__main__":
    main()
"""
MODULES = [
    *("ctypes", "contextlib", "errno", "importlib", "io", "multiprocessing", "pathlib"),
    *("shutil", "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading"),
]


def probe(folder: Path, deed: str, allow: str = "") -> None:
    """Make the stage do something, and then write its out."""
    modules = ", ".join(["os", *(name for name in MODULES if name in deed)])
    body = textwrap.indent(deed or "pass", "    ")
    text = PROBE.format(modules=modules, deed=body, allow=allow and f", {allow}")
    (folder / "probe.py").write_text(text, "utf-8")


@pytest.fixture
def project(make: Make) -> Path:
    """A pipeline of one stage, and files that it does not declare."""
    return make(FILES, place="hermetic")


def start(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start the stage by hand."""
    return run(folder, "python", "-W", "ignore", "probe.py", **variables)


EACH = """
for deed in {deeds}:
    if not os.fork():
        exec(deed, {{**globals(), **locals()}})
        break
    code = os.waitstatus_to_exitcode(os.wait()[1])
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{{tempfile.gettempdir()}}/violation")
    print("exit status", code, file=sys.stderr)
else:
    sys.exit()
"""


def start_each(
    folder: Path, deeds: Iterable[str], start: Start = start, before: str = ""
) -> list[subprocess.CompletedProcess[str]]:
    """Start a stage that does one deed after the other, each in a fork of its own."""
    deeds = list(deeds)
    probe(folder, before + EACH.format(deeds=deeds))
    done = start(folder)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"exit status (\d+)\n", done.stderr)
    return [
        subprocess.CompletedProcess(deed, int(code), "", errors)
        for deed, errors, code in zip(deeds, parts[::2], parts[1::2], strict=False)
    ]


def violates(
    done: subprocess.CompletedProcess[str], words: str, stage: str = "probe"
) -> bool:
    """Return whether a stage failed with a violation, reported on its last line.

    `words` are parts of that line, separated by dots: `reads a … to its deps`.
    """
    last = done.stderr.splitlines()[-1] if done.stderr else ""
    assert last.startswith(f"hermetic.UndeclaredAccess: stage {stage} "), done.stderr
    assert [word for word in words.split(" … ") if word not in last] == [], done.stderr
    return done.returncode == 1


def is_quiet(done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether a stage succeeded without a warning."""
    assert (done.returncode, done.stderr) == (0, "")
    return True
