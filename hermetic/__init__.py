"""Enforce that a DVC stage reads and writes only what dvc.yaml declares for it.

See README.md for what that means, how it works and what it does not see.
"""

import marshal
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import params, settings
from .declaration import Declaration, UndeclaredAccess, declaration, temporary
from .hook import AuditHook
from .policy import Policy
from .process import replace_open, report_violations
from .sandbox import Sandbox

__all__ = ["UndeclaredAccess", "enforce", "read_params", "temporary"]

FOLDER = "HERMETIC_FOLDER"
"""Environment variable that points a child process to its declaration."""
SITE = os.path.join(os.path.dirname(__file__), "site")
"""The folder of the module by which a Python that a stage starts is guarded, too."""

_hook: AuditHook | None = None  # one per process: an audit hook cannot be removed
_sandbox: Sandbox | None = None


def enforce(
    stage: str | None = None, allow: Sequence[str] = (), read: Sequence[str] = ()
) -> None:
    """From now on, raise UndeclaredAccess for anything that dvc.yaml does not declare.

    The stage is the one that DVC is running, or else `stage`; without either, do
    nothing. `allow` and `read` list what else the stage may use, as do the keys of
    [tool.hermetic] in pyproject.toml. Raises UndeclaredAccess for modules that are
    already imported; what they have read is unknown, so call this first.

    After a violation, nothing can be written, and the exit status is 1, even if the
    error is swallowed, here or in a child process.
    """
    global _hook, _sandbox
    # A copy of this package by another name, as `from src import hermetic`.
    _hook = _hook or getattr(sys.modules.get("hermetic"), "_hook", None)
    if _hook:
        if _hook.log:  # observed before the stage called this
            policy = _hook.policy
            allow, read = [*policy.allow, *allow], [*policy.read, *read]
            with _hook.paused():
                _hook.policy = Policy(policy.declared, policy.scratch, allow, read)
        return
    is_inherited, create = FOLDER in os.environ, list[str]()
    if is_inherited:
        _hook = _inherit(os.environ[FOLDER])
    elif declared := declaration(stage):
        folder = os.path.realpath(tempfile.mkdtemp(prefix="hermetic-"))
        found = settings.read(declared)
        allow, read = [*allow, *found.allow], [*read, *found.read]
        policy = Policy(declared, folder, allow, read)
        _hook, create = AuditHook(policy), found.create
        os.environ["TMPDIR"] = folder
        for name, is_set, value in (v.partition("=") for v in found.environment):
            if is_set:
                os.environ[name] = settings.expand(value)
    else:
        return
    hook, policy, declared = _hook, _hook.policy, _hook.declared
    hook.record("", "")  # a stage that uses nothing is observed, too
    # This package, too, determines what a stage does. Then check what was imported
    # before there was a hook.
    hook.check_read(os.path.dirname(__file__))
    for module in list(sys.modules.values()):
        if isinstance(file := getattr(module, "__file__", None), str):
            hook.check_read(file, is_module=file.endswith(".so"))
    if not is_inherited:
        hook.check_redirections()
    _sandbox = sandbox = Sandbox(policy)
    if not is_inherited:
        if not hook.log:
            sandbox.apply(create)
            hook.is_sandboxed = sandbox.is_on
        of_policy = (policy.allow, policy.read, [*policy.leftovers])
        description: Any = (tuple(declared), of_policy, hook.texts, hook.is_sandboxed)
        Path(policy.scratch, "description").write_bytes(marshal.dumps(description, 4))
        os.environ[FOLDER] = policy.scratch
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{SITE}{os.pathsep}{others}" if others else SITE
    report_violations(hook, sandbox)
    tempfile.tempdir = policy.scratch
    if os.environ.get("HERMETIC") == "verbose":
        by = "Python's audit hook" + (" and Landlock" if hook.is_sandboxed else "")
        print(f"stage {declared.stage} is checked by {by}", file=sys.stderr)
    if not hook.log:
        replace_open(hook, sandbox)
    sys.addaudithook(hook)


def _inherit(folder: str) -> AuditHook:
    """Return the hook of the process that started this one, already sandboxed."""
    description = Path(folder, "description").read_bytes()
    declared, of_policy, texts, is_sandboxed = marshal.loads(description)
    hook = AuditHook(Policy(Declaration(*declared), folder, *of_policy), texts)
    hook.is_sandboxed = is_sandboxed
    return hook


def read_params(key: str = "", file: str = "params.yaml") -> Any:
    """Read a dotted key of a parameter file; outside a stage, any key.

    If the stage declares only some keys below this one, returns a mapping of those;
    without a key, of all that it declares. Raises UndeclaredAccess if it declares none
    of them, KeyError if the file lacks the key, and OSError, UnicodeDecodeError or
    the error of the format's parser if the file cannot be read.
    """
    if _hook:
        return _hook.read_params(key, file)
    parsed = params.parse(Path(file).read_text("utf-8-sig"), os.path.abspath(file))
    return params.select(parsed, {"*"}, key, KeyError)
