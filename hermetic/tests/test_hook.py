"""What a stage does in Python is what dvc.yaml declares, and nothing else."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import hermetic
from hermetic import landlock
from hermetic.declaration import Declaration
from hermetic.hook import AuditHook
from hermetic.policy import Policy
from hermetic.tests.conftest import (
    PACKAGE,
    edit,
    is_quiet,
    probe,
    run,
    start,
    start_each,
    succeed,
    under_dvc,
    violates,
)

HOOK_ALONE = """
import runpy
from hermetic import landlock
landlock.version = lambda: 0
runpy.run_path("probe.py", run_name="__main__")
"""


def start_without_kernel(folder: Path) -> subprocess.CompletedProcess[str]:
    """Start the stage as on a system without Landlock."""
    return run(folder, "python", "-W", "ignore", "-c", HOOK_ALONE)


STARTS = {"with the kernel": start, "without the kernel": start_without_kernel}
starts = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder except the probe and compiled modules."""
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != "probe.py"
    }


DECLARED = {
    "a dep": 'open("data/file").read(); open(os.path.abspath("data/file")).read()',
    "files in a dep that is a folder": """
for folder, _, names in os.walk("data/folder"):
    for name in names:
        open(os.path.join(folder, name))
""",
    "a param": """
assert hermetic.read_params("mine") == 1
assert hermetic.read_params() == {"mine": 1, "some": {"of": {"a": 3}}}
""",
    "a parameter file, which then holds only those": """
import yaml
expected = {"mine": 1, "some": {"of": {"a": 3}}}
assert yaml.safe_load(open("params.yaml")) == expected
assert yaml.safe_load(pathlib.Path("params.yaml").read_bytes()) == expected
""",
    "a temporary of an out": """
os.makedirs("out", exist_ok=True)
open(hermetic.temporary("out/result"), "w").close()
os.replace(hermetic.temporary("out/result"), "out/result")
""",
    "its own out again, and locking its folder": """
os.makedirs("out", exist_ok=True)
os.close(os.open("out", os.O_RDONLY))
open("out/result", "w")
open("out/result")
os.remove("out/result")
""",
    "the standard library and the environment": "import wave, xml.dom.minidom, numpy",
    "temporary files": """
with tempfile.TemporaryDirectory() as folder:
    os.mkdir(folder + "/sub")
    open(folder + "/sub/file", "w").close()
    os.rename(folder + "/sub/file", folder + "/file")
    os.rmdir(folder + "/sub")
""",
    "folders by their descriptor, while a name in the working folder is the same": """
import shutil
os.makedirs("out/result/data/other", exist_ok=True)
open("out/result/data/other/file", "w").close()
shutil.rmtree("out/result")
for folder, _, names, descriptor in os.fwalk("data/folder"):
    for name in names:
        os.close(os.open(name, os.O_RDONLY, dir_fd=descriptor))
""",
    "what is not there, or is there already": """
import contextlib, pkgutil
with contextlib.suppress(FileNotFoundError):
    os.listdir("nvidia/lib")
list(pkgutil.iter_modules())
os.makedirs("data", exist_ok=True)
""",
    "attempts to learn what the network can": """
with contextlib.suppress(PermissionError):
    socket.socket().bind(("127.0.0.1", 0))
left, right = socket.socketpair()
left.sendmsg([b"1"])
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
def test_what_is_declared_or_leaves_no_trace_is_allowed(project, start):
    probe(project, "\n".join(DECLARED.values()))
    assert is_quiet(start(project))
    assert (project / "out/result").read_text() == "done"


READ, HELPER, OUT = (
    f'reads {name}, which dvc.yaml does not declare: add "- {name}" to its deps'
    for name in ("data/other", "helper.py", "out")
)
NEW = 'writes data/new, which dvc.yaml does not declare: add "- data/new" to its outs'
UNDECLARED = [
    ('open("data/other")', READ),
    ('open(os.path.abspath("data/other"))', READ),
    ('open(b"data/other")', READ),
    ('open("data/folder/../other")', READ),
    ('os.chdir("data"); open("other")', READ),
    ('open("/proc/self/cwd/data/other")', "data/other"),
    ('open("link")', "reads link"),
    ('open("data/none")', "reads data/none"),
    (
        'a = threading.Thread(target=open, args=["data/other"]); a.start(); a.join()',
        READ,
    ),
    ('try: open("data/other")\nfinally: open("data/none")', READ),
    ('try: open("data/other")\nexcept OSError: raise ValueError("no data")', READ),
    ('os.listdir("data")', 'reads data, … add "- data" to its deps'),
    ('list(pathlib.Path("data").glob("*"))', "reads data,"),
    ("os.listdir()", 'reads ., … add "- ." to its deps'),
    ('list(pathlib.Path("package").glob("*.py"))', "reads package,"),
    ('os.makedirs("out", exist_ok=True); os.listdir("out")', OUT),
    ('os.makedirs("out", exist_ok=True); os.listdir(os.open("out", os.O_RDONLY))', OUT),
    ('shutil.copy("data/other", tempfile.mkdtemp())', READ),
    ("import helper", HELPER),
    ("import package.helper", 'reads package/helper.py … add "- package/helper.py"'),
    ('open("dvc.yaml")', "reads dvc.yaml"),
    ('open(".git/HEAD")', 'reads .git/HEAD … add "git" to presets in'),
    ('open(".dvc/cache/files/md5/00/1")', "reads .dvc/cache/files/md5/00/1"),
    ('open("params.yaml", "a")', "writes params.yaml"),
    (
        'import yaml; yaml.safe_load(open("params.yaml"))["some"]["others"]',
        'reads some.others … add "- some.others" to its params',
    ),
    ('hermetic.read_params("other")', 'reads other … add "- other" to its params'),
    ('hermetic.read_params()["other"]', 'reads other … add "- other" to its params'),
    ('hermetic.read_params("some")["others"]', 'add "- some.others" to its params'),
    ('open("data/new", "w")', NEW),
    ('open("data/other", "a")', "writes data/other"),
    ('open("data/file", "r+")', 'writes data/file … add "- data/file" to its outs'),
    (
        'os.makedirs("out", exist_ok=True); os.rename("data/other", "out/result")',
        "writes data/other",
    ),
    ('os.rename("data/file", "data/new")', "data/file"),
    ('os.remove("data/other")', "writes data/other"),
    ('os.remove("data/file")', "writes data/file"),
    ('shutil.rmtree("data/folder/sub")', "writes data/folder/sub"),
    ('os.makedirs("data/new")', NEW),
    ('os.link("data/file", "data/new")', NEW),
    ('os.link("data/other", "data/folder/new")', "writes data/folder/new"),
    ('open(".dvc/tmp", "w")', 'writes .dvc/tmp … add "dvclive" to presets in'),
    ('os.symlink("file", "data/new")', NEW),
    ('os.truncate("data/other", 0)', "writes data/other"),
    ('os.chmod("data/other", 0o600)', "writes data/other"),
    ('tempfile.mkstemp(dir="data")', "writes data/"),
    ('open("/home/someone/a")', "reads /home/someone/a, outside the repository"),
    ('os.listdir("/home")', "reads /home, outside"),
    ('open("/home/someone/a", "w")', "writes /home/someone/a"),
    ('os.execv("/bin/true", ["true"])', "replaces itself with … subprocess.run"),
    ('socket.create_connection(("127.0.0.1", 9))', "uses the network"),
    ('socket.getaddrinfo("localhost", 80)', "uses the network"),
    ('socket.socket().bind(("0.0.0.0", 0))', "uses the network"),
    (
        's = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b"1", ("127.0.0.1", 9))',
        "network",
    ),
    (
        'to = ("127.0.0.1", 9); udp = socket.socket(type=socket.SOCK_DGRAM)\n'
        'udp.sendmsg([b""], [], 0, to)',
        "uses the network",
    ),
    ('socket.socket(socket.AF_UNIX).connect("/run/daemon.sock")', "/run/daemon.sock"),
    ('socket.socket(socket.AF_UNIX).connect("\\0daemon")', "uses the network"),
    ('socket.gethostbyaddr("127.0.0.1")', "uses the network"),
    (
        'os.makedirs("out", exist_ok=True); os.symlink("../data/other", "out/result")',
        READ,
    ),
]


@starts
def test_what_is_not_declared_is_refused_and_changes_nothing(project, start):
    (project / "link").symlink_to("data/other")
    before = contents(project)
    deeds = [deed for deed, _ in UNDECLARED]
    ends = start_each(project, deeds, start)
    for (_, words), done in zip(UNDECLARED, ends, strict=True):
        assert violates(done, words), done.args
    assert contents(project) == before


def test_programs_need_the_kernel(project):
    deeds = ['subprocess.run(["true"])', 'os.system("true")']
    told = "starts a program … do its work in Python"
    ends = start_each(project, deeds, start_without_kernel)
    assert [violates(done, told) for done in ends] == [True] * len(deeds)
    assert not (project / "out").exists()
    probe(project, "\n".join(deeds))
    assert not landlock.version() or is_quiet(start(project))


HIDE = 'with contextlib.suppress(BaseException): open("data/other")'
SWALLOWED = {
    "before it writes": HIDE,
    "and every later error": f"""
{HIDE}
with contextlib.suppress(BaseException):
    open("out/result", "w")
sys.exit(0)
""",
    "after it opened its out": f"""
os.makedirs("out", exist_ok=True)
file = open("out/result", "w")
{HIDE}
sys.exit(0)
""",
    "and ends with os._exit": f"""
{HIDE}
os._exit(0)
""",
    "in a process that it forks": f"""
if not os.fork():
    {HIDE}
    os._exit(0)
os.wait()
""",
    "and another excepthook reports its end": f"""
sys.excepthook = sys.__excepthook__
{HIDE}
raise ValueError
""",
}


def test_a_stage_that_swallows_the_error_still_fails(project):
    for done in start_each(project, SWALLOWED.values()):
        assert violates(done, READ), done.args
    assert (project / "out/result").read_text() == ""


def test_so_does_one_that_tries_the_network_or_a_file_outside(project):
    outside = [
        'open("/home/someone/a")',
        'socket.create_connection(("127.0.0.1", 9))',
        'open("/home/someone/a", "w")',
    ]
    deeds = [f"with contextlib.suppress(OSError): {deed}" for deed in outside]
    for done in start_each(project, [f"{deed}\nsys.exit()" for deed in deeds]):
        assert "UndeclaredAccess: swallowed in\n" in done.stderr
        assert violates(done, "stage probe"), done.args


def test_a_traceback_may_look_for_a_source_that_is_not_there(project):
    """As for an error in a compiled module: pandas/_libs/index.pyx."""
    probe(project, 'exec(compile("{}[1]", "pandas/_libs/index.pyx", "exec"))')
    assert start(project).stderr.endswith("\nKeyError: 1\n")


@starts
def test_a_link_made_in_an_out_is_a_read_of_its_target(project, start):
    """However it was made: DVC would cache the content and never look there again."""
    (project / "out").mkdir()
    (project / "out/result").symlink_to("../data/other")
    probe(project, "sys.exit()")
    assert violates(start(project), "reads data/other")
    (project / "out/result").unlink()
    (project / "out/result").symlink_to("../data/file")
    assert is_quiet(start(project))


def test_a_dep_may_be_a_link_to_a_folder(project, tmp_path):
    shutil.move(project / "data/folder", tmp_path / "another disk")
    (project / "data/folder").symlink_to(tmp_path / "another disk")
    probe(project, 'open("data/folder/sub/file"); os.listdir("data/folder")')
    assert is_quiet(start(project))


def test_another_dvc_repository_in_a_dep_is_refused(project):
    """DVC skips it, so that an edit in it would change nothing."""
    (project / "data/folder/sub/.dvc").mkdir()
    probe(project, 'open("data/folder/sub/file")')
    told = "reads data/folder/sub/file in another DVC repository, which DVC skips"
    assert violates(start(project), told)


def test_dvc_has_to_be_new_enough_to_name_the_stage(project):
    program = 'import hermetic; hermetic.enforce(); open("data/other")'
    done = run(project, "python", "-c", program, DVC_ROOT=str(project))
    assert "does not name the stage that it runs: install DVC 3.49" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("name", "variables"), [("another", {}), ("probe", {"DVC_STAGE": "gone"})]
)
def test_a_stage_that_dvc_yaml_does_not_name_is_refused(project, name, variables):
    probe(project, "")
    edit(project / "probe.py", '"probe"', f'"{name}"')
    named = variables.get("DVC_STAGE", name)
    assert violates(start(project, **variables), "is in no dvc.yaml", named)
    assert not (project / "out").exists()


def test_hermetic_itself_has_to_be_declared(project):
    probe(project, "")
    edit(project / "dvc.yaml", " hermetic,", "")
    assert violates(start(project), 'reads hermetic … add "- hermetic" to its deps')


def test_a_process_that_names_no_stage_is_left_alone(project):
    program = 'import hermetic; hermetic.enforce(); print(open("data/other").read())'
    assert succeed(project, "python", "-c", program) == "2\n"


WAYS = [
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
def test_hermetic_works_in_experiments_too(project, command, last):
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
    reads = "stage probe reads data/other, which dvc.yaml does not declare: add"
    assert printed.count(f"\nhermetic.UndeclaredAccess: {reads}") == 1, printed


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Build hermetic's wheel, from a copy."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, folder / "hermetic")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    succeed(folder, "python", "-m", "pip", "wheel", *options, "./hermetic")
    return zipfile.ZipFile(*folder.glob("*.whl"))


def test_a_wheel_holds_the_modules_and_no_tests(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    ours = {path for path in modules if path.parts[0] != "tests"}
    assert names == {f"hermetic/{path}" for path in ours}


def test_hermetic_may_be_installed_in_an_environment_in_the_repository(project, wheel):
    """A real one, with the one package that it needs, without its C parser."""
    venv = ["-m", "venv", "--without-pip", "--symlinks", ".venv"]
    succeed(project, sys.executable, *venv)
    packages = next((project / ".venv").glob("lib*/python*/site-packages"))
    shutil.copytree(f"{PACKAGES}/ruamel/yaml", packages / "ruamel/yaml")
    wheel.extractall(packages)
    shutil.rmtree(project / "hermetic")
    edit(project / "dvc.yaml", " hermetic,", "")
    (packages / "ours.py").write_text("", "utf-8")
    inside = f"assert hermetic.__file__.startswith({str(packages)!r})"
    probe(project, f"import ours\n{inside}\nopen('data/file')")
    command = [".venv/bin/python", "probe.py"]
    assert is_quiet(run(project, *command))
    probe(project, 'open("data/other")')
    assert violates(run(project, *command), READ)
    probe(project, 'open(".venv/pyvenv.cfg", "w")')
    assert violates(run(project, *command), "writes .venv/pyvenv.cfg")


MODULES = {
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
    assert violates(done, f"imports {other}, from outside the environment: {remedy}")
    assert not (project / "out").exists()


def test_a_module_in_a_zip_file_is_refused(project, tmp_path):
    probe(project, "import optax")
    for name in ("sitecustomize.py", "optax.py"):  # before the stage, and in it
        with zipfile.ZipFile(file := tmp_path / "other.zip", "w") as archive:
            archive.writestr(name, "")
        assert violates(start(project, PYTHONPATH=str(file)), f"imports {file}")
        assert not (project / "out").exists()


def test_a_pythonpath_from_which_nothing_is_imported_is_allowed(project, tmp_path):
    (tmp_path / "other.py").touch()
    probe(project, "import wave, numpy")
    for folder in (tmp_path, "/home/someone/lib", sysconfig.get_path("purelib")):
        assert is_quiet(start(project, PYTHONPATH=str(folder)))


def test_a_pythonpath_in_the_repository_needs_a_line_in_deps(project):
    (project / "data/helper.py").touch()
    (project / "helper.py").unlink()
    probe(project, "import helper")
    assert violates(start(project, PYTHONPATH="data"), 'add "- data/helper.py" to')
    (project / "data/folder/helper.py").touch()
    assert start(project, PYTHONPATH="data/folder").returncode == 0


@pytest.mark.parametrize(
    "prefix", ["compiled", "../compiled", "{tmp}/compiled", "{tmp}/a link"]
)
def test_compiled_modules_may_be_kept_in_another_folder(project, tmp_path, prefix):
    (tmp_path / "linked").mkdir()
    (tmp_path / "a link").symlink_to("linked")
    prefix = prefix.format(tmp=tmp_path)
    variables = {"PYTHONPYCACHEPREFIX": prefix, "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(2):  # written, then read
        probe(project, "import wave, yaml")
        assert is_quiet(start(project, **variables))
        probe(project, "import helper")
        assert violates(start(project, **variables), HELPER)
    assert list((project / prefix).rglob("wave.*.pyc"))


def test_a_file_that_dvcignore_hides_is_refused(project):
    """An edit of it would change nothing."""
    (project / ".dvcignore").write_text("*.tmp\n")
    (project / "data/folder/hidden.tmp").touch()
    probe(project, 'open("data/folder/sub/file"); open("data/folder/hidden.tmp")')
    words = "reads data/folder/hidden.tmp, which .dvcignore hides from DVC"
    assert violates(start(project), words)


def test_with_a_wdir_the_line_to_add_is_relative_to_it(project):
    parts = project / "parts"
    parts.mkdir()
    for name in ("hermetic", "data", "params.yaml"):
        (project / name).rename(parts / name)
    edit(project / "dvc.yaml", "    cmd:", "    wdir: parts\n    cmd:")
    (project / "outer").touch()
    probe(parts, 'open("data/other")')
    assert violates(start(parts), READ)
    probe(parts, 'open("../outer")')
    assert violates(start(parts), 'add "- ../outer" to its deps')


# One hook, asked about paths that a test cannot make.


@pytest.fixture
def new_hook(tmp_path, tmp_path_factory, monkeypatch):
    """Return a function that makes the hook of a stage with one dep."""

    def new() -> AuditHook:
        root = str(tmp_path / "root")
        deps = frozenset({f"{root}/dep.py"})
        declared = Declaration("s", root, root, deps, frozenset(), frozenset())
        hook = AuditHook(Policy(declared, str(tmp_path_factory.mktemp("scratch"))))
        # A file that is not there is refused to the stage's own code.
        monkeypatch.setattr(hook, "_is_own_code", lambda: True)
        return hook

    return new


def test_what_is_mounted_or_shared_is_not_the_systems(new_hook):
    for path in ("/etc/hosts", "/usr/share/zoneinfo/UTC", "/proc/cpuinfo"):
        new_hook().check_read(path)
    for folder in ("/opt/datasets", "/run/media/usb", "/mnt"):
        with pytest.raises(hermetic.UndeclaredAccess, match="outside the repository"):
            new_hook().check_read(f"{folder}/a.csv")


STDLIB, PACKAGES = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")


ELSEWHERE = [
    *("/tmp/other", "/opt/other", "/etc", "/home/someone"),
    *("/usr/lib/python3/dist-packages", "/usr/local/lib/python3/dist-packages"),
    *(f"{STDLIB}/site-packages", f"{STDLIB}/dist-packages"),
    *(f"{sys.prefix}/other", f"{sys.base_prefix}/other"),
]


@pytest.mark.parametrize(
    "name", ["optax.py", "optax/__pycache__/optax.cpython-311.pyc", "optax.pyc"]
)
def test_only_folders_of_the_environment_have_modules(new_hook, name):
    """Wherever a stage may read other files."""
    assert sys.prefix != sys.base_prefix, "run the tests in a virtual environment"
    for module in (f"{STDLIB}/wave.py", f"{PACKAGES}/{name}"):
        new_hook().check_read(module)
    for folder in ELSEWHERE:
        with pytest.raises(hermetic.UndeclaredAccess, match=r"imports .*/optax"):
            new_hook().check_read(f"{folder}/{name}")


def test_modules_of_the_system_may_be_links(new_hook, tmp_path, monkeypatch):
    """Debian's sitecustomize.py is in /etc; /lib64 may be /lib."""
    paths = {name: str(tmp_path / name) for name in sysconfig.get_path_names()}
    for name in ("stdlib", "purelib", "etc"):
        (tmp_path / name).mkdir()
    (tmp_path / "platlib").symlink_to("purelib")
    (tmp_path / "etc/sitecustomize.py").touch()
    (tmp_path / "stdlib/sitecustomize.py").symlink_to("../etc/sitecustomize.py")
    monkeypatch.setattr(sysconfig, "get_path", lambda name, **_: paths[name])
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    hook = new_hook()
    for name in ("stdlib/sitecustomize.py", "platlib/a.py", "purelib/a.py"):
        hook.check_read(f"{tmp_path}/{name}")
    with pytest.raises(hermetic.UndeclaredAccess, match="imports"):
        hook.check_read(f"{tmp_path}/etc/sitecustomize.py")


@pytest.mark.parametrize("prefix", [".", "root"])
def test_the_repository_may_lie_in_the_folder_of_the_environment(
    new_hook, tmp_path, monkeypatch, prefix
):
    """/usr/src/app, where Python is in /usr; or an environment that is the root."""
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / prefix))
    with pytest.raises(hermetic.UndeclaredAccess, match="reads data/other"):
        new_hook().check_read(f"{tmp_path}/root/data/other")


def test_the_text_of_an_error_is_its_own_whatever_a_library_adds():
    """shutil.rmtree sets the name of the file."""
    error = hermetic.UndeclaredAccess("stage s writes x: add it")
    error.filename = "x"
    assert str(error) == "stage s writes x: add it"
