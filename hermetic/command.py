"""Run a command as a stage, without an edit of its code: `hermetic run -- COMMAND`."""

import atexit
import errno
import fnmatch
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import nullcontext, suppress

import hermetic

from . import landlock, settings
from .declaration import UndeclaredAccess, declaration

PASSED = [
    # Who and where.
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "PWD", "TMPDIR", "XDG_*", "DVC_*"),
    *("PYTHON*", "VIRTUAL_ENV", "CONDA*", "LD_LIBRARY_PATH", "DYLD_*", "HERMETIC*"),
    # Language and terminal.
    *("LANG", "LANGUAGE", "LC_*", "TZ", "TERM*", "COLORTERM", "COLUMNS", "LINES"),
    *("NO_COLOR", "FORCE_COLOR", "CI"),
    # The machine's processors, and the share of a job in them.
    *("CUDA_*", "NVIDIA_*", "HIP_*", "ROCR_*", "SLURM_*", "OMP_*", "MKL_*"),
    *("OPENBLAS_*", "NUMEXPR_*", "XLA_*", "JAX_*", "TF_*", "KMP_*", "GOMP_*"),
    # A company's network.
    *("*_PROXY", "*_proxy", "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
]
"""The environment variables that a stage gets; pyproject.toml may name more."""


def run(command: list[str], stage: str | None = None) -> int:
    """Restrict this process to what dvc.yaml declares, then run a command in it.

    `python FILE`, `python -m MODULE` and console scripts of this environment run in
    this process; any other command runs as a child, which the kernel restricts. Raises
    SystemExit if there is no such stage or command.
    """
    observed = hermetic._hook  # these reads are ours, not the stage's
    try:
        with observed.paused() if observed else nullcontext():
            declared = declaration(stage)
            passed = settings.read(declared).environment if declared else []
    except UndeclaredAccess as error:
        sys.exit(str(error))
    if not declared:
        known = "start it by `dvc repro`, or add --stage NAME"
        sys.exit(f"hermetic run does not know the stage: {known}")
    if not (script := shutil.which(command[0])):
        sys.exit(f"stage {declared.stage}: there is no command {command[0]}")
    _restrict_environment(declared.stage, [*PASSED, *passed])
    hermetic.enforce(stage)
    match command[1:] if is_python(command[0]) else []:
        case ["-m", module, *_]:
            sys.argv, sys.path[0] = command[2:], os.getcwd()
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [file, *_] if not file.startswith("-"):
            _run_script(file, command[1:])
        case _ if _is_ours(script):
            _run_script(script, command)
        case _:
            return _run_child(declared.stage, command)
    return 0


def is_python(command: str) -> bool:
    """Return whether a command is the Python that runs this."""
    found = shutil.which(command) or ""
    if not re.fullmatch(r"python[\d.]*", os.path.basename(command)):
        return False
    # Not the real path: an environment's Python is a link to the one that made it.
    return os.path.dirname(os.path.abspath(found)) == os.path.dirname(sys.executable)


def _is_ours(script: str) -> bool:
    """Return whether a program is a Python script of this environment."""
    folder = os.path.realpath(sysconfig.get_path("scripts"))
    if os.path.dirname(os.path.realpath(script)) != folder:
        return False
    with open(script, "rb") as file:
        return b"python" in file.readline(200) and file.read(1) != b"\0"


def _run_script(file: str, arguments: list[str]) -> None:
    sys.argv = [file, *arguments[1:]]
    sys.path[0] = os.path.dirname(os.path.abspath(file))
    runpy.run_path(os.path.abspath(file), run_name="__main__")  # as __file__ is


def _run_child(stage: str, command: list[str]) -> int:
    if not landlock.version():
        raise UndeclaredAccess(
            f"stage {stage} runs {command[0]}, which only the kernel could check, from "
            "Linux 5.13 on: run a Python command"
        )
    # With options, Python is a child that runs sitecustomize, unless they forbid that.
    if not is_python(command[0]) or re.match("-[a-zA-Z]*[EIS]", "".join(command[1:2])):
        told = f"stage {stage}: {command[0]} is checked by the kernel alone"
        print(told, file=sys.stderr)
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        child = subprocess.Popen(["sh", *command])  # as a shell does, without "#!"
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = None
    while status is None:
        with suppress(KeyboardInterrupt):  # the terminal interrupts the child, too
            status = child.wait()
    if status:
        told = (
            f"stage {stage}: {command[0]} failed; if it was denied a file, add that to "
            "the deps or outs of the stage, or, for an out that it reads as it writes "
            f"it, to create in {settings.PLACE}"
        )
        named, sandbox = filter(os.path.isfile, command), hermetic._sandbox
        print((sandbox and sandbox.denial(named)) or told, file=sys.stderr)
    return status if status >= 0 else 128 - status


def _restrict_environment(stage: str, passed: list[str]) -> None:
    """Hide the other environment variables; at exit, name those that were asked for."""
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if not any(fnmatch.fnmatchcase(name, p.partition("=")[0]) for p in passed)
    }
    asked = set()

    class Environment(type(os.environ)):  # type: ignore[misc]
        def __getitem__(self, name: str) -> str:
            if name in hidden:
                asked.add(name)
            return str(super().__getitem__(name))

    def tell() -> None:
        if asked:
            names = ", ".join(sorted(asked))
            remedy = f"add what it needs to environment in {settings.PLACE}"
            told = f"stage {stage} asked for {names}, which it does not get: {remedy}"
            print(f"warning: {told}", file=sys.stderr)

    os.environ.__class__ = Environment
    atexit.register(tell)
