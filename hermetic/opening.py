"""Open outs and parameter files in a way that the restrictions allow."""

import builtins
import functools
import importlib.util
import io
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from .declaration import absolute
from .hook import AuditHook
from .sandbox import Sandbox


def replace_open(hook: AuditHook, sandbox: Sandbox, *, is_owner: bool) -> None:
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
        if dir_fd is None and absolute(os.fsdecode(path)) in sandbox.hidden:
            with hook.paused():
                sandbox.rename(absolute(os.fsdecode(path)))
        else:
            make(path, mode, dir_fd=dir_fd)

    builtins.open = io.open = _Function(replacement)
    os.mkdir = _Function(mkdir)
    builtins.open.__module__, os.mkdir.__module__ = "io", "os"
    if is_owner and sandbox.is_on:  # it has to report what it finds
        _replace_exec()
    if hook.declared.params:
        sys.meta_path.insert(0, _ParamsShow(hook))


class _Function(staticmethod):
    """A function that is no method in a class, and is pickled by name, as built-in."""

    def __reduce__(self) -> str:
        return self.__name__


def _replace_exec() -> None:
    """Run the program that would replace this process as a child of it."""
    owner, execve = os.getpid(), os.execve

    def run(path: Any, arguments: Any, environment: Any) -> NoReturn:
        if os.getpid() != owner:  # a fork, which may become another program
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
        declared = {hook.policy.relative(file) for file, _ in hook.declared.params}
        for file in targets or sorted(declared):
            for key, value in hook.read_params("", file).items():
                # As DVC does: a key of several files is prefixed in the later ones.
                found[f"{file}:{key}" if key in found else key] = value
        return found
