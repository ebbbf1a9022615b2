"""What `enforce` replaces in a process: how it opens files, starts others and ends."""

import atexit
import builtins
import functools
import importlib.util
import io
import os
import shutil
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from .declaration import UndeclaredAccess, absolute
from .hook import AuditHook
from .sandbox import Sandbox

_is_reported = False


def report_violations(hook: AuditHook, sandbox: Sandbox) -> None:
    """Fail a process that hides a violation, and report it with the error it led to.

    The process that began to enforce checks what the stage has written, and removes
    the folder for temporary files.
    """
    previous, exit_now = sys.excepthook, os._exit

    def find(error: BaseException | None) -> UndeclaredAccess | None:
        if hook.log:
            return None
        if error:
            return hook.violation or hook.explain(error) or sandbox.explain(error)
        return hook.violation or _check_outs(hook, sandbox)

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
        is_to_report = hook.is_to_report and not _is_reported
        if violation and is_to_report and str(violation) != str(error):
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
        if hook.is_owner():
            with hook.paused():
                shutil.rmtree(hook.policy.scratch, ignore_errors=True)
                sandbox.remove_folders()

    sys.excepthook, os._exit = excepthook, _exit
    atexit.register(at_exit)


def _check_outs(hook: AuditHook, sandbox: Sandbox) -> UndeclaredAccess | None:
    """Return the violation of a stage that succeeded: what it wrote beside its outs.

    If only other processes can have written that, warns of it.
    """
    if not hook.is_owner():
        return None
    try:
        hook.check_links()
    except UndeclaredAccess as error:
        return error
    paths, stage = sandbox.undeclared_writes(), hook.declared.stage

    def names(paths: list[str]) -> str:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return hook.declared.relative(paths[0]) + more

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
        f'add "- {hook.declared.relative(paths[0])}" to its outs, or run it again if '
        "another process changed it"
    )


def replace_open(hook: AuditHook, sandbox: Sandbox) -> None:
    """Replace `open` and `io.open`, and dvc.api.params_show when it is imported.

    Opening a parameter file gives the declared keys. An out that is created in a
    folder of other files becomes one that may be read again.
    """
    original = builtins.open
    files = {file for file, _ in hook.declared.params}
    names = {*map(os.path.basename, {*files, *sandbox.unnamed})}

    @functools.wraps(original)
    def replacement(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        is_path = isinstance(file, str | bytes | os.PathLike)
        if is_path and os.path.basename(os.fsdecode(file)) in names:
            path = absolute(os.fsdecode(file))
            if not {*mode} & {*"wax+"}:
                file = hook.declared_copy(path) or file
            elif path in sandbox.unnamed and "r" not in mode:
                with hook.paused():
                    if sandbox.link(path):
                        mode = mode.replace("x", "w")  # it is new
        return original(file, mode, *args, **options)

    make = os.mkdir

    @functools.wraps(make)
    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if sandbox.hidden and dir_fd is None:
            out = absolute(os.fsdecode(path))
            if out in sandbox.hidden:
                with hook.paused():
                    os.rename(sandbox.hidden.pop(out), out)
                return
        make(path, mode, dir_fd=dir_fd)

    builtins.open = io.open = _Function(replacement)
    os.mkdir = _Function(mkdir)
    builtins.open.__module__, os.mkdir.__module__ = "io", "os"
    if hook.is_owner() and sandbox.is_on:  # it has to report what it finds
        _replace_exec(hook)
    if hook.declared.params:
        sys.meta_path.insert(0, _ParamsShow(hook))


class _Function(staticmethod):
    """A function that is no method in a class, and is pickled by name, as built-in."""

    def __reduce__(self) -> str:
        return self.__name__


def _replace_exec(hook: AuditHook) -> None:
    """Run a program that would replace this process, as `jupyter` does, as a child."""
    execve = os.execve

    def run(path: Any, arguments: Any, environment: Any) -> NoReturn:
        if not hook.is_owner():  # a fork, which may become another program
            execve(path, arguments, environment)
        import subprocess

        sys.exit(subprocess.run(arguments, executable=path, env=environment).returncode)

    os.execve = run  # type: ignore[assignment]
    os.execv = lambda path, arguments: run(path, arguments, os.environ)


class _ParamsShow:
    """Let dvc.api.params_show return what the stage declares."""

    def __init__(self, hook: AuditHook) -> None:
        self._hook = hook

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != "dvc.api":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._original = module.params_show
                module.params_show = self._params_show  # type: ignore[attr-defined]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _params_show(self, *targets: str, **options: Any) -> Any:
        """Stand in for DVC's, which reads the files of the whole pipeline."""
        hook, found = self._hook, dict[str, Any]()
        stages = options.get("stages") or []
        names = {stages} if isinstance(stages, str) else {*stages}
        is_other = any(options.get(name) for name in ("repo", "rev", "config"))
        if is_other or names - {hook.declared.stage, os.environ.get("DVC_STAGE")}:
            return self._original(*targets, **options)
        declared = {hook.declared.relative(file) for file, _ in hook.declared.params}
        for file in targets or sorted(declared):
            for key, value in hook.read_params("", file).items():
                # As DVC does: a key of several files is prefixed in the later ones.
                found[f"{file}:{key}" if key in found else key] = value
        return found
