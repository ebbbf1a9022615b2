"""A stage reads and writes what dvc.yaml declares, all of it and nothing else."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

import hermetic
from hermetic.declaration import Contents, Declaration
from stages.plumbing import runtime
from stages.plumbing.errors import one_line
from tests.conftest import ROOT, STAGES, commit, contents, edit, run, succeed

FILES = {
    "data/file": "1",
    "data/folder/sub/file": "1",
    "data/other": "2",
    "dvc.yaml": """
stages:
  probe:
    cmd: python -m stages probe
    deps:
      - data/file
      - data/folder
      - requirements.txt
      - stages/__main__.py
      - stages/plumbing
      - stages/probe.py
    params:
      - mine
    outs:
      - out/result
""",
    "params.yaml": "mine: 1\nother: 2\n",
    "requirements.txt": "",
    "stages/helper.py": "VALUE = 1",
    "stages/room/helper.py": "VALUE = 1",
}
PROBE = """
import importlib, io, multiprocessing, os, pathlib, shutil, socket, subprocess
import sys, tempfile, threading
import hermetic
from stages.plumbing import runtime

{at_import}

def main():
{deed}
    os.makedirs("out", exist_ok=True)
    with open("out/result", "w") as file:
        file.write("done")
"""


def probe(folder: Path, deed: str, at_import: str = "") -> None:
    """Make the stage do a deed and then write its out."""
    body = textwrap.indent(deed or "pass", "    ")
    text = PROBE.format(at_import=at_import, deed=body)
    (folder / "stages/probe.py").write_text(text, "utf-8")


@pytest.fixture
def project(tmp_path):
    """A pipeline of one stage, started as ours are, and files it does not declare."""
    folder = tmp_path / "a project"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    shutil.copy(ROOT / "stages/__main__.py", folder / "stages")
    # With what is compiled: that would take a fifth of the time of a stage.
    shutil.copytree(ROOT / "stages/plumbing", folder / "stages/plumbing")
    yield folder
    shutil.rmtree(tmp_path)


def start(
    folder: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Start the stage by hand, without warnings: stderr has only its own lines."""
    command = ["python", "-W", "ignore", "-m", "stages"]
    return run(folder, *command, *(arguments or ["probe"]), **variables)


HOOK_ALONE = """
import sys
from hermetic import landlock
landlock.version = lambda: 0
from stages.__main__ import main
sys.argv[1:] = ["probe"]
main()
"""


def start_without_kernel(folder: Path) -> subprocess.CompletedProcess[str]:
    """Start the stage as on a system without Landlock."""
    return run(folder, "python", "-W", "ignore", "-c", HOOK_ALONE)


STARTS = {"with the kernel": start, "without the kernel": start_without_kernel}
starts = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Whether the guard stopped the stage, in one line that has all these words."""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("probe: stage probe "), done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    return done.returncode == 1


DECLARED = {
    "a dep": 'open("data/file").read()',
    "a dep by its absolute path": 'open(os.path.abspath("data/file")).read()',
    "files in a dep that is a folder": """
for folder, _, names in os.walk("data/folder"):
    for name in names:
        open(os.path.join(folder, name))
""",
    "a param": 'assert hermetic.read_params("mine") == 1',
    "a temporary of an out": """
os.makedirs("out", exist_ok=True)
open("out/.result.tmp", "w").close()
os.replace("out/.result.tmp", "out/result")
""",
    "its own out again": """
os.makedirs("out", exist_ok=True)
open("out/result", "w")
open("out/result")
os.remove("out/result")
""",
    "locking the folder of an out": """
os.makedirs("out", exist_ok=True)
os.close(os.open("out", os.O_RDONLY))
""",
    "the standard library": "import wave, xml.dom.minidom",
    "the environment": "import numpy",
    "temporary files": """
with tempfile.TemporaryDirectory() as folder:
    os.mkdir(folder + "/sub")
    open(folder + "/sub/file", "w").close()
    os.rename(folder + "/sub/file", folder + "/file")
    os.rmdir(folder + "/sub")
""",
    "memory and random numbers": "os.urandom(8); io.BytesIO(b'1').read()",
    "names of code that has no file": """
import contextlib, traceback
for name in ("<unknown>", "<string>", "<stdin>"):
    with contextlib.suppress(FileNotFoundError):
        open(name)
    for code in ("1 +", "(1 /\\n    0)"):
        try:
            exec(compile(code, name, "exec"))
        except (SyntaxError, ZeroDivisionError):
            traceback.format_exc()
""",
    "threads and forks": """
thread = threading.Thread(target=lambda: open("data/file").read())
thread.start()
thread.join()
child = multiprocessing.get_context("fork").Process(target=print)
child.start()
child.join()
assert child.exitcode == 0
""",
}


@starts
@pytest.mark.parametrize("deed", DECLARED.values(), ids=DECLARED)
def test_what_is_declared_or_leaves_no_trace_is_allowed(project, deed, start):
    probe(project, deed)
    done = start(project)
    assert (done.returncode, done.stderr) == (0, "")
    assert (project / "out/result").read_text() == "done"


READ = ["reads data/other", 'add "- data/other" to its deps']
READ_HELPER = ["reads stages/helper.py", 'add "- stages/helper.py" to its deps']
READ_OUT = ["reads out,", 'add "- out" to its deps']
WRITE = ["writes data/new", 'add "- data/new" to its outs']
PROGRAM = ["starts a program", "do its work in Python"]
UNDECLARED = {
    "open": ('open("data/other")', READ),
    "os.open": ('os.open("data/other", os.O_RDONLY)', READ),
    "pathlib": ('pathlib.Path("data/other").read_bytes()', READ),
    "an absolute path": ('open(os.path.abspath("data/other"))', READ),
    "a path of bytes": ('open(b"data/other")', READ),
    "a path with dots": ('open("data/folder/../other")', READ),
    "another current folder": ('os.chdir("data"); open("other")', READ),
    "a path through /proc": ('open("/proc/self/cwd/data/other")', ["data/other"]),
    "a file that is not there": ('open("data/none")', ["reads data/none"]),
    "a thread": (
        'thread = threading.Thread(target=open, args=["data/other"])\n'
        "thread.start(); thread.join()",
        READ,
    ),
    "several, of which the first is told": (
        'try: open("data/other")\nfinally: open("data/none")',
        READ,
    ),
    "a folder": ('os.listdir("data")', ["reads data,", 'add "- data" to its deps']),
    "a tree": ('list(os.walk("data"))', ["reads data,"]),
    "a pattern": ('list(pathlib.Path("data").glob("*"))', ["reads data,"]),
    "its own folder": ("os.listdir()", ["reads .,", 'add "- ." to its deps']),
    "a pattern in its own folder": (
        'import glob; glob.glob("*.txt")',
        ["reads .,", 'add "- ." to its deps'],
    ),
    "the folder of a module": (
        'list(pathlib.Path("stages").glob("*.py"))',
        ["reads stages,", 'add "- stages" to its deps'],
    ),
    "the folder of an out": (
        'os.makedirs("out", exist_ok=True); os.listdir("out")',
        READ_OUT,
    ),
    "the open folder of an out": (
        'os.makedirs("out", exist_ok=True); os.listdir(os.open("out", os.O_RDONLY))',
        READ_OUT,
    ),
    "copying": ('shutil.copy("data/other", tempfile.mkdtemp())', READ),
    "importing": ("import stages.helper", READ_HELPER),
    "importing by name": (
        'importlib.import_module("stages.helper")',
        ["stages/helper.py"],
    ),
    "importing from a room": (
        "import stages.room.helper",
        ["reads stages/room", 'add "- stages/room" to its deps'],
    ),
    "dvc.yaml": ('open("dvc.yaml")', ["reads dvc.yaml"]),
    "Git": ('open(".git/HEAD")', ["reads .git/HEAD"]),
    "the cache of DVC": (
        'open(".dvc/cache/files/md5/00/1")',
        ["reads .dvc/cache/files/md5/00/1"],
    ),
    "params.yaml itself": (
        'open("params.yaml")',
        ["reads params.yaml", "use hermetic.read_params(KEY)"],
    ),
    "another section": (
        'hermetic.read_params("other")',
        ["reads other", 'add "- other" to its params'],
    ),
    "writing": ('open("data/new", "w")', WRITE),
    "appending": ('open("data/other", "a")', ["writes data/other"]),
    "updating a dep": (
        'open("data/file", "r+")',
        ["writes data/file", 'add "- data/file" to its outs'],
    ),
    "renaming from": (
        'os.makedirs("out", exist_ok=True); os.rename("data/other", "out/result")',
        ["writes data/other"],
    ),
    "renaming to": ('os.rename("data/file", "data/new")', ["data/file"]),
    "removing": ('os.remove("data/other")', ["writes data/other"]),
    "removing a dep": ('os.remove("data/file")', ["writes data/file"]),
    "removing a tree": (
        'shutil.rmtree("data/folder/sub")',
        ["writes data/folder/sub/file"],
    ),
    "making a folder": ('os.makedirs("data/new")', WRITE),
    "linking": ('os.link("data/file", "data/new")', ["data/file"]),
    "a symbolic link": ('os.symlink("file", "data/new")', WRITE),
    "truncating": ('os.truncate("data/other", 0)', ["writes data/other"]),
    "a mode": ('os.chmod("data/other", 0o600)', ["writes data/other"]),
    "a temporary in the repository": (
        'tempfile.mkstemp(dir="data")',
        ["writes data/tmp"],
    ),
    "another's data": (
        'open("/home/someone/data.csv")',
        ["reads /home/someone/data.csv", "outside the repository"],
    ),
    "another's folder": (
        'os.listdir("/home/someone")',
        ["reads /home/someone", "outside the repository"],
    ),
    "writing elsewhere": (
        'open("/home/someone/result", "w")',
        ["writes /home/someone/result"],
    ),
    "another program instead": (
        'os.execv("/bin/true", ["true"])',
        ["puts a program in its place", "subprocess.run"],
    ),
    "a server": ('socket.create_connection(("127.0.0.1", 9))', ["uses the network"]),
    "a name": ('socket.getaddrinfo("localhost", 80)', ["uses the network"]),
    "listening": ('socket.socket().bind(("127.0.0.1", 0))', ["uses the network"]),
}


@starts
@pytest.mark.parametrize(("deed", "words"), UNDECLARED.values(), ids=UNDECLARED)
def test_what_is_not_declared_is_refused_in_one_line(project, deed, words, start):
    before = contents(project, ".")
    probe(project, deed)
    done = start(project)
    if "Thread" in deed:  # Python shows the traceback of a thread's error
        done.stderr = done.stderr[done.stderr.rindex("probe: ") :]
    assert refused(done, *words)
    after = contents(project, ".")
    assert {**after, "stages/probe.py": b""} == {**before, "stages/probe.py": b""}


PROGRAMS = {
    "a program": ('subprocess.run(["true"])', PROGRAM),
    "a shell": ('os.system("true")', ["starts a program"]),
    "an unguarded process": (
        'multiprocessing.get_context("spawn").Process(target=print).start()',
        ["starts a program"],
    ),
}


@pytest.mark.parametrize(("deed", "words"), PROGRAMS.values(), ids=PROGRAMS)
def test_programs_may_be_started_only_if_the_kernel_holds_them(project, deed, words):
    probe(project, deed)
    assert refused(start_without_kernel(project), *words)
    assert not (project / "out").exists()
    done = start(project)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("deed", "words"),
    [('open("data/other")', READ), ("import stages.helper", READ_HELPER)],
)
def test_the_guard_holds_while_the_stage_is_imported(project, deed, words):
    probe(project, "", at_import=deed)
    assert refused(start(project), *words)
    assert not (project / "out").exists()


SWALLOWED = {
    "before it writes": """
try:
    open("data/other")
except OSError:
    pass
""",
    "and every later error": """
import contextlib
with contextlib.suppress(BaseException):
    open("data/other")
with contextlib.suppress(BaseException):
    open("out/result", "w")
sys.exit(0)
""",
    "after it opened its out": """
os.makedirs("out", exist_ok=True)
with open("out/result", "w") as file:
    try:
        file.write(open("data/other").read())
    except OSError:
        pass
sys.exit(0)
""",
    "in a process that it forks": """
if not (child := os.fork()):
    try:
        open("data/other")
    except OSError:
        os._exit(0)
os.waitpid(child, 0)
""",
}


@pytest.mark.parametrize("deed", SWALLOWED.values(), ids=SWALLOWED)
def test_a_stage_that_swallows_the_error_still_fails_and_says_why(project, deed):
    probe(project, deed)
    assert refused(start(project), *READ)
    result = project / "out/result"
    assert not result.exists() or result.read_text() == ""


def test_a_link_to_an_undeclared_file_is_refused(project):
    (project / "data/folder/link").symlink_to("../other")
    (project / "link").symlink_to("data/other")
    probe(project, 'open("link")')
    assert refused(start(project), "reads link")


@pytest.mark.parametrize(
    ("name", "variables"), [("another", {}), ("probe", {"DVC_STAGE": "gone"})]
)
def test_a_stage_that_dvc_yaml_does_not_name_is_refused(project, name, variables):
    """By hand and under DVC."""
    shutil.copy(project / "stages/helper.py", project / "stages/another.py")
    probe(project, "")
    done = start(project, name, **variables)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"stage {variables.get('DVC_STAGE', name)} is in no dvc.yaml" in done.stderr
    assert not (project / "out").exists()


def test_a_process_that_names_no_stage_is_left_alone(project):
    program = """
import hermetic
from stages.plumbing import runtime
assert hermetic.enforce() is None
print(open("data/other").read())
"""
    assert succeed(project, "python", "-c", program) == "2\n"


@pytest.mark.parametrize("arguments", [["probe", "another"], ["--help", "probe"]])
def test_a_stage_takes_no_arguments(project, arguments):
    probe(project, "")
    done = start(project, *arguments)
    assert (done.returncode, done.stderr) == (1, "usage: python -m stages STAGE\n")


def under_dvc(folder: Path) -> None:
    """Make the project a repository of Git and DVC, and commit it."""
    succeed(folder, "git", "init", "--quiet")
    succeed(folder, "git", "config", "user.name", "A")
    succeed(folder, "git", "config", "user.email", "a@example.org")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\nanalytics = false\n", "utf-8")
    (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n", "utf-8")
    (folder / ".dvcignore").write_text("__pycache__/\n", "utf-8")
    (folder / ".gitignore").write_text("__pycache__/\n/out\n/.venv\n", "utf-8")
    commit(folder)


WAYS = [
    pytest.param(["repro"], [], id="repro"),
    pytest.param(["exp", "run"], [], id="experiment"),
    pytest.param(["exp", "run", "--temp"], [], id="in a copy"),
    pytest.param(
        ["exp", "run", "--queue"],
        ["exp", "run", "--run-all"],
        id="queue",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("command", "last"), WAYS)
def test_every_way_in_which_dvc_runs_a_stage_is_guarded(project, command, last):
    """The stage first does what it may, and then what it may not."""
    probe(project, "")
    under_dvc(project)
    allowed = 'open("data/file"); print(hermetic.read_params("mine"), "is mine")'
    printed = ""
    for deed in (allowed, 'open("data/other")'):
        probe(project, deed)
        done = run(project, "dvc", *command)
        printed += done.stdout + done.stderr
    if last:
        run(project, "dvc", *last)
        logs = (project / ".dvc/tmp/exps/run").rglob("*.out")
        printed = "".join(log.read_text("utf-8") for log in logs)
    assert printed.count("\n1 is mine\n") == 1, printed
    reads = "reads data/other, which dvc.yaml does not declare: add"
    assert printed.count(f"\nprobe: stage probe {reads}") == 1, printed


def test_the_environment_may_lie_inside_the_repository(project):
    """A real one, with the one package that the guard needs."""
    venv = ["-m", "venv", "--without-pip", "--symlinks", ".venv"]
    succeed(project, sys.executable, *venv)
    packages = next((project / ".venv").glob("lib*/python*/site-packages"))
    for library in ("yaml", "_yaml"):
        shutil.copytree(Path(yaml.__file__).parents[1] / library, packages / library)
    (packages / "ours.py").write_text("", "utf-8")
    inside = f"assert sys.prefix == {str(project / '.venv')!r}"
    probe(project, f"import ours\n{inside}\nopen('data/file')")
    command = [".venv/bin/python", "-m", "stages", "probe"]
    assert run(project, *command).returncode == 0
    probe(project, 'open("data/other")')
    assert refused(run(project, *command), *READ)
    probe(project, 'open(".venv/pyvenv.cfg", "w")')
    assert refused(run(project, *command), "writes .venv/pyvenv.cfg")


MODULES = {
    "a package": ("optax/__init__.py", "import optax"),
    "a module": ("optax.py", "import optax"),
    "one named as the standard library's": ("wave.py", "import wave"),
    "one loaded before the stage": ("sitecustomize.py", "pass"),
    "an extension module": ("optax.so", "import optax"),
    "a compiled module without its source": ("optax.pyc", "import optax"),
    "one whose error is swallowed": (
        "optax.py",
        "try: import optax\nexcept Exception: pass",
    ),
}


@pytest.mark.parametrize(("file", "deed"), MODULES.values(), ids=MODULES)
def test_a_module_from_outside_the_environment_is_refused_by_name(
    project, tmp_path, file, deed
):
    other = tmp_path / "other" / file
    other.parent.mkdir(parents=True)
    other.touch()
    probe(project, deed)
    done = start(project, PYTHONPATH=str(tmp_path / "other"))
    remedy = "unset PYTHONPATH, or install it into the environment"
    assert refused(done, f"imports {other}, from outside the environment: {remedy}")
    assert not (project / "out").exists()


def test_a_module_in_a_zip_file_is_refused_before_the_stage_and_in_it(
    project, tmp_path
):
    file = tmp_path / "other.zip"
    probe(project, "import optax")
    for name in ("sitecustomize.py", "optax.py"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, "")
        assert refused(start(project, PYTHONPATH=str(file)), f"imports {file}")
        assert not (project / "out").exists()


def test_a_pythonpath_from_which_nothing_is_imported_is_allowed(project, tmp_path):
    (tmp_path / "other.py").touch()
    probe(project, "import wave, numpy")
    for folder in (tmp_path, "/home/someone/lib", sysconfig.get_path("purelib")):
        done = start(project, PYTHONPATH=str(folder))
        assert (done.returncode, done.stderr) == (0, "")


def test_a_pythonpath_in_the_repository_needs_a_line_in_deps(project):
    (project / "data/helper.py").touch()
    probe(project, "import helper")
    assert refused(start(project, PYTHONPATH="data"), 'add "- data/helper.py" to')
    (project / "data/folder/helper.py").touch()
    assert start(project, PYTHONPATH="data/folder").returncode == 0


@pytest.mark.parametrize(
    "prefix", ["compiled", "../compiled", "{tmp}/compiled", "{tmp}/a link"]
)
def test_compiled_modules_may_be_kept_in_another_folder(project, tmp_path, prefix):
    (tmp_path / "a link").symlink_to(tmp_path)
    prefix = prefix.format(tmp=tmp_path)
    variables = {"PYTHONPYCACHEPREFIX": prefix, "PYTHONDONTWRITEBYTECODE": ""}
    probe(project, "import wave, numpy")
    for _ in range(2):  # written, then read
        done = start(project, **variables)
        assert (done.returncode, done.stderr) == (0, "")
    assert list((project / prefix).rglob("wave.*.pyc"))
    probe(project, "import stages.helper")
    for _ in range(2):
        assert refused(start(project, **variables), *READ_HELPER)


IGNORED = {
    ".dvcignore": "# a comment\n*.log\n!keep.log\n/data/folder/c\nname\nfolder/\n",
    "data/folder/sub/.dvcignore": "*.png\n!b.log\n",
}
NAMES = [
    *("a.log", "keep.log", "c", "c/x", "name", "names", "name/x", "folder/x", "folder"),
    *(
        "x/x",
        "sub/a.log",
        "sub/b.log",
        "sub/c.png",
        "d.png",
        "sub/folder/x",
        "sub/name",
    ),
]


def test_a_file_that_dvcignore_hides_is_refused(project):
    """An edit of it would change nothing."""
    (project / ".dvcignore").write_text("*.tmp\n")
    (project / "data/folder/hidden.tmp").touch()
    probe(project, 'open("data/folder/sub/file"); open("data/folder/hidden.tmp")')
    words = "reads data/folder/hidden.tmp, which .dvcignore hides from DVC"
    assert refused(start(project), words)


def test_what_is_ignored_is_what_dvc_ignores(tmp_path):
    root = tmp_path / "root"
    for name, text in IGNORED.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\nno_scm = true\n")
    for name in NAMES:  # some as a file in a folder that is a file elsewhere
        shutil.rmtree(root / "data/folder" / name.split("/")[0], ignore_errors=True)
        (root / "data/folder/sub").mkdir(parents=True, exist_ok=True)
        for file, text in IGNORED.items():
            (root / file).write_text(text)
        path = root / "data/folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        dep = frozenset({str(root / "data/folder")})
        declared = Declaration("s", str(root), str(root), dep, *[frozenset()] * 2)
        theirs = Repo(str(root)).dvcignore.is_ignored_file(str(path))
        assert Contents(declared).is_ignored(str(path)) == theirs, name
        path.unlink()


@pytest.mark.parametrize(
    "path", ["/opt/datasets/a.csv", "/run/media/usb/a.csv", "/dev/shm/a", "/mnt/a"]
)
def test_what_is_mounted_or_shared_is_not_the_systems(guard, path):
    for system in ("/etc/hosts", "/usr/share/zoneinfo/UTC", "/proc/cpuinfo"):
        guard.check_read(system)
    with pytest.raises(hermetic.UndeclaredAccess, match="outside the repository"):
        guard.check_read(path)


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for the temporary files of a guard."""
    return str(tmp_path_factory.mktemp("temporary"))


@pytest.fixture
def guard(tmp_path: Path, temporary: str) -> hermetic.Guard:
    """A guard of a stage that declares one dep; it has yet to watch anything."""
    root = str(tmp_path / "root")
    deps = frozenset({f"{root}/dep.py"})
    declared = hermetic.Declaration("s", root, root, deps, frozenset(), frozenset())
    return hermetic.Guard(declared, temporary)


STDLIB, PACKAGES = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")


@pytest.mark.parametrize(
    "folder",
    [
        *("/tmp/other", "/opt/other", "/etc", "/home/someone"),
        *("/usr/lib/python3/dist-packages", "/usr/local/lib/python3/dist-packages"),
        *(f"{STDLIB}/site-packages", f"{STDLIB}/dist-packages"),
        *(f"{sys.prefix}/other", f"{sys.base_prefix}/other"),
    ],
)
@pytest.mark.parametrize(
    "name", ["optax.py", "optax/__pycache__/optax.cpython-311.pyc", "optax.pyc"]
)
def test_only_folders_of_the_environment_have_modules(guard, folder, name):
    """Wherever a stage may read other files."""
    assert sys.prefix != sys.base_prefix, "run the tests in a virtual environment"
    for module in (f"{STDLIB}/wave.py", f"{PACKAGES}/{name}"):
        guard.check_read(module)
    with pytest.raises(hermetic.UndeclaredAccess, match=r"imports .*/optax"):
        guard.check_read(f"{folder}/{name}")


def test_modules_of_the_system_may_be_links(tmp_path, temporary, monkeypatch):
    """Debian's sitecustomize.py is in /etc; /lib64 may be /lib."""
    paths = {name: str(tmp_path / name) for name in sysconfig.get_path_names()}
    for name in ("stdlib", "purelib", "etc"):
        (tmp_path / name).mkdir()
    (tmp_path / "platlib").symlink_to("purelib")
    (tmp_path / "etc/sitecustomize.py").touch()
    (tmp_path / "stdlib/sitecustomize.py").symlink_to("../etc/sitecustomize.py")
    monkeypatch.setattr(sysconfig, "get_path", lambda name, **_: paths[name])
    root = str(tmp_path / "root")
    declared = hermetic.Declaration("s", root, root, *[frozenset()] * 3)
    guard = hermetic.Guard(declared, temporary)
    for name in ("stdlib/sitecustomize.py", "platlib/a.py", "purelib/a.py"):
        guard.check_read(f"{tmp_path}/{name}")
    with pytest.raises(hermetic.UndeclaredAccess, match="imports"):
        guard.check_read(f"{tmp_path}/etc/sitecustomize.py")


@pytest.mark.parametrize("prefix", [".", "root"])
def test_a_repository_in_the_folder_of_the_environment_is_guarded(
    tmp_path, temporary, monkeypatch, prefix
):
    """/usr/src/app, where Python is in /usr; or an environment that is the root."""
    root = str(tmp_path / "root")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / prefix))
    declared = hermetic.Declaration("s", root, root, *[frozenset()] * 3)
    with pytest.raises(hermetic.UndeclaredAccess, match="reads data/other"):
        hermetic.Guard(declared, temporary).check_read(f"{root}/data/other")


def test_the_text_of_a_refusal_is_its_own_whatever_a_library_adds():
    """shutil.rmtree sets the name of the file."""
    error = hermetic.UndeclaredAccess("stage s writes x: add it")
    error.filename = "x"
    assert str(error) == one_line(error) == "stage s writes x: add it"


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_deps_and_outs_may_be_links_into_the_cache(clone, kind):
    (clone / ".dvc/config.local").write_text(f"[cache]\n    type = {kind}\n", "utf-8")
    succeed(clone, "dvc", "checkout", "--relink")
    before = contents(clone, "models", "metrics")
    assert (clone / "data/tensors.npz").is_symlink() == (kind == "symlink")
    succeed(clone, "python", "-m", "stages", "baseline")
    assert contents(clone, "models", "metrics") == before


class Case(NamedTuple):
    """A stage in dvc.yaml, and the paths and params that it declares."""

    text: str
    deps: str = ""
    outs: str = ""
    params: str = ""
    folder: str = "."
    """The folder of dvc.yaml."""
    stage: str = "s"


DECLARATIONS = {
    "plain": Case(
        "cmd: c, deps: [a, b/], params: [p, q.r], outs: [o]",
        deps="a b",
        outs="o",
        params="params.yaml:p params.yaml:q.r",
    ),
    "options": Case(
        "cmd: c, outs: [{o: {cache: false}}], metrics: [m], plots: [{p: {x: n}}]",
        outs="o m p",
    ),
    "wdir": Case(
        "cmd: c, wdir: w, deps: [a, ../b], params: [p], outs: [o]",
        deps="w/a b",
        outs="w/o",
        params="w/params.yaml:p",
    ),
    "other params": Case(
        "cmd: c, params: [{f.json: [x]}, {g.toml: }]", params="f.json:x g.toml:*"
    ),
    "subfolder": Case(
        "cmd: c, deps: [a, ../b], params: [p], outs: [o]",
        deps="sub/a b",
        outs="sub/o",
        params="sub/params.yaml:p",
        folder="sub",
    ),
    "vars": Case(
        "cmd: 'c ${v}', deps: ['${v}/a'], outs: ['${v}.o']", deps="x/a", outs="x.o"
    ),
    "foreach": Case(
        "foreach: [1, 2], do: {cmd: c, deps: ['a${item}'], outs: ['o${item}']}",
        deps="a2",
        outs="o2",
        stage="s@2",
    ),
    "matrix": Case(
        "matrix: {n: [1, 2]}, cmd: c, outs: ['o${item.n}']", outs="o2", stage="s@2"
    ),
}


@pytest.mark.parametrize("case", DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_declaration_is_read_as_dvc_reads_it(tmp_path, case):
    for folder in ("w", "sub", "x", "b"):
        (tmp_path / folder).mkdir()
    for file in ("params.yaml", "w/params.yaml", "sub/params.yaml"):
        (tmp_path / file).write_text("{p: 1, q: {r: 2}}", "utf-8")
    (tmp_path / "f.json").write_text('{"x": 1}', "utf-8")
    (tmp_path / "g.toml").write_text("x = 1", "utf-8")
    (tmp_path / "data.csv").write_text("1", "utf-8")
    under_dvc(tmp_path)
    data_csv = "outs: [{md5: c4ca4238a0b923820dcc509a6f75849b, path: data.csv}]"
    (tmp_path / "data.csv.dvc").write_text(data_csv, "utf-8")
    dvc_yaml = f"vars: [{{v: x}}]\nstages: {{s: {{{case.text}}}}}"
    (tmp_path / case.folder / "dvc.yaml").write_text(dvc_yaml, "utf-8")
    ours = hermetic.declaration(case.stage, str(tmp_path / case.folder))
    assert ours is not None

    def absolute(names: str) -> set[str]:
        return {str(tmp_path / name) for name in names.split()}

    assert ours.root == str(tmp_path)
    assert ours.deps == absolute(case.deps)
    assert ours.outs == absolute(case.outs)
    assert ours.params == {tuple(pair.split(":")) for pair in absolute(case.params)}

    stages = Repo(str(tmp_path)).index.stages
    (theirs,) = (s for s in stages if getattr(s, "name", None) == ours.stage)
    params = [dep for dep in theirs.deps if isinstance(dep, ParamsDependency)]
    assert ours.deps == {dep.fs_path for dep in theirs.deps if dep not in params}
    assert ours.outs == {out.fs_path for out in theirs.outs}
    pairs = {(dep.fs_path, key) for dep in params for key in dep.params or ["*"]}
    assert ours.params == pairs


def test_with_a_wdir_the_line_to_add_is_relative_to_it(project):
    parts = project / "parts"
    parts.mkdir()
    for name in ("stages", "data", "params.yaml", "requirements.txt"):
        (project / name).rename(parts / name)
    edit(project / "dvc.yaml", "    cmd:", "    wdir: parts\n    cmd:")
    (project / "outer").touch()
    probe(parts, 'open("data/other")')
    assert refused(start(parts), *READ)
    probe(parts, 'open("../outer")')
    assert refused(start(parts), 'add "- ../outer" to its deps')


def imported_files(file: Path) -> set[Path]:
    """Return the files of stages/ that a Python file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.startswith("stages.")}
    files = {ROOT / f"{name.replace('.', '/')}.py" for name in ours}
    return {file for file in files if file.exists()}


def imported_units(*files: Path) -> set[str]:
    """Return the scripts and rooms of stages/ that files are in or import, in turn."""
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
def test_a_stage_declares_exactly_the_scripts_and_rooms_it_imports(stage):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    declared = {dep for dep in stages[stage]["deps"] if dep.startswith("stages/")}
    files = [ROOT / "stages/__main__.py", ROOT / f"stages/{stage}.py"]
    assert imported_units(*files) == declared


UNUSED = """
import sys
from stages.__main__ import main
import hermetic
from stages.plumbing import runtime

guards = []
enforce = hermetic.enforce
hermetic.enforce = lambda *args, **options: guards.append(enforce(*args, **options))
main()
(guard,) = guards
declared = {*guard.declared.deps, *guard.declared.params}
print("unused:", sorted(map(str, declared - guard.used)))
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_all_that_it_declares(lent, stage):
    """DVC would rerun it for nothing when what it does not read changes."""
    printed = succeed(lent, "python", "-c", UNUSED, stage)
    assert printed.splitlines()[-1] == "unused: []"


CALLS = [
    *("openat", "open", "creat", "rename", "renameat", "renameat2", "unlink"),
    *("unlinkat", "mkdir", "mkdirat", "rmdir", "link", "symlink", "truncate"),
]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("stage", STAGES)
def test_the_kernel_sees_no_file_that_the_guard_has_not_seen(lent, tmp_path, stage):
    """strace also shows the files that C code opens by itself."""
    log = tmp_path / "log"
    options = ["-f", "-qq", "-y", "-s", "4096", "-e", f"trace={','.join(CALLS)}"]
    command = ["python", "-m", "stages", stage]
    succeed(lent, "strace", *options, "-o", str(log), *command)
    declared = hermetic.declaration(stage, folder=str(lent))
    assert declared is not None
    temporaries = {hermetic.temporary(out) for out in declared.outs}
    paths = declared.deps | declared.outs | temporaries
    # The folders are opened to look for modules, and to lock those of the outs.
    names = [".", "dvc.yaml", "params.yaml", "stages", "data", "models", "metrics"]
    own = {str(lent / name) for name in [*names, ".dvcignore", "stages/__pycache__"]}
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
    assert f"{lent}/hermetic/guard.py" in inside
    assert {name for name in inside if not is_declared(name)} - own == set()
