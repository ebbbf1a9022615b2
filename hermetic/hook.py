"""Refuse accesses through Python that dvc.yaml does not declare."""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from . import params
from .declaration import UndeclaredAccess, absolute, covering
from .policy import SYSTEM, Policy

RECORD = "HERMETIC_RECORD"
"""Environment variable: path of the access log that `python -m hermetic` reads."""

SHARED_MEMORY = "/dev/shm"  # in /dev, but may hold leftovers of another run
TERMINALS = ["/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr"]
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: dict[str, list[tuple[int, int | None]]] = {
    # By event: the argument positions of each path and its dir_fd.
    "os.rename": [(0, 2), (1, 3)],
    "os.link": [(0, 2), (1, 3)],
    "os.symlink": [(1, 2)],
    "os.remove": [(0, 1)],
    "os.rmdir": [(0, 1)],
    "os.mkdir": [(0, 2)],
    "os.chmod": [(0, 2)],
    "os.truncate": [(0, None)],
}
LISTINGS = {"os.listdir", "os.scandir"}
IMPORTERS = {
    # Modules that list every folder of sys.path to find modules and packages. The
    # imports themselves are checked separately.
    *("importlib._bootstrap_external", "_frozen_importlib_external"),
    *("importlib.metadata", "pkg_resources"),
}
PROGRAMS = {
    *("subprocess.Popen", "os.system", "os.posix_spawn", "os.spawn", "pty.spawn"),
}
SPAWNERS = {
    # Modules that start a new Python; a forked one inherits the hook.
    "multiprocessing.popen_spawn_posix",
    "multiprocessing.popen_spawn_win32",
    "multiprocessing.popen_forkserver",
}
NETWORK = {
    *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"),
    "socket.gethostbyname",
}
EVENTS = {"open", "import", "os.exec", *CHANGES, *LISTINGS, *PROGRAMS, *NETWORK}


class AuditHook:
    """An audit hook (PEP 578) that raises UndeclaredAccess for what a policy forbids.

    It remembers the first violation inside the repository, or by an import. From then
    on nothing may be written, so a stage that swallows the error has no result.
    """

    def __init__(
        self, policy: Policy, texts: Mapping[str, bytes] | None = None
    ) -> None:
        """Read the parameter files, unless the parent process has."""
        self.policy, self.declared = policy, policy.declared
        self.texts = dict(texts or {})
        """Parameter files by path: the kernel may deny reading them later."""
        self.is_sandboxed = False
        """Whether the kernel restricts this process and the programs it starts."""
        self.is_paused = False
        self._import_folders = {self.declared.base, *policy.module_folders}
        self._used: set[tuple[str, str]] = set()
        # A file, because child processes share it.
        self._violation_file = os.path.join(policy.scratch, "violation")
        self._violation = ""
        if texts is None:
            for file, _ in self.declared.params:
                with suppress(OSError):
                    self.texts[file] = Path(file).read_bytes()

    @property
    def violation(self) -> UndeclaredAccess | None:
        """The first violation of this process and those that it started."""
        if not self._violation and os.path.exists(self._violation_file):
            with self.paused(), suppress(OSError):
                self._violation = Path(self._violation_file).read_text("utf-8")
        return UndeclaredAccess(self._violation) if self._violation else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Allow everything, for the hook's own files."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise UndeclaredAccess if the policy forbids what is about to happen."""
        if event not in EVENTS or self.is_paused:
            return  # early: importing JAX raises ten thousand events
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes):
                check = self.check_write if flags & WRITE_FLAGS else self.check_read
                check(os.fsdecode(path))
        elif event in CHANGES:
            for index, folder_index in CHANGES[event]:
                path = arguments[index]
                folder = -1 if folder_index is None else arguments[folder_index]
                if isinstance(path, str | bytes):
                    self.check_write(_in_folder(os.fsdecode(path), folder))
        elif event in LISTINGS:
            self._check_listing(arguments[0])
        elif event == "import" and arguments[1]:  # the file of an extension module
            self.check_read(arguments[1], is_module=True)
        elif event == "os.exec":
            raise self._error(
                "replaces itself with another program", "start it with subprocess.run"
            )
        elif event in PROGRAMS or (event == "import" and arguments[0] in SPAWNERS):
            if not self.is_sandboxed:
                raise self._error(
                    f"starts a program ({arguments[0]}), whose file accesses cannot be "
                    "checked against dvc.yaml on this system",
                    "do its work in Python, or run it on Linux 5.13 or later",
                )
        elif event in NETWORK and not self.policy.network:
            is_local = event.endswith(("bind", "connect"))
            if is_local and isinstance(arguments[1], str | bytes):  # a Unix socket
                self.check_write(os.fsdecode(arguments[1]))
            else:
                raise self._error(
                    "uses the network",
                    "fetch that in a stage of its own, with enforce(allow=[URL])",
                )

    def check_read(self, path: str, *, is_module: bool = False) -> None:
        """Raise UndeclaredAccess unless the stage may read or import `path`."""
        policy, declared = self.policy, self.declared
        is_module = is_module or path.endswith((".py", ".pyc"))
        is_module |= path in sys.path and os.path.isfile(path)  # a zip file of modules
        if ".." not in path and policy.is_installed(path, is_module):
            return
        if re.fullmatch("<.*>", path):  # a traceback's name for code without a file
            return
        if path.endswith(".pyc"):
            with suppress(ValueError):  # not in __pycache__
                path = importlib.util.source_from_cache(path)
        path = absolute(path)
        if dep := covering(path, declared.deps):
            if dep != path and path in policy.ignored:
                raise self._remember(
                    f"reads {policy.relative(path)}, which .dvcignore hides from DVC",
                    "correct .dvcignore, or stop reading it",
                )
            for dep in declared.deps:
                if covering(path, [dep]):
                    self._use(dep)
            return
        if (path, "*") in declared.params:
            self._use(path, "*")
            return
        if covering(path, declared.outs) or path in policy.out_folders:
            return
        real = os.path.realpath(path)
        allowed = {*policy.allowed, policy.scratch}
        for found in (path, real):
            if covering(found, allowed) or policy.is_installed(found, is_module):
                return
        if covering(real, [declared.root]):
            remedy = 'add "- {}" to its deps'
            if path in {file for file, _ in declared.params}:
                remedy = "use hermetic.read_params(KEY)"
            elif covering(path, [f"{declared.root}/.git", f"{declared.root}/.dvc"]):
                remedy = "name it in enforce(allow=[…])"
            raise self._undeclared("reads", path, remedy)
        if is_module:
            raise self._remember(
                f"imports {path}, from outside the environment",
                "unset PYTHONPATH, or install it into the environment",
            )
        if covering(real, [SHARED_MEMORY]) or not covering(real, SYSTEM):
            raise self._error(
                f"reads {path}, outside the repository",
                "add a copy of it to its deps, or name it in enforce(allow=[…])",
            )

    def _check_listing(self, folder: Any) -> None:
        if isinstance(folder, int):  # a file descriptor
            folder = _in_folder(".", folder)
        folder = absolute(os.fsdecode("." if folder is None else folder))
        policy, declared = self.policy, self.declared
        is_elsewhere = not covering(folder, [declared.root])
        if next(_callers()).f_globals.get("__name__") in IMPORTERS and (
            is_elsewhere or folder in self._import_folders
        ):
            return
        if covering(folder, policy.listable):
            return
        known = [*declared.deps, *policy.allowed]
        if folder in policy.out_folders and not covering(folder, known):
            raise self._undeclared("reads", folder, 'add "- {}" to its deps')
        self.check_read(folder)

    def check_write(self, path: str) -> None:
        """Raise UndeclaredAccess unless the stage may write, move or remove `path`."""
        policy, outs = self.policy, self.declared.outs
        path = absolute(path)
        folder, name = os.path.split(path)
        # Python's own cache, which changes no results.
        if "__pycache__" in (name, os.path.basename(folder)):
            return
        if covering(path, [*policy.allowed, policy.scratch, *TERMINALS]):
            return
        if violation := self.violation:
            raise violation
        # A folder above an out may be created.
        has_out = any(out.startswith(path + os.sep) for out in outs)
        if covering(path, outs) or has_out or path in policy.temporary_outs:
            return
        if covering(path, [self.declared.root]):
            raise self._undeclared("writes", path, 'add "- {}" to its outs')
        raise self._error(
            f"writes {path}, outside the repository",
            "write to an out, to tempfile's folder, or name it in enforce(allow=[…])",
        )

    def read_params(self, key: str, file: str) -> Any:
        """Return what the stage declares at a dotted key of a parameter file."""
        path = absolute(file)
        keys = {declared for of, declared in self.declared.params if of == path}

        def refuse(key: str) -> UndeclaredAccess:
            name = self.policy.relative(path)
            line = f"{name}: [{key}]" if key else f"{name}:"
            if key and name == "params.yaml":
                line = key
            remedy = f'add "- {line}" to its params'
            return self._undeclared("reads", key or name, remedy)

        if not keys:
            raise refuse(key)
        if path not in self.texts:
            with self.paused():  # raises the error of a file that cannot be read
                self.texts[path] = Path(path).read_bytes()
        parsed = params.parse(self.texts[path].decode("utf-8-sig"), path)
        found = params.select(parsed, keys, key, refuse)
        for declared in keys:
            if f"{declared}.".startswith(f"{key}." if key else "") or declared == "*":
                self._use(path, declared)
        return found

    def _use(self, path: str, key: str = "") -> None:
        if RECORD in os.environ and (path, key) not in self._used:
            self._used.add((path, key))
            self.record(path, key, self._line())

    def record(self, path: str, key: str, line: str = "") -> None:
        """Log a dep or param and the line that first used it, if any."""
        import json  # deferred: only `python -m hermetic` needs it

        name = self.policy.relative(path) + (f": {key}" if key else "")
        entry = {"stage": self.declared.stage, "declared": name, "line": line}
        with self.paused(), open(os.environ[RECORD], "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry)}\n")

    def _line(self) -> str:
        """Return the innermost current line of the repository's own code."""
        for frame in _callers():
            file = absolute(frame.f_code.co_filename)
            is_other = "<" in file or self.policy.is_installed(file, is_module=True)
            if covering(file, [self.declared.root]) and not is_other:
                return f"{self.policy.relative(file)}:{frame.f_lineno}"
        return ""

    def _undeclared(self, verb: str, what: str, remedy: str) -> UndeclaredAccess:
        what = self.policy.relative(what) if os.path.isabs(what) else what
        access = f"{verb} {what}, which dvc.yaml does not declare"
        return self._remember(access, remedy.format(what))

    def _remember(self, access: str, remedy: str) -> UndeclaredAccess:
        """Return an error; keep the first one, as later ones may follow from it."""
        error = self._error(access, remedy)
        if not self.violation:
            self._violation = str(error)
            with self.paused(), suppress(OSError):
                text = self._violation.encode("utf-8", "replace")
                Path(self._violation_file).write_bytes(text)
        return error

    def _error(self, access: str, remedy: str) -> UndeclaredAccess:
        return UndeclaredAccess(f"stage {self.declared.stage} {access}: {remedy}")


def _callers() -> Iterator[FrameType]:
    """Yield the frames outside this package, the innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame:
        if os.path.dirname(frame.f_code.co_filename) != os.path.dirname(__file__):
            yield frame
        frame = frame.f_back


def _in_folder(path: str, folder: int) -> str:
    """Join `path` to an open folder; only Linux can tell the folder's name."""
    link = f"/proc/self/fd/{folder}"
    if folder >= 0 and os.path.exists(link):
        return os.path.join(os.readlink(link), path)
    return path
