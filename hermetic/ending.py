"""Report a violation when a process ends, whatever has become of the error."""

import atexit
import os
import shutil
import sys
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

from .declaration import UndeclaredAccess
from .hook import AuditHook
from .sandbox import Sandbox

_is_reported = False


def report_violations(hook: AuditHook, sandbox: Sandbox, *, is_owner: bool) -> None:
    """Fail a process that hides a violation, and report it with the error it led to.

    The owner is the process that began to enforce. It checks what the stage has
    written, and removes the folder for temporary files.
    """
    owner = os.getpid() if is_owner else 0
    previous, exit_now = sys.excepthook, os._exit

    def find(error: BaseException | None) -> UndeclaredAccess | None:
        if hook.log:
            return None
        if violation := hook.violation:
            return violation
        if error and (violation := hook.explain(error)):
            return violation
        if error:
            return sandbox.explain(error) if hook.is_sandboxed else None
        return check_outs(hook, sandbox) if os.getpid() == owner else None

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
            clean_up()
        previous(kind, error, trace)

    def at_exit() -> None:
        global _is_reported
        hook.is_paused = True
        error = getattr(sys, "last_value", None)  # what ended the program
        violation = find(error)
        if violation and not _is_reported and str(violation) != str(error):
            _is_reported = True  # first: the stage's own hook may end with os._exit
            try:
                sys.excepthook(type(violation), violation, None)
            except BaseException:
                sys.__excepthook__(type(violation), violation, None)
        clean_up()
        if violation:
            with suppress(Exception):  # the stage may have replaced or closed it
                sys.stdout.flush()
            exit_now(1)

    def _exit(status: int = 0) -> NoReturn:
        at_exit()
        exit_now(status)

    def clean_up() -> None:
        if os.getpid() == owner:
            with hook.paused():
                shutil.rmtree(hook.policy.scratch, ignore_errors=True)
                sandbox.remove_folders()

    sys.excepthook, os._exit = excepthook, _exit
    atexit.register(at_exit)


def check_outs(hook: AuditHook, sandbox: Sandbox) -> UndeclaredAccess | None:
    """Return the violation of a stage that succeeded: what it wrote beside its outs.

    If only other processes can have written that, warns of it.
    """
    try:
        hook.check_links()
    except UndeclaredAccess as error:
        return error
    paths, stage = sandbox.undeclared_writes(), hook.declared.stage

    def names(paths: list[str]) -> str:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return hook.policy.relative(paths[0]) + more

    if not hook.has_started_programs:
        edited = {path for path in paths if sandbox.is_edited(path)}
        if told := [path for path in sorted(edited) if not sandbox.is_record(path)]:
            text = f"{names(told)} changed while stage {stage} ran"
            by = "another process, or C code of the stage"
            print(f"warning: {text}, by {by}", file=sys.stderr)
        paths = [path for path in paths if path not in edited]
    if not paths:
        return None
    return UndeclaredAccess(
        f"stage {stage} writes {names(paths)}, which dvc.yaml does not declare: "
        f'add "- {hook.policy.relative(paths[0])}" to its outs, or run it again if '
        "another process changed it"
    )
