"""A stage reads and writes what dvc.yaml declares for it, or is refused; and it reads all that is declared."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from stages import hermetic
from tests.conftest import ROOT, STAGES, commit, contents, edit, run, succeed

PLUMBING = ["stages/__init__.py", "stages/hermetic.py", "stages/running.py"]
PIPELINE = """
stages:
  probe:
    cmd: python -m stages.probe
    deps:
      - data/file
      - data/folder
      - requirements.txt
      - stages/__init__.py
      - stages/hermetic.py
      - stages/probe.py
      - stages/running.py
    params:
      - mine
    outs:
      - out/result
"""
BEFORE = """
import importlib, io, multiprocessing, os, pathlib, shutil, socket, subprocess, sys, tempfile, threading
from stages import hermetic
"""
AFTER = """
os.makedirs("out", exist_ok=True)
with open("out/result", "w") as file:
    file.write("done")
"""


def probe(folder: Path, deed: str) -> None:
    """Make the stage do a deed, and then write its out."""
    (folder / "stages/probe.py").write_text(BEFORE + deed + AFTER, "utf-8")


@pytest.fixture
def project(tmp_path):
    """A pipeline of one stage, which is guarded as ours are; some files that it does not declare."""
    folder = tmp_path / "a project"
    files = {
        "dvc.yaml": PIPELINE, "params.yaml": "mine: 1\nother: 2\n", "requirements.txt": "",
        "data/file": "1", "data/folder/sub/file": "1", "data/other": "2", "stages/helper.py": "VALUE = 1",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    for name in PLUMBING:
        shutil.copy(ROOT / name, folder / name)
    yield folder
    shutil.rmtree(tmp_path)


def start(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start the stage by hand, warnings off so that stderr has only the stage's own lines."""
    return run(folder, "python", "-W", "ignore", "-m", "stages.probe", **variables)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Whether a stage was refused by exactly one line that has these words, and by exit status 1."""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("probe: stage probe "), done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    return done.returncode == 1


DECLARED = {
    "a dep": 'open("data/file").read()',
    "a dep by its absolute path": 'open(os.path.abspath("data/file")).read()',
    "files in a dep that is a folder": '[open(os.path.join(a, f)) for a, _, c in os.walk("data/folder") for f in c]',
    "a param": 'assert hermetic.read_params("mine") == 1',
    "a temporary of an out": """
os.mkdir("out")
open("out/.result.tmp", "w").close()
os.replace("out/.result.tmp", "out/result")
""",
    "its own out again": 'os.mkdir("out"); open("out/result", "w"); open("out/result"); os.remove("out/result")',
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
    "threads and forks": """
thread = threading.Thread(target=lambda: open("data/file").read()); thread.start(); thread.join()
child = multiprocessing.get_context("fork").Process(target=print); child.start(); child.join()
assert child.exitcode == 0
""",
}


@pytest.mark.parametrize("deed", DECLARED.values(), ids=DECLARED)
def test_what_is_declared_and_what_leaves_no_trace_is_allowed(project, deed):
    probe(project, deed)
    done = start(project)
    assert (done.returncode, done.stderr) == (0, "")
    assert (project / "out/result").read_text() == "done"


READ = ["reads data/other", 'add "- data/other" to its deps']
WRITE = ["writes data/new", 'add "- data/new" to its outs']
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
    "a thread": ('t = threading.Thread(target=open, args=["data/other"]); t.start(); t.join()', READ),
    "a folder": ('os.listdir("data")', ["reads data,", 'add "- data" to its deps']),
    "a tree": ('list(os.walk("data"))', ["reads data,"]),
    "a pattern": ('list(pathlib.Path("data").glob("*"))', ["reads data,"]),
    "copying": ('shutil.copy("data/other", tempfile.mkdtemp())', READ),
    "importing": ("import stages.helper", ["reads stages/helper.py", 'add "- stages/helper.py" to its deps']),
    "importing by name": ('importlib.import_module("stages.helper")', ["stages/helper.py"]),
    "dvc.yaml": ('open("dvc.yaml")', ["reads dvc.yaml"]),
    "Git": ('open(".git/HEAD")', ["reads .git/HEAD"]),
    "the cache of DVC": ('open(".dvc/cache/files/md5/00/1")', ["reads .dvc/cache/files/md5/00/1"]),
    "params.yaml itself": ('open("params.yaml")', ["reads params.yaml", "use hermetic.read_params(KEY)"]),
    "another section": ('hermetic.read_params("other")', ["reads other", 'add "- other" to its params']),
    "writing": ('open("data/new", "w")', WRITE),
    "appending": ('open("data/other", "a")', ["writes data/other"]),
    "updating a dep": ('open("data/file", "r+")', ["writes data/file", 'add "- data/file" to its outs']),
    "renaming from": ('os.mkdir("out"); os.rename("data/other", "out/result")', ["writes data/other"]),
    "renaming to": ('os.rename("data/file", "data/new")', ["data/file"]),
    "removing": ('os.remove("data/other")', ["writes data/other"]),
    "removing a dep": ('os.remove("data/file")', ["writes data/file"]),
    "removing a tree": ('shutil.rmtree("data/folder/sub")', ["writes data/folder/sub/file"]),
    "making a folder": ('os.makedirs("data/new")', WRITE),
    "linking": ('os.link("data/file", "data/new")', ["data/file"]),
    "a symbolic link": ('os.symlink("file", "data/new")', WRITE),
    "truncating": ('os.truncate("data/other", 0)', ["writes data/other"]),
    "a mode": ('os.chmod("data/other", 0o600)', ["writes data/other"]),
    "a temporary in the repository": ('tempfile.mkstemp(dir="data")', ["writes data/tmp"]),
    "another's data": ('open("/home/someone/data.csv")', ["reads /home/someone/data.csv", "outside the repository"]),
    "another's folder": ('os.listdir("/home/someone")', ["reads /home/someone", "outside the repository"]),
    "writing elsewhere": ('open("/home/someone/result", "w")', ["writes /home/someone/result"]),
    "a program": ('subprocess.run(["true"])', ["starts a program", "do its work in Python"]),
    "a shell": ('os.system("true")', ["starts a program"]),
    "another program instead": ('os.execv("/bin/true", ["true"])', ["starts a program"]),
    "an unguarded process": (
        'multiprocessing.get_context("spawn").Process(target=print).start()', ["starts a program"],
    ),
    "a server": ('socket.create_connection(("127.0.0.1", 9))', ["uses the network"]),
    "a name": ('socket.getaddrinfo("localhost", 80)', ["uses the network"]),
    "listening": ('socket.socket().bind(("127.0.0.1", 0))', ["uses the network"]),
}  # fmt: skip


@pytest.mark.parametrize(("deed", "words"), UNDECLARED.values(), ids=UNDECLARED)
def test_what_is_not_declared_is_refused_by_one_line_and_nothing_is_written(project, deed, words):
    before = contents(project, ".")
    probe(project, "if True:\n    " + deed)
    done = start(project)
    if "Thread" in deed:  # Python shows the traceback of a thread's error
        done.stderr = done.stderr[done.stderr.rindex("probe: ") :]
    assert refused(done, *words)
    after = contents(project, ".")
    assert {**after, "stages/probe.py": b""} == {**before, "stages/probe.py": b""}


SWALLOWED = {
    "before it writes": 'try:\n    open("data/other")\nexcept OSError:\n    pass\n',
    "and every later error": """
import contextlib
with contextlib.suppress(BaseException):
    open("data/other")
with contextlib.suppress(BaseException):
    open("out/result", "w")
sys.exit(0)
""",
    "after it opened its out": """
os.mkdir("out")
with open("out/result", "w") as file:
    try:
        file.write(open("data/other").read())
    except OSError:
        pass
sys.exit(0)
""",
}


@pytest.mark.parametrize("deed", SWALLOWED.values(), ids=SWALLOWED)
def test_a_stage_that_swallows_the_refusal_still_fails_and_says_why(project, deed):
    probe(project, deed)
    assert refused(start(project), *READ)
    result = project / "out/result"
    assert not result.exists() or result.read_text() == ""


def test_a_link_to_a_file_that_is_not_declared_is_refused(project):
    (project / "data/folder/link").symlink_to("../other")
    (project / "link").symlink_to("data/other")
    probe(project, 'open("link")')
    assert refused(start(project), "reads link")


def test_a_stage_that_dvc_yaml_does_not_name_is_left_alone_by_hand_and_refused_under_dvc(project):
    edit(project / "dvc.yaml", "python -m stages.probe", "python -m stages.another")
    probe(project, 'open("data/other")')
    assert start(project).returncode == 0
    done = start(project, DVC_STAGE="gone")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "gone" in done.stderr


def under_dvc(folder: Path) -> None:
    """Make the project a repository of Git and DVC, with this stage's first run committed."""
    succeed(folder, "git", "init", "--quiet")
    succeed(folder, "git", "config", "user.name", "A")
    succeed(folder, "git", "config", "user.email", "a@example.org")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\nanalytics = false\n", "utf-8")
    (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n", "utf-8")
    (folder / ".gitignore").write_text("__pycache__/\n/out\n/.venv\n", "utf-8")
    commit(folder)


WAYS = [
    pytest.param(["repro"], [], id="repro"),
    pytest.param(["exp", "run"], [], id="experiment"),
    pytest.param(["exp", "run", "--temp"], [], id="in a copy"),
    pytest.param(["exp", "run", "--queue"], ["exp", "run", "--run-all"], id="queue", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("command", "last"), WAYS)
def test_each_way_that_dvc_runs_a_stage_is_guarded(project, command, last):
    """The stage first does what it may and then what it may not."""
    probe(project, "")
    under_dvc(project)
    printed = ""
    for deed in ('open("data/file"); print(hermetic.read_params("mine"), "is mine")', 'open("data/other")'):
        probe(project, deed)
        done = run(project, "dvc", *command)
        printed += done.stdout + done.stderr
    if last:
        run(project, "dvc", *last)
        printed = "".join(log.read_text("utf-8") for log in (project / ".dvc/tmp/exps/run").rglob("*.out"))
    assert printed.count("\n1 is mine\n") == 1, printed
    assert printed.count("\nprobe: stage probe reads data/other, which dvc.yaml does not declare: add") == 1, printed


def test_the_environment_may_lie_inside_the_repository(project):
    """A real one, with the one package that the guard needs."""
    succeed(project, sys.executable, "-m", "venv", "--without-pip", "--symlinks", ".venv")
    packages = next((project / ".venv").glob("lib*/python*/site-packages"))
    shutil.copytree(Path(yaml.__file__).parent, packages / "yaml")
    (packages / "ours.py").write_text("", "utf-8")
    probe(project, f"import ours; assert sys.prefix == {str(project / '.venv')!r}; open('data/file')")
    command = [".venv/bin/python", "-m", "stages.probe"]
    assert run(project, *command).returncode == 0
    probe(project, 'open("data/other")')
    assert refused(run(project, *command), *READ)
    probe(project, 'open(".venv/pyvenv.cfg", "w")')
    assert refused(run(project, *command), "writes .venv/pyvenv.cfg")


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_deps_and_outs_may_be_links_into_the_cache(clone, kind):
    succeed(clone, "dvc", "config", "--local", "cache.type", kind)
    succeed(clone, "dvc", "checkout", "--relink")
    before = contents(clone, "models", "metrics")
    assert (clone / "data/tensors.npz").is_symlink() == (kind == "symlink")
    succeed(clone, "python", "-m", "stages.baseline")
    assert contents(clone, "models", "metrics") == before


# What dvc.yaml says, and what it means: deps, outs and params. The stage is named s; the files lie in folder `at`.
DECLARATIONS = {
    "plain": (".", "cmd: c, deps: [a, b/], params: [p, q.r], outs: [o]", "a b", "o", "params.yaml:p params.yaml:q.r"),
    "options": (".", "cmd: c, outs: [{o: {cache: false}}], metrics: [m], plots: [{p: {x: n}}]", "", "o m p", ""),
    "wdir": (".", "cmd: c, wdir: w, deps: [a, ../b], params: [p], outs: [o]", "w/a b", "w/o", "w/params.yaml:p"),
    "other params": (".", "cmd: c, params: [{f.json: [x]}, {g.toml: }]", "", "", "f.json:x g.toml:*"),
    "subfolder": ("sub", "cmd: c, deps: [a, ../b], params: [p], outs: [o]", "sub/a b", "sub/o", "sub/params.yaml:p"),
    "vars": (".", "cmd: 'c ${v}', deps: ['${v}/a'], outs: ['${v}.o']", "x/a", "x.o", ""),
    "foreach": (".", "foreach: [1, 2], do: {cmd: c, deps: ['a${item}'], outs: ['o${item}']}", "a2", "o2", "", "s@2"),
    "matrix": (".", "matrix: {n: [1, 2]}, cmd: c, outs: ['o${item.n}']", "", "o2", "", "s@2"),
}


@pytest.mark.parametrize("case", DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_declaration_is_what_dvc_takes_it_for(tmp_path, case):
    at, text, deps, outs, params, *name = case
    for folder in ("w", "sub", "x", "b"):
        (tmp_path / folder).mkdir()
    for file in ("params.yaml", "w/params.yaml", "sub/params.yaml"):
        (tmp_path / file).write_text("{p: 1, q: {r: 2}}", "utf-8")
    (tmp_path / "f.json").write_text('{"x": 1}', "utf-8")
    (tmp_path / "g.toml").write_text("x = 1", "utf-8")
    (tmp_path / "data.csv").write_text("1", "utf-8")
    under_dvc(tmp_path)
    (tmp_path / "data.csv.dvc").write_text("outs: [{md5: c4ca4238a0b923820dcc509a6f75849b, path: data.csv}]", "utf-8")
    (tmp_path / at / "dvc.yaml").write_text(f"vars: [{{v: x}}]\nstages: {{s: {{{text}}}}}", "utf-8")
    ours = hermetic.declaration(name[0] if name else "s", str(tmp_path / at))
    assert ours is not None

    def absolute(names: str) -> set[str]:
        return {str(tmp_path / each) for each in names.split()}

    pairs = {tuple(pair.split(":")) for pair in absolute(params)}
    assert (ours.root, ours.deps, ours.outs, ours.params) == (str(tmp_path), absolute(deps), absolute(outs), pairs)

    stage = next(stage for stage in Repo(str(tmp_path)).index.stages if getattr(stage, "name", None) == ours.stage)
    files = {dep.fs_path for dep in stage.deps if not isinstance(dep, ParamsDependency)}
    assert (ours.deps, ours.outs) == (files, {out.fs_path for out in stage.outs})
    theirs = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    assert ours.params == {(dep.fs_path, key) for dep in theirs for key in dep.params or ["*"]}


def test_with_a_wdir_the_line_to_add_is_relative_to_it(project):
    text = (project / "dvc.yaml").read_text("utf-8")
    parts = project / "parts"
    parts.mkdir()
    for name in ("stages", "data", "params.yaml", "requirements.txt"):
        (project / name).rename(parts / name)
    (project / "dvc.yaml").write_text(text.replace("    cmd:", "    wdir: parts\n    cmd:"), "utf-8")
    (project / "outer").touch()
    for deed, words in {'open("data/other")': READ, 'open("../outer")': ['add "- ../outer" to its deps']}.items():
        probe(parts, deed)
        assert refused(start(parts), *words)


def modules(name: str) -> set[str]:
    """The modules of stages/ that one of them imports, itself and the package included, transitively."""
    found: set[str] = set()
    todo = [name, "__init__"]
    while todo:
        if (name := todo.pop()) in found or not (ROOT / f"stages/{name}.py").exists():
            continue
        found.add(name)
        for node in ast.walk(ast.parse((ROOT / f"stages/{name}.py").read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "stages":
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                todo += [(node.module or "").removeprefix("stages.")] * (node.module or "").startswith("stages.")
            elif isinstance(node, ast.Import):
                todo += [each.name.removeprefix("stages.") for each in node.names if each.name.startswith("stages.")]
    return {f"stages/{name}.py" for name in found}


@pytest.mark.parametrize("stage", STAGES)
def test_the_modules_that_a_stage_imports_are_its_deps_and_the_other_way_round(stage):
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"][stage]["deps"]
    assert modules(stage) == {dep for dep in declared if dep.endswith(".py")}


UNUSED = """
import os, runpy, sys
os.environ["DVC_STAGE"], sys.argv = sys.argv[1], ["-m"]
import stages
from stages import hermetic
runpy.run_module("stages." + os.environ["DVC_STAGE"], run_name="__main__")
declared = hermetic._guard.declared
print("unused:", sorted(map(str, {*declared.deps, *declared.params} - hermetic._guard.used)))
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_all_that_it_declares(lent, stage):
    """What it declares and does not read makes DVC run it for nothing."""
    assert succeed(lent, "python", "-c", UNUSED, stage).splitlines()[-1] == "unused: []"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("stage", STAGES)
def test_the_kernel_sees_no_file_that_the_guard_has_not_seen(clone, stage):
    """Files that C code opens by itself included: under strace, all in the clone are declared."""
    log = clone.parent / "log"
    calls = "openat,open,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,symlink,truncate"
    command = ["python", "-m", f"stages.{stage}"]
    succeed(clone, "strace", "-f", "-qq", "-y", "-s", "4096", "-e", f"trace={calls}", "-o", str(log), *command)
    declared = hermetic.declaration(stage, folder=str(clone))
    assert declared is not None
    own = {str(clone / name) for name in (".", "dvc.yaml", "params.yaml", "stages", "data", "models", "metrics")}
    own |= declared.deps | declared.outs | {hermetic.temporary(out) for out in declared.outs}
    own |= {str(clone / "stages/__pycache__")} | (
        {str(clone / "data/mnist_sample.tgz")} if stage == "download" else set()
    )
    seen = set()
    for line in log.read_text("utf-8", "replace").splitlines():
        if line.endswith(")") or "= -1 " in line or "resumed" in line:
            continue
        opened = re.search(r"= \d+<(.+)>$", line)
        names = [opened[1]] if opened else re.findall(r'"([^"]*)"', line)
        seen |= {os.path.normpath(clone / name) for name in names}
    inside = {name for name in seen if name == str(clone) or name.startswith(f"{clone}/")}
    assert f"{clone}/stages/hermetic.py" in {re.sub(r"__pycache__/(\w+)\..*", r"\1.py", name) for name in inside}
    sources = {re.sub(r"__pycache__/(\w+)\.[^/]*$", r"\1.py", name) for name in inside}
    assert sources - own == set()
