"""What the Makefile and .ci/run run, with shell scripts in place of Python and make."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, commit, run, succeed

PYTHON = """\
#!/bin/sh
# Records its arguments and its environment, and makes environments of itself.
{ echo "> $0 $*"; env; } >> "$RECORD"
here=$(dirname "$0")
case "$*" in
    *"import uv"*) test -e "$here/uv" ;;
    "-m venv "*)
        for folder; do :; done
        case "$*" in *--clear*) rm -rf "$folder" ;; esac
        mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"
        touch "$folder/pyvenv.cfg" ;;
    "-m pip "*) touch "$here/uv" ;;
    "-m uv "*) test -e "$here/uv" ;;
    "-m tools.check") exit "${CHECK:-0}" ;;
esac
"""


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(0o755)
    return str(path)


Call = tuple[str, dict[str, str]]


class Fakes:
    """A folder with the Makefile, and a PATH on which Python is a script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.bin = folder / "bin"
        self.record = folder / "record"
        self.printed: list[str] = []
        (self.folder / "bench").mkdir(parents=True)
        for name in ("Makefile", "requirements.txt", "requirements-test.txt"):
            shutil.copy(ROOT / name, self.folder / name)
        for name in ("python3", "python3.12"):
            script(self.bin / name, PYTHON)

    def make(self, *targets: str, fails: bool = False, **variables: str) -> list[Call]:
        """Run make; return the commands of Python it ran, with their environments."""
        self.record.unlink(missing_ok=True)
        path = f"{self.bin}:/usr/bin:/bin"
        done = subprocess.run(
            ["make", *targets],
            cwd=self.folder,
            env={"RECORD": str(self.record), "PATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        self.printed = done.stdout.splitlines()
        calls: list[Call] = []
        for line in self.record.read_text("utf-8").splitlines():
            name, _, value = line.partition("=")
            if line.startswith("> "):
                calls.append((line[2:].replace(f"{self.bin}/", ""), {}))
            else:
                calls[-1][1][name] = value
        return [call for call in calls if "import uv" not in call[0]]

    def commands(self, *arguments: str, **options: Any) -> list[str]:
        return [c for c, _ in self.make(*arguments, **options) if " -m " in c]


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


def test_make_installs_the_lock_once_then_checks_runs_and_shows(fakes: Fakes):
    venv, fetch, pip, install, *rest = fakes.commands()
    assert venv == "python3 -m venv --clear .venv"
    assert " -m pip --disable-pip-version-check download " in fetch
    assert " -m pip --disable-pip-version-check install " in pip
    assert install == (
        ".venv/bin/python -m uv pip --config-file .venv/uv.toml install "
        "--python .venv/bin/python --quiet --require-hashes --compile-bytecode "
        "-r requirements.txt"
    )
    steps = ("tools.check", "dvc repro", "tools.summary")
    assert rest == [f".venv/bin/python -m {step}" for step in steps]
    assert [line.split()[0] for line in fakes.printed] == ["Creating", "Installing"]
    assert fakes.commands() == rest
    assert fakes.printed == []


def test_make_pulls_where_dvc_has_a_default_remote(fakes: Fakes):
    (fakes.folder / ".dvc").mkdir()
    (fakes.folder / ".dvc/config").write_text("[core]\n    remote = store\n", "utf-8")
    assert ".venv/bin/python -m dvc repro --pull" in fakes.commands()


def test_another_python_can_be_named(fakes: Fakes):
    assert fakes.commands("PYTHON=python3.12")[0].startswith("python3.12 -m venv")
    shutil.rmtree(fakes.folder / ".venv")
    assert fakes.commands(PYTHON="python3.12")[0].startswith("python3.12 -m venv")


@pytest.mark.parametrize("target", ["all", "test", "bench", "lock"])
def test_every_command_of_uv_names_the_interpreter_of_the_environment(fakes, target):
    calls = [line for line in fakes.commands(target) if " -m uv " in line]
    assert calls
    for line in calls:
        assert " -m uv pip --config-file .venv/uv.toml " in line
        assert " --python .venv/bin/python " in line


DROPPED = """
    UV_SYSTEM_PYTHON UV_TARGET UV_PROJECT_ENVIRONMENT UV_CONSTRAINT UV_NO_VERIFY_HASHES
    UV_OF_TOMORROW PIP_USER PIP_TARGET PIP_PYTHON PIP_CONSTRAINT PIP_OF_TOMORROW
    PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONSTARTUP VIRTUAL_ENV
    CDPATH PYTHONDONTWRITEBYTECODE
"""
KEPT = """
    UV_INDEX UV_INDEX_URL UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_INDEX_COMPANY_USERNAME
    UV_INDEX_COMPANY_PASSWORD UV_FIND_LINKS UV_KEYRING_PROVIDER UV_INSECURE_HOST
    UV_SYSTEM_CERTS UV_NATIVE_TLS UV_HTTP_TIMEOUT UV_CACHE_DIR UV_NO_CACHE UV_LINK_MODE
    UV_OFFLINE PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_NO_INDEX PIP_FIND_LINKS
    PIP_TRUSTED_HOST PIP_CERT PIP_CLIENT_CERT PIP_PROXY PIP_CONFIG_FILE PIP_CACHE_DIR
    PIP_DEFAULT_TIMEOUT PIP_RETRIES HTTP_PROXY HTTPS_PROXY https_proxy ALL_PROXY
    NO_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE PYENV_VERSION
"""


@pytest.mark.parametrize("target", ["all", "test", "lock"])
def test_the_caller_decides_how_packages_are_fetched_but_not_where_to(fakes, target):
    kept = dict.fromkeys(KEPT.split(), "of the caller")
    dropped = dict.fromkeys(DROPPED.split(), "of the caller")
    more = ("PIP_REPORT=x", "UV_BUILD_CONSTRAINT=x")
    calls = fakes.make(target, *more, **kept, **dropped)
    assert len(calls) > 5
    for command, environment in calls:
        # From a file, into an environment: no setting of the caller counts.
        own = {"PIP_CONFIG_FILE": "/dev/null"} if "--no-index" in command else {}
        assert environment.items() >= {**kept, **own}.items(), command
        assert not environment.keys() & {*dropped, "PIP_REPORT", "UV_BUILD_CONSTRAINT"}


def test_uv_trusts_the_certificates_of_the_system_where_there_are_any(fakes: Fakes):
    patterns = ("ssl/certs/*", "ssl/*.pem", "pki/tls/certs/*")
    there = any(any(Path("/etc").glob(pattern)) for pattern in patterns)
    for _, environment in fakes.make():
        assert environment["UV_SYSTEM_CERTS"] == str(int(there))


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_environment_whose_python_does_not_start_is_made_anew(fakes, is_gone):
    first = fakes.commands("test")
    python = fakes.folder / ".venv/bin/python"
    if is_gone:
        python.unlink()
        python.symlink_to("/nowhere/python3.10")
    else:
        script(python, "#!/bin/sh\nexit 127\n")
    assert fakes.commands("test") == first
    assert python.is_file()


def test_packages_that_the_environment_does_not_find_are_installed_again(fakes: Fakes):
    """As after an upgrade from Python 3.11 to 3.12 under the same path."""
    _, *rest = fakes.commands()
    (fakes.folder / ".venv/kept").touch()
    (fakes.folder / ".venv/bin/uv").unlink()
    assert fakes.commands() == ["python3 -m venv .venv", *rest]
    assert (fakes.folder / ".venv/kept").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_is_no_environment_is_left_alone(fakes: Fakes, linked):
    folder = fakes.folder / ".venv"
    if linked:
        folder.symlink_to("../another disk")
        folder = fakes.folder / "../another disk"
    folder.mkdir()
    (folder / "kept").touch()
    assert fakes.commands(fails=True) == []
    assert [path.name for path in folder.iterdir()] == ["kept"]
    (folder / "kept").unlink()
    assert fakes.commands()
    (folder / "bin/python").unlink()
    (folder / "pyvenv.cfg").touch()
    (folder / "left over").touch()
    assert fakes.commands()
    assert not (folder / "left over").exists()
    assert (fakes.folder / ".venv").is_symlink() == linked


def test_a_python_built_without_a_module_is_refused_before_anything(fakes: Fakes):
    without = PYTHON.replace("in\n", "in\n    *lzma*) exit 1 ;;\n", 1)
    script(fakes.bin / "python3", without)
    assert fakes.commands(fails=True) == []
    assert not (fakes.folder / ".venv").exists()


def test_a_link_to_nothing_is_left_alone(fakes: Fakes):
    (fakes.folder / ".venv").symlink_to("../a disk that is not mounted")
    assert fakes.commands(fails=True) == []
    assert not (fakes.folder / "../a disk that is not mounted").exists()


def test_a_user_without_a_name_and_a_home_has_a_cache(fakes: Fakes):
    for _, environment in fakes.make():
        assert environment["HOME"] == "/"
        assert environment["LOGNAME"] == str(os.getuid())
    home = fakes.folder / "home"
    for exists in (False, True):
        if exists:
            home.mkdir()
        for _, environment in fakes.make(HOME=str(home), LOGNAME="anna"):
            assert environment["HOME"] == (str(home) if exists else "/")
            assert environment["LOGNAME"] == "anna"
            if exists:
                assert "XDG_CACHE_HOME" not in environment


def test_dvc_is_not_started_with_parameters_that_the_check_refuses(fakes: Fakes):
    refused = fakes.commands(fails=True, CHECK="1")
    assert refused[-1] == ".venv/bin/python -m tools.check"


def test_make_help_names_every_target(fakes: Fakes):
    text = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = [line for line in text.splitlines() if line.startswith(".PHONY: ")]
    listed = succeed(fakes.folder, "make", "help")
    named = [line.split()[1] for line in listed.splitlines()]
    assert sorted(named) == sorted(set(phony.split()[1:]) - {"new"})


MAKE = """\
#!/bin/sh
# Records how it was called; the suite of some Pythons fails.
{ echo "$@"; pwd; ls; env; } >> "$RECORD"
case "$*" in */broken/*) echo "1 failed" && exit 2 ;; esac
"""
STARTS = "#!/bin/sh\n"
SHIM = "#!/bin/sh\nexit 127\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a repository, and a bin of make and what .ci/run uses alone."""
    script(tmp_path / "project/.ci/run", (ROOT / ".ci/run").read_text("utf-8"))
    commit(tmp_path / "project")
    (tmp_path / "project/uncommitted").touch()
    script(tmp_path / "bin/make", MAKE)
    for name in ("dirname", "env", "git", "ls", "mktemp", "rm", "sh", "sort", "tail"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    return tmp_path


def run_ci(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run .ci/run, as if a make had started it."""
    variables |= {"RECORD": str(home / "record"), "MAKEFLAGS": "n", "MAKELEVEL": "1"}
    path = f"{home / 'broken'}:{home / 'bin'}"
    return run(home / "project", ".ci/run", PATH=path, **variables)


@pytest.mark.parametrize("root", [".pyenv", "elsewhere"])
def test_ci_tests_a_fresh_clone_on_every_python_and_fails_if_one_does(home, root):
    first = script(home / "bin/python3.11", STARTS)
    broken = script(home / "broken/python3.14", STARTS)
    script(home / "bin/python3.13", SHIM)
    for version in ("3.13.2", "3.13.10", "3.11.99"):
        script(home / root / "versions" / version / "bin/python", STARTS)
    newest = f"{home / root}/versions/3.13.10/bin/python"
    variables = {} if root == ".pyenv" else {"PYENV_ROOT": f"{home / root}"}
    done = run_ci(home, **variables)
    assert done.returncode == 1
    lines = ["1 failed", f"3.11  passed  {first}", f"3.13  passed  {newest}"]
    assert done.stdout.splitlines() == [*lines, f"3.14  FAILED  {broken}"]

    arguments, folder, *rest = (home / "record").read_text("utf-8").splitlines()
    assert arguments == f"test PYTHON={first}"
    assert not Path(folder).exists()
    assert not [line for line in rest if line.startswith(("MAKE", "uncommitted"))]


def test_ci_fails_where_no_python_can_make_an_environment(home: Path):
    python = script(home / "bin/python3.12", SHIM)
    done = run_ci(home)
    line = "There is no Python 3.11 to 3.14 on PATH or under pyenv\n"
    assert (done.returncode, done.stdout) == (1, line)
    script(Path(python), STARTS)
    done = run_ci(home)
    assert (done.returncode, done.stdout) == (0, f"3.12  passed  {python}\n")
