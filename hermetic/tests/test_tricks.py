"""Tricks: what is not declared is refused, or reads nothing, or README tells of it."""

import json
import os

import pytest

from hermetic.tests.conftest import (
    PACKAGE,
    edit,
    is_quiet,
    needs_landlock,
    probe,
    run,
    start,
    start_each,
    under_dvc,
    violates,
    write,
)

BEFORE = """
import contextlib, ctypes, functools, io, pathlib, pickle, shutil, subprocess, sys
libc = ctypes.CDLL(None)

def folder(name="data"):
    return os.open(name, os.O_RDONLY)

def swallow():
    with contextlib.suppress(OSError):
        open("data/other")
"""
READS = [
    'os.open("other", os.O_RDONLY, dir_fd=folder())',
    'os.open("../other", os.O_RDONLY, dir_fd=folder("data/folder"))',
    'open("other", opener=lambda path, flags: os.open(path, flags, dir_fd=folder()))',
    'open("data/file", opener=lambda path, flags: os.open("data/other", flags))',
    'open(f"/dev/fd/{folder()}/other")',
    'open(f"/proc/self/fd/{folder()}/other")',
    'open("/proc/self/root" + os.path.abspath("data/other"))',
    'open(f"/proc/{os.getppid()}/cwd/data/other")',
    'open("/proc/thread-self/cwd/data/other")',
    'open("data//./folder/../other")',
    'open(os.fsencode(os.path.abspath("data/other")))',
    'open(pathlib.PurePath("data", "other"))',
    'os.fchdir(folder()); open("other")',
    'open("data/other", "rb", buffering=0)',
    'io.FileIO("data/other")',
    'io.open_code(os.path.abspath("data/other"))',
    'import mmap; mmap.mmap(os.open("data/other", os.O_RDONLY), 0, prot=1)',
    'shutil.copyfile("data/other", "out/result")',
    'os.link("data/other", "out/link")',
    'os.link("other", "out/link", src_dir_fd=folder())',
    'os.symlink("../data/other", "out/link")',
    'os.symlink(os.path.abspath("data/later"), "out/link")',
    'os.replace("data/other", "out/result")',
    'os.rename("other", "out/result", src_dir_fd=folder())',
    'os.rename("data", "out/result")',
    "list(os.scandir(folder()))",
    "list(os.fwalk('data'))",
    "list(os.walk('data'))",
    'import glob; glob.glob("*", dir_fd=folder())',
    'import pkgutil; list(pkgutil.iter_modules(["package/plugins"]))',
    'import importlib.metadata as m; list(m.distributions(path=["data/a/b"]))',
    'import importlib.resources as r; list(r.files("package").iterdir())',
    'import runpy; runpy.run_path("helper.py")',
    r'pickle.loads(b"chelper\nVALUE\n.")',
    'import linecache; linecache.getlines("data/other")',
    'import tokenize; tokenize.open("data/other")',
    'import shelve; shelve.open("data/other")',
    'import sqlite3; a = sqlite3.connect(":memory:"); a.execute("attach ? as o",'
    ' ["data/other"]).execute("select * from o.t")',
    'from multiprocessing import get_context as c; p = c("spawn").Process(target=open,'
    ' args=["data/other"]); p.start(); p.join(); sys.exit()',
    'subprocess.run([sys.executable, "-c", "import contextlib\\n'
    "with contextlib.suppress(OSError): open('data/other')\"]); sys.exit()",
    'import ftplib; ftplib.FTP("127.0.0.1")',
    'import asyncio; asyncio.run(asyncio.open_connection("127.0.0.1", 9))',
    'import urllib.request as r; r.urlopen("http://127.0.0.1:9")',
]
WRITES = [
    'os.unlink("other", dir_fd=folder())',
    'pathlib.Path("data/new").touch()',
    'pathlib.Path("data/other").touch()',
    'os.utime("data/other", (1, 1))',
    'os.chown("data/other", os.getuid(), os.getgid())',
    'os.setxattr("data/other", "user.a", b"1")',
    'os.mkfifo("data/new")',
    'import dbm.dumb; dbm.dumb.open("data/new")',
    'import logging; logging.FileHandler("data/new")',
    'import tempfile; tempfile.TemporaryFile(dir="data")',
    'import atexit; atexit.register(lambda: open("data/new", "w")); sys.exit()',
]
ENDS = [
    "swallow(); sys.stdout = None; sys.exit()",
    "sys.stdout = object(); swallow(); os._exit(0)",
    "sys.excepthook = lambda *_: 1 / 0; swallow(); sys.exit()",
    "sys.excepthook = lambda *_: sys.exit(0); swallow(); sys.exit()",
    "import threading; a = threading.Thread(target=lambda: (swallow(), sys.exit()));"
    " a.start(); a.join(); sys.exit()",
    "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); swallow();"
    " os.kill(os.getpid(), signal.SIGTERM)",
    'type("A", (), {"__del__": lambda self: open("data/other")})(); sys.exit()',
]


@needs_landlock
def test_no_trick_gets_at_what_is_not_declared(project):
    write(project, {"package/plugins/a.py": "", "data/a/b/c": "", "out/README": ""})
    tricks = [*READS, *WRITES, *ENDS]
    ends = start_each(project, tricks, before=BEFORE)
    for done in ends:
        assert violates(done, "stage probe"), done.args
    assert (project / "data/other").read_text() == "2"
    assert not (project / "data/new").exists()
    assert not os.path.lexists(project / "out/link")


def test_an_excepthook_that_ends_the_process_does_not_end_it_well(project):
    trick = "sys.excepthook = lambda *_: os._exit(0); swallow(); sys.exit()"
    [done] = start_each(project, [trick], before=BEFORE)
    assert done.returncode == 1


ACCEPTED = {
    "`stat`, `exists`": 'assert os.stat("data/other").st_size == 1',
    "names they list": 'assert b"other" in sh("ls data")',
    "a denied access that they swallow": 'sh("cat data/other; true")',
    "The clock": "import time; time.time()",
    "the versions of packages": "import numpy; numpy.__version__",
}


@needs_landlock
def test_what_gets_by_is_in_the_readme(project):
    shell = 'sh = lambda script: subprocess.check_output(["sh", "-c", script])\n'
    ends = start_each(project, ACCEPTED.values(), before=BEFORE + shell)
    assert [done.returncode for done in ends] == [0] * len(ACCEPTED)
    text = " ".join((PACKAGE / "README.md").read_text("utf-8").split())
    _, _, section = text.partition("## What it does not see")
    assert [words for words in ACCEPTED if words not in section] == []


REDIRECTED = {
    "python probe.py <data/other": "reads data/other, … to its deps",
    "python probe.py >data/new": "writes data/new, … to its outs",
    "python probe.py <data/file >out/result": "",
    "python probe.py <<END\n1\nEND": "",
    "(python probe.py) >dvc.log": "",
}


@pytest.mark.parametrize("command", REDIRECTED)
def test_what_a_shell_opens_for_a_stage_has_to_be_declared(project, command):
    write(project, {"out/result": ""})
    inner = command.removesuffix(" >dvc.log")  # which is how DVC was started
    edit(project / "dvc.yaml", "python probe.py", json.dumps(inner))
    probe(project, "import sys\nsys.stdin.read()\nraise SystemExit")
    done = run(project, "sh", "-c", command)
    words = REDIRECTED[command]
    assert violates(done, words) if words else is_quiet(done)


@needs_landlock
def test_what_python_writes_beside_an_out_in_the_root_fails_the_stage(project):
    """Under a relative name, of which the audit event does not tell the folder."""
    edit(project / "dvc.yaml", "out/result", "result")
    probe(project, 'os.open("new", os.O_WRONLY | os.O_CREAT)\nraise SystemExit')
    assert violates(start(project), "writes new,")


HEALTHY = [
    'A = type("A", (), {"open": open}); assert A().open("data/file").read() == "1"',
    'A = type("A", (), {"make": os.mkdir}); A().make(tempfile.mkdtemp() + "/a")',
    "for f in (open, os.mkdir): assert pickle.loads(pickle.dumps(f)) is f",
    'pickle.dumps(functools.partial(open, "data/file"))',
    "assert io.open is open and open.__name__ == 'open'; help(open)",
    "from unittest import mock; mock.create_autospec(open)",
    'from unittest import mock\nwith mock.patch("builtins.open", mock.mock_open('
    'read_data="a")): assert open("other").read() == "a"',
    'assert open(file="data/file", mode="r", encoding="ascii").read() == "1"',
    'assert open(os.open("data/file", os.O_RDONLY)).read() == "1"',
    "with contextlib.suppress(TypeError): open(None)",
    "with contextlib.suppress(ValueError): open('a\\0b')",
    "import concurrent.futures as f\nwith f.ThreadPoolExecutor(2) as pool:"
    ' assert [*pool.map(os.path.getsize, ["data/file"])] == [1]',
    'import site; subprocess.run([sys.executable, "-I", "-c", "import numpy"],'
    " check=True)",
    "import pkgutil; list(pkgutil.iter_modules()); import json; json.dumps(1)",
    "import importlib.metadata as m; m.version('numpy'); m.entry_points()",
]


def test_healthy_code_runs_as_before(project):
    ends = start_each(project, HEALTHY, before=BEFORE + "import tempfile\n")
    failed = [(done.args, done.stderr) for done in ends if done.returncode]
    assert failed == []
    assert all(done.stderr == "" for done in ends)


MODES = {
    "x": 'open("out/result", "x").write("1"); assert open("out/result").read() == "1"',
    "r+": """
try: open("out/result", "r+")
except FileNotFoundError: open("out/result", "x")
else: raise ValueError
""",
    "zip": 'import zipfile; zipfile.ZipFile("out/result", "x").close()',
}


@pytest.mark.parametrize("deed", MODES.values(), ids=MODES)
def test_an_out_beside_other_files_is_opened_in_any_mode(project, deed):
    write(project, {"out/README": ""})
    (project / "out/.result.hermetic").mkdir()  # of a run that was killed
    probe(project, f"{deed}\nraise SystemExit")
    assert is_quiet(start(project))
    assert {*os.listdir(project / "out")} == {"README", "result"}


RUN = {
    "own path": (["src/a.py"], "import os; assert os.path.isabs(__file__)"),
    "options": (["-u", "-B", "src/a.py"], "open('in')"),
    "code": (["-c", "open('in')"], ""),
}
FOR_RUN = {
    "dvc.yaml": "stages: {s: {cmd: c, deps: [hermetic, src, in], params: [p]}}",
    "params.yaml": "{p: 1, q: 2}",
    "in": "",
}


@needs_landlock
@pytest.mark.parametrize(("arguments", "code"), RUN.values(), ids=RUN)
def test_hermetic_run_changes_and_prints_nothing(make, arguments, code):
    folder = make({**FOR_RUN, "src/a.py": code}, place="hermetic")
    ours = ["python", "-m", "hermetic", "run", "--stage", "s", "--", "python"]
    assert is_quiet(run(folder, *ours, *arguments))


def test_params_of_another_commit_or_stage_are_not_those_of_this_one(make):
    code = "import dvc.api; print(dvc.api.params_show({}))"
    folder = make({**FOR_RUN, "src/a.py": ""}, place="hermetic")
    under_dvc(folder)
    ours = ["python", "-m", "hermetic", "run", "--stage", "s", "--", "python"]
    for option in ("rev='HEAD'", "stages=['t']"):
        write(folder, {"src/a.py": code.format(option)})
        done = run(folder, *ours, "src/a.py")
        assert violates(done, "stage s ", stage="s")
        assert done.stdout == ""
