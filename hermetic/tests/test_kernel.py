"""What C code and other programs do is held to dvc.yaml, too: by the Linux kernel."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermetic import landlock
from hermetic.tests import test_hermetic
from hermetic.tests.test_hermetic import probe, refused, start, under_dvc
from tests.conftest import ROOT, edit, run

project = test_hermetic.project
pytestmark = pytest.mark.skipif(
    not landlock.version(), reason="this kernel has no Landlock"
)
C = """
import ctypes, errno, os, sqlite3, subprocess
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
"""

ALLOWED = {
    "a dep": 'assert fopen("data/file") == "opened"',
    "a file of a dep": 'assert fopen("data/folder/sub/file") == "opened"',
    "an out": 'assert fopen("out/result", "w") == "opened"',
    "an out again": 'fopen("out/result", "w"); assert fopen("out/result") == "opened"',
    "a program that reads a dep": 'assert sh("cat data/file").stdout == "1"',
    "a program that writes an out": """
sh("echo 1 >out/.result.tmp && mv out/.result.tmp out/result")
""",
    "a database in the folder of the outs": """
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
    "the environment": """
import sys
subprocess.run([sys.executable, "-c", "import numpy"], check=True)
""",
}


@pytest.mark.parametrize("deed", ALLOWED.values(), ids=ALLOWED)
def test_c_code_and_programs_may_use_what_is_declared(project, deed):
    probe(project, deed, at_import=C)
    done = start(project)
    assert (done.returncode, done.stderr) == (0, "")
    assert (project / "out/result").read_text() == "done"


DENIED = {
    "a file": 'assert fopen("data/other") == "EACCES"',
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
    "a program": 'assert subprocess.run(["cat", "data/other"]).returncode == 1',
    "a program of a program": """
assert subprocess.run(["sh", "-c", "sh -c 'cat data/other'"]).returncode == 1
""",
    "another Python": """
import sys
code = "open('data/other')"
assert subprocess.run([sys.executable, "-c", code]).returncode == 1
""",
    "removing": 'assert subprocess.run(["rm", "-f", "data/other"]).returncode == 1',
    "moving it to the out": """
assert subprocess.run(["mv", "data/other", "out/result"]).returncode == 1
""",
    "linking it to the out": """
assert subprocess.run(["ln", "data/other", "out/result"]).returncode == 1
""",
    "running it": 'assert subprocess.run(["sh", "./script"]).returncode != 0',
}


@pytest.mark.parametrize("deed", DENIED.values(), ids=DENIED)
def test_c_code_and_programs_get_nothing_else(project, deed):
    """Denied, and nothing was read: a stage may go on after that."""
    (project / "link").symlink_to("data/other")
    (project / "script").write_text("true")
    (project / "../outside").write_text("1")
    probe(project, deed, at_import=C)
    done = start(project)
    assert done.returncode == 0, done.stderr
    assert (project / "data/other").read_text() == "2"
    assert not (project / "data/new").exists()


TOLD = {
    "a program": ('sh("cat data/other")', 'add "- data/other" to its deps'),
    "its own words": (
        'subprocess.run(["cat", "data/other"], check=True)',
        'add "- data/other" to its deps',
    ),
    "a library": (
        'raise RuntimeError(f"cannot read data/other: Permission denied")',
        'add "- data/other" to its deps',
    ),
    "no name": (
        'sqlite3.connect("data/other").execute("select 1 from t")',
        "add it to its deps or outs",
    ),
    "a file outside": (
        'subprocess.run(["cat", os.path.abspath("../outside")], check=True)',
        "outside the repository: name it in enforce(allow=[…])",
    ),
}


@pytest.mark.parametrize(("deed", "remedy"), TOLD.values(), ids=TOLD)
def test_the_last_line_tells_that_dvc_yaml_holds_the_stage(project, deed, remedy):
    (project / "../outside").write_text("1")
    probe(project, deed, at_import=C)
    done = start(project)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("probe: stage probe ")
    assert remedy in last


def test_an_error_that_has_nothing_to_do_with_it_is_left_alone(project):
    probe(project, 'raise ValueError("data/other")', at_import=C)
    assert start(project).stderr.endswith("ValueError: data/other\n")


STRAYS = {
    "by a program": ('sh("echo 1 >out/stray")', "writes out/stray,"),
    "by C code": ('fopen("out/stray", "w")', "writes out/stray,"),
    "in a new folder": ('sh("mkdir out/a; touch out/a/b out/a/c")', "a/b and 1 more"),
    "over another": ('sh("echo 2 >out/earlier")', "writes out/earlier,"),
    "a removal": ('sh("rm out/earlier")', "writes out/earlier,"),
}


@pytest.mark.parametrize(("deed", "words"), STRAYS.values(), ids=STRAYS)
def test_what_is_written_beside_the_outs_fails_the_stage(project, deed, words):
    (project / "out").mkdir()
    (project / "out/earlier").write_text("1")
    probe(project, deed, at_import=C)
    assert refused(start(project), words, "to its outs, or run it again if")


def test_a_folder_of_outs_and_others_is_for_writing_only(project):
    """Else C code could read what lies beside the out, undeclared."""
    (project / "out").mkdir()
    (project / "out/earlier").write_text("1")
    probe(project, 'assert fopen("out/earlier") == "EACCES"', at_import=C)
    assert start(project).returncode == 0
    (project / "out/result").unlink()  # as DVC does before it runs a stage
    probe(project, 'open("out/result", "w+")', at_import=C)
    assert refused(start(project), "may write out/result, but not read it again")
    (project / "out/result").unlink()
    edit(project / "dvc.yaml", "out/result", "out/result/")
    again = 'open("out/result/a", "w+"); open("out/result/a").read(); raise SystemExit'
    probe(project, again)
    assert start(project).returncode == 0


def test_outs_in_the_root_leave_the_rest_of_it_denied(project):
    edit(project / "dvc.yaml", "out/result", "result")
    deed = """
sh("echo done >result")
assert fopen("data/other") == "EACCES"
assert subprocess.run(["cat", "dvc.yaml"]).returncode == 1
raise SystemExit
"""
    probe(project, deed, at_import=C)
    assert start(project).returncode == 0
    probe(project, 'sh("echo 1 >README.md"); raise SystemExit', at_import=C)
    assert refused(start(project), "writes README.md, which dvc.yaml does not declare")


def test_the_folder_of_an_out_is_made_and_removed_if_nothing_is_in_it(project):
    edit(project / "dvc.yaml", "out/result", "a/b/result")
    probe(project, 'assert os.path.isdir("a/b"); raise SystemExit', at_import=C)
    assert start(project).returncode == 0
    assert not (project / "a").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_deps_may_be_links_to_the_cache(project, kind):
    dep = project / {"file": "data/file", "folder": "data/folder/sub/file"}[kind]
    under_dvc(project)
    cached = project / ".dvc/cache/files/md5/00/1"
    cached.parent.mkdir(parents=True)
    dep.rename(cached)
    dep.symlink_to(cached)
    (project / ".dvc/cache/files/md5/00/2").write_text("2")
    deed = f"""
assert fopen("{dep.relative_to(project)}") == "opened"
assert fopen(".dvc/cache/files/md5/00/2") == "EACCES"
"""
    probe(project, deed, at_import=C)
    assert start(project).returncode == 0


CONNECT = """
import sys
code = "import socket; socket.create_connection(('127.0.0.1', {port}))"
assert subprocess.run([sys.executable, "-c", code]).returncode == {code}
"""


@pytest.mark.skipif(landlock.version() < 4, reason="Landlock holds TCP from version 4")
@pytest.mark.parametrize("allowed", [False, True])
def test_programs_have_no_network_unless_it_is_allowed(project, allowed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        deed = CONNECT.format(port=server.getsockname()[1], code=int(not allowed))
        probe(project, deed, at_import=C)
        if allowed:
            edit(
                project / "stages/plumbing/runtime.py",
                'places = [f"{CACHE}/"]',
                'places = [f"{CACHE}/", "https://example.org"]',
            )
        done = start(project)
    assert done.returncode == 0, done.stderr


def temporary_folders(folder: Path) -> list[Path]:
    return [*folder.glob("hermetic-*")]


@pytest.mark.parametrize(
    "deed", ["pass", "raise ValueError", 'open("data/other")', "sys.exit(3)"]
)
def test_temporary_files_are_gone_in_the_end(project, tmp_path, deed):
    made = 'open(os.path.join(tempfile.gettempdir(), "file"), "w")'
    probe(project, f"{made}\n{deed}")
    start(project, TMPDIR=str(tmp_path))
    assert temporary_folders(tmp_path) == []


def test_what_an_earlier_run_left_in_the_temporary_folder_is_not_read(project):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "state")
        file.write_text("1")
        probe(project, f"open({str(file)!r})")
        assert refused(start(project, TMPDIR="/tmp"), f"reads {file}, outside the")
        probe(project, f'assert fopen({str(file)!r}) == "EACCES"', at_import=C)
        assert start(project, TMPDIR="/tmp").returncode == 0


def test_a_temporary_folder_in_the_repository_is_no_out(project):
    (project / "tmp").mkdir()
    probe(project, "tempfile.NamedTemporaryFile().write(b'1')")
    done = start(project, TMPDIR="tmp")
    assert (done.returncode, done.stderr) == (0, "")
    assert [*(project / "tmp").iterdir()] == []


def test_a_stage_says_what_holds_it_only_if_asked(project):
    probe(project, "")
    assert start(project).stderr == ""
    held = "stage probe is held by Python's audit hook and the kernel\n"
    assert start(project, HERMETIC="verbose").stderr == held


# The property: a stage passes if and only if all that it does is declared.

FILES = ["a", "b", "c/d", "c/e", "f/g/h"]
PLACES = [*FILES, "c", "f", "f/g"]
RESULTS = ["a", "b", "c/d", "c/new", "new", "f/g/new", "n/m"]
WRITES = ["write open", "write sh"]
READS = ["read open", "read fopen", "read cat"]
STAGE = """
import hermetic
hermetic.enforce()
import ctypes, errno, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.fopen.restype = ctypes.c_void_p
fopen = lambda name: libc.fopen(name.encode(), b"r")
for deed, name in eval(sys.argv[1]):
    got = True
    try:
        if deed == "read open":
            open(name).read()
        elif deed == "read list":
            os.listdir(name)
        elif deed == "read fopen":
            got = bool(fopen(name)) or ctypes.get_errno() != errno.EACCES
        elif deed == "read cat":
            got = subprocess.run(["cat", name], capture_output=True).returncode == 0
        elif deed == "write open":
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            open(name, "w").write("1")
        elif deed == "write sh":
            command = ["sh", "-c", 'echo 1 >"$0"', name]
            got = subprocess.run(command, capture_output=True).returncode == 0
        elif deed == "param":
            hermetic.read_params(name)
    except OSError:
        got = False
    print(int(got), end="")
"""
DECLARATIONS = st.fixed_dictionaries(
    {
        "deps": st.lists(st.sampled_from(PLACES), max_size=3, unique=True),
        "outs": st.lists(st.sampled_from(RESULTS), min_size=1, max_size=2, unique=True),
        "params": st.lists(st.sampled_from(["p", "q.r", "q.s"]), max_size=2),
    }
)
DEEDS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(READS), st.sampled_from(FILES)),
        st.tuples(st.just("read list"), st.sampled_from(["c", "f/g"])),
        st.tuples(st.sampled_from(WRITES), st.sampled_from(RESULTS)),
        st.tuples(st.just("param"), st.sampled_from(["p", "q", "q.r", "q.s"])),
    ),
    min_size=1,
    max_size=4,
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
    return kind in ("read fopen", "read cat") or (
        kind == "write sh" and not is_beside_an_out
    )


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(declared=DECLARATIONS, deeds=DEEDS)
def test_a_stage_passes_if_and_only_if_all_that_it_does_is_declared(
    tmp_path, declared, deeds
):
    deps, outs, params = declared["deps"], declared["outs"], declared["params"]
    outs = [out for out in outs if not is_in(out, deps)]
    deeds = [deed for deed in deeds if "read" not in deed[0] or deed[1] not in outs]
    folder = tmp_path / "project"
    shutil.rmtree(folder, ignore_errors=True)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1")
    (folder / "stage.py").write_text(STAGE)
    (folder / "params.yaml").write_text("{p: 1, q: {r: 2, s: 3, t: 4}}")
    (folder / ".git").mkdir()
    shutil.copytree(ROOT / "hermetic", folder / "hermetic")
    deps_and_code = [*deps, "hermetic", "stage.py"]
    items = {"cmd": "c", "deps": deps_and_code, "params": params, "outs": outs}
    (folder / "dvc.yaml").write_text(f"stages: {{s: {items}}}")
    expected = [is_declared(deed, deps, outs, params) for deed in deeds]
    done = run(folder, "python", "-B", "stage.py", repr(deeds), DVC_STAGE="s")
    folders = {os.path.dirname(out) for out in outs}
    may_go_on = [may_be_denied_alone(deed, folders) for deed in deeds]
    is_clean = all(e or m for e, m in zip(expected, may_go_on, strict=True))
    assert (done.returncode == 0) == is_clean, (done.stdout, done.stderr)
    if is_clean:
        assert done.stdout == "".join(str(int(e)) for e in expected)
