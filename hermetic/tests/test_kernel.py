"""What C code and other programs do is what dvc.yaml declares, thanks to Landlock."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermetic import landlock
from hermetic.tests.conftest import (
    copy_package,
    edit,
    is_quiet,
    needs_landlock,
    run,
    start,
    start_each,
    under_dvc,
    violates,
    write,
)
from hermetic.tests.conftest import probe as write_probe

pytestmark = needs_landlock
C = """
import ctypes, errno, sqlite3, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.fopen.restype = ctypes.c_void_p

def fopen(name, mode="r"):
    if not (file := libc.fopen(name.encode(), mode.encode())):
        return errno.errorcode[ctypes.get_errno()]
    libc.fclose(ctypes.c_void_p(file))
    return "opened"

def sh(script):
    command = ["sh", "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True)

def fails(*command):
    return subprocess.run(command, capture_output=True).returncode == 1
"""


def probe(folder: Path, deed: str, allow: str = "") -> None:
    """Make the stage do something with C code, and then write its out."""
    write_probe(folder, C + deed, allow)


ALLOWED = {
    "an out": 'assert fopen("out/result", "w") == "opened"',
    "an out again": 'fopen("out/result", "w"); assert fopen("out/result") == "opened"',
    "a program that writes an out": """
sh("echo 1 >out/.result.tmp && mv out/.result.tmp out/result")
""",
    "a database in the folder of the outs": """
os.remove("out/result")
with sqlite3.connect("out/result") as database:
    database.execute("create table t (a)")
database.close()
os.remove("out/result")
""",
    "a temporary file": """
import tempfile
with tempfile.NamedTemporaryFile() as file:
    assert fopen(file.name, "r+") == "opened"
    sh(f"echo 1 >>{file.name}; echo $TMPDIR | grep hermetic-; touch $(mktemp)")
""",
    "locks and shared memory": """
import multiprocessing.shared_memory
with multiprocessing.Lock():
    multiprocessing.shared_memory.SharedMemory(create=True, size=1).unlink()
""",
    "the system": 'assert fopen("/etc/passwd") == "opened"; sh("date >/dev/null")',
    "the environment": 'assert not fails(sys.executable, "-c", "import numpy")',
}


def test_c_code_and_programs_may_use_what_is_declared(project):
    probe(project, "\n".join(ALLOWED.values()))
    assert is_quiet(start(project))
    assert (project / "out/result").read_text() == "done"


DENIED = {
    "by its real path": 'assert fopen(os.path.realpath("data/other")) == "EACCES"',
    "through /proc": 'assert fopen("/proc/self/cwd/data/other") == "EACCES"',
    "through the root of a process": """
path = os.path.abspath("data/other")
assert fopen(f"/proc/self/root{path}") == "EACCES"
""",
    "a link": 'assert fopen("link") == "EACCES"',
    "a parameter file": 'assert fopen("params.yaml") == "EACCES"',
    "a file outside": 'assert fopen("../outside") == "EACCES"',
    "writing a dep": 'assert fopen("data/file", "r+") == "EACCES"',
    "writing a new file": 'assert fopen("data/new", "w") == "EACCES"',
    "writing outside": 'assert fopen("../new", "w") == "EACCES"',
    "a database": """
try:
    sqlite3.connect("data/other").execute("select 1 from t")
except sqlite3.OperationalError as error:
    assert "unable to open" in str(error)
""",
    "a program of a program": """assert fails("sh", "-c", "sh -c 'cat data/other'")""",
    "another Python, without hermetic": """
assert fails(sys.executable, "-I", "-c", "open('data/other')")
""",
    "removing": 'assert fails("rm", "-f", "data/other")',
    "moving it to the out": 'assert fails("mv", "data/other", "out/result")',
    "linking it to the out": 'assert fails("ln", "data/other", "out/result")',
    "running it": 'assert subprocess.run(["sh", "./script"]).returncode != 0',
}


def test_c_code_and_programs_get_nothing_else(project):
    """Denied, and nothing was read: a stage may go on after that."""
    (project / "link").symlink_to("data/other")
    write(project, {"script": "true", "../outside": "1"})
    probe(project, "\n".join(DENIED.values()))
    assert start(project).returncode == 0
    assert (project / "data/other").read_text() == "2"
    assert not (project / "data/new").exists()


ADD = 'add "- data/other" to its deps'
ERRORS = {
    "a program": ('sh("cat data/other")', ADD),
    "its command": ('subprocess.run(["cat", "data/other"], check=True)', ADD),
    "a library": ('raise RuntimeError("data/other: Permission denied")', ADD),
    "no name": (
        'sqlite3.connect("data/other").execute("select 1 from t")',
        "and the programs it starts can use only what dvc.yaml declares",
    ),
    "a file outside": (
        'subprocess.run(["cat", os.path.abspath("../outside")], check=True)',
        "outside the repository: add … to allow in [tool.hermetic] of pyproject.toml",
    ),
    "another excepthook": (
        'sys.excepthook = sys.__excepthook__; sh("cat data/other")',
        ADD,
    ),
}


def test_the_last_line_of_an_error_names_what_was_denied(project):
    write(project, {"../outside": "1"})
    ends = start_each(project, [deed for deed, _ in ERRORS.values()], before=C)
    for (_, remedy), done in zip(ERRORS.values(), ends, strict=True):
        assert violates(done, remedy), done.args


def test_an_error_that_has_nothing_to_do_with_it_is_left_alone(project):
    probe(project, 'raise ValueError("data/other")')
    assert start(project).stderr.endswith("ValueError: data/other\n")


BESIDE = {
    "by a program": ('sh("echo 1 >out/new")', "writes out/new,"),
    "by C code": ('fopen("out/new", "w")', "writes out/new,"),
    "in a new folder": ('sh("mkdir out/a; touch out/a/b out/a/c")', "a/b and 1 more"),
    "over another": ('sh("echo 2 >out/earlier")', "writes out/earlier,"),
    "a removal": ('sh("rm out/earlier")', "writes out/earlier,"),
}


@pytest.mark.parametrize(("deed", "words"), BESIDE.values(), ids=BESIDE)
def test_what_is_written_beside_the_outs_fails_the_stage(project, deed, words):
    write(project, {"out/earlier": "1"})
    probe(project, deed)
    assert violates(start(project), f"{words} … to its outs, or run it again if")


def test_a_folder_of_outs_and_others_is_for_writing_only(project):
    """Else C code could read what lies beside the out, undeclared."""
    write(project, {"out/earlier": "1"})
    probe(project, 'assert fopen("out/earlier") == "EACCES"')
    assert is_quiet(start(project))
    (project / "out/result").unlink()  # as DVC does before it runs a stage
    probe(project, 'open("out/result", "w+"); open("out/result").read()')
    assert is_quiet(start(project))
    (project / "out/result").unlink()
    denied = 'raise RuntimeError(f"out/result: {os.strerror(errno.EACCES)}")'
    probe(project, f'if fopen("out/result", "w+") == "EACCES": {denied}')
    told = "can write out/result but not read it back … to create in [tool.hermetic]"
    assert violates(start(project), told)
    create = '[tool.hermetic.stages.probe]\ncreate = ["out/result"]'
    (project / "pyproject.toml").write_text(create, "utf-8")
    assert is_quiet(start(project))
    (project / "out/result").unlink()
    edit(project / "dvc.yaml", "out/result", "out/result/")
    again = 'open("out/result/a", "w+"); open("out/result/a").read(); raise SystemExit'
    probe(project, again)
    assert is_quiet(start(project))


def test_outs_in_the_root_leave_the_rest_of_it_denied(project):
    edit(project / "dvc.yaml", "out/result", "result")
    deed = """
sh("echo done >result")
assert fopen("data/other") == "EACCES"
assert fails("cat", "dvc.yaml")
raise SystemExit
"""
    probe(project, deed)
    assert start(project).returncode == 0
    probe(project, 'sh("echo 1 >README.md"); raise SystemExit')
    assert violates(start(project), "writes README.md, which dvc.yaml does not declare")


def test_the_folder_of_an_out_is_made_and_removed_if_nothing_is_in_it(project):
    edit(project / "dvc.yaml", "out/result", "a/b/result")
    probe(project, 'assert os.path.isdir("a/b"); raise SystemExit')
    assert is_quiet(start(project))
    assert not (project / "a").exists()


@pytest.mark.parametrize("dep", ["data/file", "data/folder/sub/file"])
def test_deps_and_outs_may_be_links_to_the_cache(project, dep):
    under_dvc(project)
    cache = project / ".dvc/cache/files/md5/00"
    cache.mkdir(parents=True)
    (project / "out").mkdir()
    (project / dep).rename(cache / "1")
    (project / dep).symlink_to(cache / "1")
    (project / "out/result").symlink_to(cache / "2")
    (cache / "2").write_text("2")
    (cache / "3").write_text("3")
    deed = f"""
assert fopen("{dep}") == "opened"
assert fopen(".dvc/cache/files/md5/00/3") == "EACCES"
with open(hermetic.temporary("out/result"), "w") as file:
    file.write("new")
os.replace(hermetic.temporary("out/result"), "out/result")
raise SystemExit
"""
    probe(project, deed)
    assert is_quiet(start(project))
    assert (project / "out/result").read_text() == "new"
    assert (cache / "2").read_text() == "2"


CONNECT = """
code = "import socket; socket.create_connection(('127.0.0.1', {port}))"
assert fails(sys.executable, "-I", "-c", code) is {fails}
"""


@pytest.mark.skipif(landlock.version() < 4, reason="Landlock denies TCP from version 4")
@pytest.mark.parametrize("allow", ["", 'allow=["https://example.org"]'])
def test_programs_have_no_network_unless_it_is_allowed(project, allow):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        probe(project, CONNECT.format(port=port, fails=not allow), allow)
        assert is_quiet(start(project))


@pytest.mark.parametrize(
    "deed",
    [
        *("pass", "raise ValueError", 'open("data/other")', "sys.exit(3)"),
        "sys.excepthook(ValueError, ValueError(), None); os._exit(1)",
    ],
)
def test_temporary_files_are_gone_in_the_end(project, tmp_path, deed):
    (tmp_path / "tmp").mkdir()
    made = 'import tempfile; open(os.path.join(tempfile.gettempdir(), "file"), "w")'
    probe(project, f"{made}\n{deed}")
    start(project, TMPDIR=str(tmp_path / "tmp"))
    assert [*(tmp_path / "tmp").iterdir()] == []


def test_what_an_earlier_run_left_in_the_temporary_folder_is_not_read(project):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "state")
        file.write_text("1")
        probe(project, f"open({str(file)!r})")
        assert violates(start(project, TMPDIR="/tmp"), f"reads {file}, outside the")
        probe(project, f'assert fopen({str(file)!r}) == "EACCES"')
        assert is_quiet(start(project, TMPDIR="/tmp"))


def test_a_temporary_folder_in_the_repository_is_no_out(project):
    (project / "tmp").mkdir()
    probe(project, "import tempfile; tempfile.NamedTemporaryFile().write(b'1')")
    assert is_quiet(start(project, TMPDIR="tmp"))
    assert [*(project / "tmp").iterdir()] == []


def test_a_stage_says_what_checks_it_if_asked(project):
    probe(project, "")
    told = "stage probe is checked by Python's audit hook and Landlock\n"
    assert start(project, HERMETIC="verbose").stderr == told


# The property: a stage passes if and only if everything that it does is declared.

FILES = ["a", "b", "c/d", "c/e", "f/g/h"]
PLACES = [*FILES, "c", "f", "f/g"]
RESULTS = ["a", "b", "c/d", "c/new", "new", "f/g/new", "n/m"]
STAGE = """
import hermetic
hermetic.enforce()
import ctypes, errno, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.fopen.restype = ctypes.c_void_p

def succeeds(*command):
    return subprocess.run(command, capture_output=True).returncode == 0

for deed, name in eval(sys.argv[1]):
    got = True
    try:
        if deed == "read open":
            open(name).read()
        elif deed == "read list":
            os.listdir(name)
        elif deed == "read fopen":
            file = libc.fopen(name.encode(), b"r")
            got = bool(file) or ctypes.get_errno() != errno.EACCES
        elif deed == "read cat":
            got = succeeds("cat", name)
        elif deed == "write open":
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            open(name, "w").write("1")
        elif deed == "write sh":
            got = succeeds("sh", "-c", 'echo 1 >"$0"', name)
        elif deed == "param":
            hermetic.read_params(name)
    except OSError:
        got = False
    print(int(got), end="")
"""


def some(items: list[str], **size: Any) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(items), unique=True, **size)


def deed(kinds: list[str], names: list[str]) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.sampled_from(kinds), st.sampled_from(names))


DEEDS = st.one_of(
    deed(["read open", "read fopen", "read cat"], FILES),
    deed(["read list"], ["c", "f/g"]),
    deed(["write open", "write sh"], RESULTS),
    deed(["param"], ["p", "q", "q.r", "q.s"]),
)


def is_in(name: str, places: Iterable[str]) -> bool:
    return any(f"{name}/".startswith(f"{place}/") for place in places)


def is_declared(
    deed: tuple[str, str], deps: list[str], outs: list[str], params: list[str]
) -> bool:
    """The rule in its shortest form, for paths that do not overlap."""
    kind, name = deed
    if kind == "param":  # q stands for what is declared below it
        return name in params or (name == "q" and {"q.r", "q.s"} & {*params} != set())
    return is_in(name, outs if kind.startswith("write") else deps)


def may_be_denied_alone(deed: tuple[str, str], folders: set[str]) -> bool:
    """Whether the kernel denies a deed, and the stage may go on without it."""
    kind, name = deed
    is_beside_an_out = "" in folders or is_in(name, folders)
    # A shell makes no folder: only where n/m is an out is there one for it.
    return kind in ("read fopen", "read cat") or (
        kind == "write sh" and (name == "n/m" or not is_beside_an_out)
    )


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    deps=some(PLACES, max_size=3),
    outs=some(RESULTS, min_size=1, max_size=2),
    params=some(["p", "q.r", "q.s"], max_size=2),
    deeds=st.lists(DEEDS, min_size=1, max_size=4),
)
def test_a_stage_passes_if_and_only_if_all_that_it_does_is_declared(
    tmp_path, deps, outs, params, deeds
):
    outs = [out for out in outs if not is_in(out, deps)]
    deeds = [deed for deed in deeds if "read" not in deed[0] or deed[1] not in outs]
    folder = tmp_path / "project"
    shutil.rmtree(folder, ignore_errors=True)
    copy_package(folder / "hermetic")
    (folder / ".git").mkdir()
    code = ["hermetic", "stage.py"]
    entry = {"cmd": "c", "deps": [*deps, *code], "params": params, "outs": outs}
    write(folder, {**dict.fromkeys(FILES, "1"), "dvc.yaml": f"stages: {{s: {entry}}}"})
    write(folder, {"stage.py": STAGE, "params.yaml": "{p: 1, q: {r: 2, s: 3, t: 4}}"})
    expected = [is_declared(deed, deps, outs, params) for deed in deeds]
    done = run(folder, "python", "-B", "stage.py", repr(deeds), DVC_STAGE="s")
    folders = {os.path.dirname(out) for out in outs}
    may_go_on = [may_be_denied_alone(deed, folders) for deed in deeds]
    is_clean = all(e or m for e, m in zip(expected, may_go_on, strict=True))
    assert (done.returncode == 0) == is_clean, (done.stdout, done.stderr)
    if is_clean:
        assert done.stdout == "".join(str(int(e)) for e in expected)
