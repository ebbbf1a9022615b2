"""Enforce that a DVC stage reads and writes only what dvc.yaml declares for it.

DVC reruns a stage when something declared in dvc.yaml has changed, but cannot know what
the stage actually reads. After `enforce`, reading or importing a file in the repository
needs a line in `deps`, writing one needs a line in `outs` (or `metrics` or `plots`),
and reading a parameter needs a line in `params`. Other modules must come from the
standard library or the stage's environment. The network and files outside the
repository are forbidden unless `enforce` allows them. The error names the stage, the
path and the line to add.

Python calls an audit hook (PEP 578) before it opens a file, and the hook may raise. On
Linux, Landlock also restricts C code and other programs, in the kernel; elsewhere,
starting programs is forbidden. Neither sees stat or exists. Both catch mistakes, not
attackers. See README.md.
"""

import atexit
import marshal
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import params
from .declaration import Declaration, UndeclaredAccess, declaration, temporary
from .hook import RECORD, AuditHook
from .policy import Policy
from .sandbox import Sandbox

__all__ = ["UndeclaredAccess", "enforce", "read_params", "temporary"]

FOLDER = "HERMETIC_FOLDER"
"""Environment variable that points a child process to its declaration."""

_hook: AuditHook | None = None  # one per process: an audit hook cannot be removed
_sandbox: Sandbox | None = None
_owner = 0  # the process that removes the folder for temporary files
_is_reported = False


def enforce(stage: str | None = None, allow: Sequence[str] = ()) -> None:
    """From now on, raise UndeclaredAccess for anything that dvc.yaml does not declare.

    The stage is the one that DVC is running, or else `stage`; without either, do
    nothing. `allow` lists what else the stage may use, at the pipeline owner's risk:
    files and folders to read and write (`~` is expanded; a folder with a trailing slash
    is created if missing), and URLs, any of which allows the network. Raises
    UndeclaredAccess for modules that are already imported, too.

    After a violation inside the repository or by an import, nothing can be written, and
    the exit status is 1, even if the error is swallowed, here or in a child process.
    """
    global _hook, _sandbox, _owner
    if _hook:
        return
    if folder := os.environ.get(FOLDER):
        _hook = _inherit(folder)
    elif declared := declaration(stage):
        folder = os.path.realpath(tempfile.mkdtemp(prefix="hermetic-"))
        _hook, _owner = AuditHook(Policy(declared, folder, allow)), os.getpid()
    else:
        return
    _report_violations(_hook)
    declared = _hook.declared
    if RECORD in os.environ:
        for path, key in [*((dep, "") for dep in declared.deps), *declared.params]:
            _hook.record(path, key)
    # This package, too, determines what a stage does. Then check what was imported
    # before there was a hook.
    _hook.check_read(os.path.dirname(__file__))
    for module in list(sys.modules.values()):
        if isinstance(file := getattr(module, "__file__", None), str):
            _hook.check_read(file, is_module=file.endswith(".so"))
    if not _hook.is_sandboxed:
        _sandbox = Sandbox(_hook.policy)
        if _sandbox.is_on:
            _hook.is_sandboxed = True
            description: Any = (tuple(declared), _hook.policy.allow, _hook.texts)
            Path(folder, "description").write_bytes(marshal.dumps(description))
            os.environ[FOLDER] = folder
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    if os.environ.get("HERMETIC") == "verbose":
        by = "Python's audit hook" + (" and Landlock" if _hook.is_sandboxed else "")
        print(f"stage {declared.stage} is checked by {by}", file=sys.stderr)
    sys.addaudithook(_hook)


def _inherit(folder: str) -> AuditHook:
    """Return the hook of the process that started this one, already sandboxed."""
    declared, allow, texts = marshal.loads(Path(folder, "description").read_bytes())
    hook = AuditHook(Policy(Declaration(*declared), folder, allow), texts)
    hook.is_sandboxed = True
    return hook


def _report_violations(hook: AuditHook) -> None:
    """Fail a process that hides a violation, and report it with the error it led to."""
    previous = sys.excepthook

    def find(error: BaseException | None) -> UndeclaredAccess | None:
        if (violation := hook.violation) or not _sandbox:
            return violation
        if error:
            return _sandbox.explain(error)
        return _sandbox.undeclared_writes() if os.getpid() == _owner else None

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        global _is_reported
        _is_reported = True
        violation = find(error)  # a library may have wrapped it
        if violation and str(violation) != str(error):
            violation.__cause__ = error.with_traceback(trace)
            kind, error, trace = type(violation), violation, None
        if sys._getframe().f_back:  # called directly, maybe before os._exit
            _clean_up(hook)
        previous(kind, error, trace)

    def at_exit() -> None:
        hook.is_paused = True
        error = getattr(sys, "last_value", None)  # what ended the program
        violation = find(error)
        if violation and not _is_reported and str(violation) != str(error):
            sys.excepthook(type(violation), violation, None)
        _clean_up(hook)
        if violation:
            sys.stdout.flush()
            os._exit(1)

    sys.excepthook = excepthook
    atexit.register(at_exit)


def _clean_up(hook: AuditHook) -> None:
    """Remove the folders made for this process; the sandbox allows that."""
    if os.getpid() == _owner:
        with hook.paused():
            shutil.rmtree(hook.policy.scratch, ignore_errors=True)
            if _sandbox:
                _sandbox.remove_folders()


def read_params(key: str = "", file: str = "params.yaml") -> Any:
    """Read a dotted key of a parameter file; outside a stage, any key.

    If the stage declares only some keys below this one, returns a mapping of those;
    without a key, of all that it declares. Raises UndeclaredAccess if it declares none
    of them, KeyError if the file lacks the key, and OSError, UnicodeDecodeError or
    the error of the format's parser if the file cannot be read.
    """
    if _hook:
        return _hook.read_params(key, file)
    parsed = params.parse(Path(file).read_text("utf-8-sig"), file)
    return params.select(parsed, {"*"}, key, KeyError)
