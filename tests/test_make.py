"""What the Makefile runs, with shell scripts in place of Python."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT, succeed

Variables = Mapping[str, str]
NONE: Variables = {}
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
        mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" ;;
    "-m pip "*) touch "$here/uv" ;;
    "-m uv "*) test -e "$here/uv" ;;
    "-m tools.check") exit "${CHECK:-0}" ;;
esac
"""


class Call(NamedTuple):
    command: str
    environment: dict[str, str]


class Fakes:
    """A folder with the Makefile, and a PATH on which Python is a script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.bin = folder / "bin"
        self.record = folder / "record"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in ("Makefile", "requirements.txt", "requirements-test.txt"):
            shutil.copy(ROOT / name, self.folder / name)
        self.python("python3")

    def python(self, name: str) -> Path:
        path = self.bin / name
        path.write_text(PYTHON, "utf-8")
        path.chmod(0o755)
        return path

    def make(
        self, *arguments: str, fails: bool = False, variables: Variables = NONE
    ) -> list[Call]:
        """Run make; return the commands it ran that are Python's."""
        self.record.unlink(missing_ok=True)
        path = f"{self.bin}:/usr/bin:/bin"
        done = subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env={"RECORD": str(self.record), "PATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        calls: list[Call] = []
        for line in self.record.read_text("utf-8").splitlines():
            if line.startswith("> "):
                calls.append(Call(line[2:].replace(f"{self.bin}/", ""), {}))
            elif "=" in line:
                name, _, value = line.partition("=")
                calls[-1].environment[name] = value
        return [call for call in calls if "import uv" not in call.command]


def commands(calls: list[Call]) -> list[str]:
    return [call.command for call in calls if " -m " in call.command]


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


INSTALLED = ".venv/bin/python -m uv pip install --python .venv/bin/python --quiet "
INSTALLED += "--require-hashes -r requirements"
RUN = [f".venv/bin/python -m {name}" for name in ("tools.check", "dvc repro")]
RUN += [".venv/bin/python -m tools.summary"]


def test_make_installs_what_is_locked_then_checks_runs_and_shows(fakes: Fakes):
    venv, pip, install, *rest = commands(fakes.make())
    assert venv == "python3 -m venv --clear .venv"
    assert pip.startswith(".venv/bin/python -m pip install ")
    assert install == f"{INSTALLED}.txt"
    assert rest == RUN


def test_a_second_make_installs_nothing(fakes: Fakes):
    fakes.make()
    assert commands(fakes.make()) == RUN


def test_another_python_can_be_named(fakes: Fakes):
    fakes.python("python3.12")
    assert commands(fakes.make("PYTHON=python3.12"))[0].startswith("python3.12 -m venv")
    shutil.rmtree(fakes.folder / ".venv")
    assert commands(fakes.make(variables={"PYTHON": "python3.12"}))[0].startswith(
        "python3.12 -m venv"
    )


@pytest.mark.parametrize("target", ["all", "test", "bench", "lock"])
def test_every_command_of_uv_names_the_interpreter_of_the_environment(fakes, target):
    calls = [line for line in commands(fakes.make(target)) if " -m uv " in line]
    assert calls
    for line in calls:
        assert line.startswith(".venv/bin/python -m uv pip ")
        assert " --python .venv/bin/python " in line


FOREIGN = [
    *("UV_SYSTEM_PYTHON", "UV_PYTHON", "UV_TARGET", "UV_PREFIX", "UV_PROJECT"),
    *("UV_PROJECT_ENVIRONMENT", "UV_BREAK_SYSTEM_PACKAGES", "UV_CONSTRAINT"),
    *("UV_NO_VERIFY_HASHES", "UV_WORKING_DIR", "UV_OF_TOMORROW"),
    *("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON"),
    *("PIP_CONSTRAINT", "PIP_DRY_RUN", "PIP_OF_TOMORROW"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONUSERBASE"),
    *("PYTHONOPTIMIZE", "PYTHONSTARTUP", "VIRTUAL_ENV"),
]


@pytest.mark.parametrize("target", ["all", "test", "lock"])
def test_what_the_caller_set_for_uv_pip_and_python_reaches_no_command(fakes, target):
    calls = fakes.make(target, variables=dict.fromkeys(FOREIGN, "of the caller"))
    assert len(calls) > 5
    for call in calls:
        reached = [name for name in FOREIGN if name in call.environment]
        assert reached == [], call.command


def test_nor_does_what_is_set_on_the_command_line_of_make(fakes: Fakes):
    for call in fakes.make("UV_SYSTEM_PYTHON=1", "PIP_USER=1"):
        assert not call.environment.keys() & {"UV_SYSTEM_PYTHON", "PIP_USER"}


FETCHING = [
    *("UV_INDEX", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL"),
    *("UV_INDEX_COMPANY_USERNAME", "UV_INDEX_COMPANY_PASSWORD", "UV_FIND_LINKS"),
    *("UV_KEYRING_PROVIDER", "UV_INSECURE_HOST", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS"),
    *("UV_HTTP_TIMEOUT", "UV_CACHE_DIR", "UV_NO_CACHE", "UV_LINK_MODE", "UV_OFFLINE"),
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS"),
    *("PIP_TRUSTED_HOST", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_PROXY"),
    *("PIP_CONFIG_FILE", "PIP_CACHE_DIR", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES"),
    *("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PYENV_VERSION"),
]


def test_the_caller_still_decides_how_packages_are_fetched(fakes: Fakes):
    said = dict.fromkeys(FETCHING, "of the caller")
    for call in fakes.make("test", variables=said):
        reached = {name: call.environment.get(name) for name in FETCHING}
        assert reached == said, call.command


def test_uv_trusts_the_certificates_of_the_system_where_there_are_any(fakes: Fakes):
    patterns = ("ssl/certs/*", "ssl/*.pem", "pki/tls/certs/*")
    there = any(any(Path("/etc").glob(pattern)) for pattern in patterns)
    for call in fakes.make():
        assert call.environment["UV_SYSTEM_CERTS"] == str(int(there))


def test_an_environment_whose_python_is_gone_is_made_anew(fakes: Fakes):
    first = commands(fakes.make("test"))
    python = fakes.folder / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3.10")
    assert commands(fakes.make("test")) == first
    assert python.is_file()


def test_an_environment_whose_python_does_not_start_is_made_anew(fakes: Fakes):
    first = commands(fakes.make())
    python = fakes.folder / ".venv/bin/python"
    python.write_text("#!/bin/sh\nexit 127\n", "utf-8")
    assert commands(fakes.make()) == first


def test_packages_that_the_environment_does_not_find_are_installed_again(fakes: Fakes):
    """As after an upgrade from Python 3.11 to 3.12 under the same path."""
    _, *rest = commands(fakes.make())
    (fakes.folder / ".venv/bin/uv").unlink()
    assert commands(fakes.make()) == ["python3 -m venv .venv", *rest]


def test_an_environment_that_works_is_not_emptied(fakes: Fakes):
    fakes.make()
    kept = fakes.folder / ".venv/kept"
    kept.touch()
    (fakes.folder / ".venv/bin/uv").unlink()
    fakes.make()
    fakes.make("test")
    assert kept.exists()


@pytest.mark.parametrize("target", ["all"])
def test_dvc_is_not_started_with_parameters_that_the_check_refuses(fakes, target):
    assert any(" -m dvc " in line for line in commands(fakes.make(target)))
    calls = commands(fakes.make(target, fails=True, variables={"CHECK": "1"}))
    assert not any(" -m dvc " in line for line in calls)


def test_make_help_names_every_target(fakes: Fakes):
    text = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = [line for line in text.splitlines() if line.startswith(".PHONY: ")]
    listed = succeed(fakes.folder, "make", "help")
    named = [line.split()[1] for line in listed.splitlines()]
    assert sorted(named) == sorted(set(phony.split()[1:]) - {"new"})
