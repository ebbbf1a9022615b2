"""Hold a stage to its declaration: an audit hook for Python, Landlock for all else."""

import importlib.util
import mmap
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from . import values
from .declaration import Contents, Declaration, UndeclaredAccess, absolute, covering
from .sandbox import RECORD, SYSTEM, Hold, Places, temporary

SHARED_MEMORY = "/dev/shm"  # in /dev, but what is there may be an earlier run's
TERMINALS = ["/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr"]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: dict[str, list[tuple[int, int | None]]] = {
    # Where the arguments of an event hold a path, and the dir_fd it is relative to.
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
LISTERS = {
    # The modules that look for modules and packages in all folders of sys.path. What
    # is then imported is checked by itself.
    *("importlib._bootstrap_external", "_frozen_importlib_external"),
    *("importlib.metadata", "pkg_resources"),
}
PROGRAMS = {
    *("subprocess.Popen", "os.system", "os.posix_spawn", "os.spawn", "pty.spawn"),
}
SPAWNING = {
    # Modules that start a new Python; a forked one inherits the guard.
    "multiprocessing.popen_spawn_posix",
    "multiprocessing.popen_spawn_win32",
    "multiprocessing.popen_forkserver",
}
NETWORK = {
    *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"),
    "socket.gethostbyname",
}
WATCHED = {"open", "import", "os.exec", *CHANGES, *LISTINGS, *PROGRAMS, *NETWORK}


class Guard:
    """An audit hook that holds this process to a declaration."""

    def __init__(
        self,
        declared: Declaration,
        folder: str,
        allow: Sequence[str] = (),
        texts: Mapping[str, bytes | OSError] | None = None,
    ) -> None:
        """Prepare, but refuse nothing yet. `folder` is for temporary files."""
        self.declared, self.folder, self.allow = declared, folder, [*allow]
        self.used: set[str | tuple[str, str]] = set()
        """The deps and params that the stage has read so far."""
        self.is_held = False
        """Whether the kernel holds this process, too, and the programs it starts."""
        self.is_over = False
        self._first_refusal = self._map_first_refusal()
        self.texts = texts or {file: _content(file) for file, _ in declared.params}
        """The parameter files, as they were at the start."""
        self._contents = Contents(declared)
        self._import_folders = {declared.base, *self._contents.module_folders}
        self._network = any("://" in place for place in allow)
        places = [os.path.expanduser(place) for place in allow if "://" not in place]
        for place in places:
            if place.endswith(os.sep):
                os.makedirs(place, exist_ok=True)
        found = {f(place) for place in places for f in (absolute, os.path.realpath)}
        # To allow the whole of the stage's folder would leave nothing to guard.
        self._listable = {place for place in found if covering(declared.base, [place])}
        self._allowed = found - self._listable
        self._compiled = set()
        if sys.pycache_prefix:
            os.makedirs(sys.pycache_prefix, exist_ok=True)
            self._compiled = _both([absolute(sys.pycache_prefix)])
        self._temporary_outs = {temporary(out) for out in declared.outs}
        self._out_folders = {os.path.dirname(out) for out in declared.outs}
        self._prefixes = _both([sys.prefix, sys.base_prefix, sys.exec_prefix])
        # One may lie above the repository: /usr, and the repository is /usr/src/app.
        self._environment = _folders(
            path for path in self._prefixes if not covering(declared.root, [path])
        )
        paths = map(sysconfig.get_path, ("purelib", "platlib"))
        self._packages = _folders(_both(paths))
        stdlib = [
            sysconfig.get_path("stdlib"),
            sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}),
        ]
        self._stdlib = _folders(_both(stdlib))
        # Of the Python from which a virtual environment was made, say.
        other = [
            os.path.join(p, f"{n}-packages") for p in stdlib for n in ("site", "dist")
        ]
        self._other_packages = _folders(_both(other))

    def hold(self) -> Hold:
        """Let the kernel hold this process, if it can."""
        modules = [*self._packages, *self._stdlib]
        held = Hold(
            self.declared,
            self._contents,
            Places(
                prefixes=[*self._prefixes],
                modules=[path.rstrip(os.sep) for path in modules],
                allowed=[*self._allowed, *self._compiled],
                temporary=self.folder,
                network=self._network,
            ),
        )
        self.is_held = held.is_on
        return held

    def _map_first_refusal(self) -> mmap.mmap:
        """Map a file that all processes which this one starts can map, too."""
        path = os.path.join(self.folder, "refusal")
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            if not os.fstat(file.fileno()).st_size:
                file.write(bytes(4096))
                file.flush()
            return mmap.mmap(file.fileno(), 4096)

    @property
    def refusal(self) -> UndeclaredAccess | None:
        """The first undeclared path, key or module; then nothing may be written.

        Of this process, and of those that it has started.
        """
        if not self._first_refusal[0]:
            return None
        text = self._first_refusal[:].rstrip(b"\0")
        return UndeclaredAccess(text.decode("utf-8", "replace"))

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise UndeclaredAccess if dvc.yaml does not declare what is about to happen."""
        if self.is_over:
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes):
                return
            if flags & WRITING:
                self.check_write(os.fsdecode(path))
            else:
                self.check_read(os.fsdecode(path))
        elif event in CHANGES:
            for index, folder_index in CHANGES[event]:
                path = arguments[index]
                folder = -1 if folder_index is None else arguments[folder_index]
                if isinstance(path, str | bytes):
                    self.check_write(_in_folder(os.fsdecode(path), folder))
        elif event in LISTINGS:
            self._check_listing(arguments[0])
        elif event == "import" and arguments[1]:  # of an extension module, its file
            self.check_read(arguments[1], is_module=True)
        elif event == "os.exec":
            raise self._refuse(
                "puts a program in its place", "start it with subprocess.run"
            )
        elif event in PROGRAMS or (event == "import" and arguments[0] in SPAWNING):
            if not self.is_held:
                raise self._refuse(
                    f"starts a program ({arguments[0]}), whose files dvc.yaml "
                    "cannot answer for on this system",
                    "do its work in Python, or run it on Linux 5.13 or later",
                )
        elif event in NETWORK and not self._network:
            if isinstance(arguments[1], str | bytes) and event.endswith(
                ("bind", "connect")
            ):
                self.check_write(os.fsdecode(arguments[1]))  # a socket with a path
            else:
                raise self._refuse(
                    "uses the network",
                    "let a stage of its own fetch that, with enforce(allow=[URL])",
                )

    def check_read(self, path: str, *, is_module: bool = False) -> None:
        """Raise UndeclaredAccess unless the stage may read `path`, or import it."""
        is_module = is_module or path.endswith((".py", ".pyc"))
        if path in sys.path and os.path.isfile(path):  # a zip file of modules
            is_module = True
        if ".." not in path and self._is_installed(path, is_module):
            return
        if re.fullmatch("<.*>", path):  # what a traceback says for code without a file
            return
        if path.endswith(".pyc"):
            with suppress(ValueError):  # one beside its source, or without
                path = importlib.util.source_from_cache(path)
        path, declared = absolute(path), self.declared
        if dep := covering(path, declared.deps):
            if dep != path and self._contents.is_ignored(path):
                raise self._remember(
                    f"reads {self._relative(path)}, which .dvcignore hides from DVC",
                    "correct .dvcignore, or do without",
                )
            for dep in declared.deps:
                if covering(path, [dep]):
                    self._use(dep)
            return
        if (path, "*") in declared.params:
            self._use((path, "*"))
            return
        if covering(path, declared.outs) or path in self._out_folders:
            return
        real = os.path.realpath(path)
        allowed = {*self._allowed, self.folder}
        if covering(path, allowed) or covering(real, allowed):
            return
        if self._is_installed(path, is_module) or self._is_installed(real, is_module):
            return
        if covering(real, [declared.root]):
            remedy = 'add "- {}" to its deps'
            if path in self.texts:
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
            raise self._refuse(
                f"reads {path}, outside the repository",
                "add a copy of it to its deps, or name it in enforce(allow=[…])",
            )

    def _is_installed(self, path: str, is_module: bool) -> bool:
        """Tell whether a file is in the environment or the standard library."""
        path += os.sep
        if path.startswith(self._packages):
            return True
        if is_module:
            in_stdlib = path.startswith(self._stdlib)
            return in_stdlib and not path.startswith(self._other_packages)
        return path.startswith(self._environment)

    def _check_listing(self, folder: Any) -> None:
        if isinstance(folder, int):  # an open folder, where Linux tells its name
            folder = _in_folder(".", folder)
        folder = absolute(os.fsdecode("." if folder is None else folder))
        is_elsewhere = not covering(folder, [self.declared.root])
        if next(_callers()).f_globals.get("__name__") in LISTERS and (
            is_elsewhere or folder in self._import_folders
        ):
            return
        if covering(folder, self._listable):
            return
        declared = [*self.declared.deps, *self._allowed]
        if folder in self._out_folders and not covering(folder, declared):
            raise self._undeclared("reads", folder, 'add "- {}" to its deps')
        self.check_read(folder)

    def check_write(self, path: str) -> None:
        """Raise UndeclaredAccess unless the stage may write, rename or remove `path`."""
        path, outs = absolute(path), self.declared.outs
        folder, name = os.path.split(path)
        if "__pycache__" in (name, os.path.basename(folder)):
            return
        free = [*self._compiled, *self._allowed, self.folder, *TERMINALS]
        if covering(path, free):
            return
        if refused := self.refusal:
            raise refused
        holds_an_out = any(out.startswith(path + os.sep) for out in outs)
        if covering(path, outs) or holds_an_out or path in self._temporary_outs:
            return
        if covering(path, [self.declared.root]):
            raise self._undeclared("writes", path, 'add "- {}" to its outs')
        raise self._refuse(
            f"writes {path}, outside the repository",
            "write to an out, to tempfile's folder, or name it in enforce(allow=[…])",
        )

    def read_params(self, key: str, file: str) -> Any:
        """Return what the stage declares at a dotted key of a parameter file."""
        path = absolute(file)
        keys = {k for declared_in, k in self.declared.params if declared_in == path}

        def refuse(key: str) -> UndeclaredAccess:
            name = self._relative(path)
            line = f"{name}: [{key}]" if key else f"{name}:"
            if key and name == "params.yaml":
                line = key
            remedy = f'add "- {line}" to its params'
            return self._undeclared("reads", key or name, remedy)

        if not keys:
            raise refuse(key)
        content = self.texts[path]
        if isinstance(content, OSError):
            raise content
        parsed = values.parse(content.decode("utf-8-sig"), path)
        found = values.select(parsed, keys, key, refuse)
        for item in keys:
            if f"{item}.".startswith(f"{key}." if key else "") or item == "*":
                self._use((path, item))
        return found

    def _use(self, declared: str | tuple[str, str]) -> None:
        if declared not in self.used:
            self.used.add(declared)
            if RECORD in os.environ:
                self.record(declared, self._line())

    def record(self, declared: str | tuple[str, str], line: str = "") -> None:
        """Note which line used it first, for `python -m hermetic`."""
        import json

        if not isinstance(declared, str):
            declared = f"{self._relative(declared[0])}: {declared[1]}"
        else:
            declared = self._relative(declared)
        entry = {"stage": self.declared.stage, "declared": declared, "line": line}
        was_over, self.is_over = self.is_over, True
        with open(os.environ[RECORD], "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry)}\n")
        self.is_over = was_over

    def _line(self) -> str:
        """Return the line of the repository that runs now."""
        for frame in _callers():
            file = absolute(frame.f_code.co_filename)
            is_other = "<" in file or self._is_installed(file, is_module=True)
            if covering(file, [self.declared.root]) and not is_other:
                return f"{self._relative(file)}:{frame.f_lineno}"
        return ""

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.declared.base)

    def _undeclared(self, deed: str, what: str, remedy: str) -> UndeclaredAccess:
        if os.path.isabs(what):
            what = self._relative(what)
        deed = f"{deed} {what}, which dvc.yaml does not declare"
        return self._remember(deed, remedy.format(what))

    def _remember(self, deed: str, remedy: str) -> UndeclaredAccess:
        error = self._refuse(deed, remedy)
        # So that a stage that swallows the error still writes nothing. The first one
        # is the cause; others may follow from it.
        if not self._first_refusal[0]:
            text = str(error).encode("utf-8", "replace")[: len(self._first_refusal)]
            self._first_refusal[: len(text)] = text
        return error

    def _refuse(self, deed: str, remedy: str) -> UndeclaredAccess:
        return UndeclaredAccess(f"stage {self.declared.stage} {deed}: {remedy}")


def _callers() -> Iterator[FrameType]:
    """Yield the frames outside the guard, the innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame:
        if os.path.dirname(frame.f_code.co_filename) != os.path.dirname(__file__):
            yield frame
        frame = frame.f_back


def _content(file: str) -> bytes | OSError:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        return error


def _both(paths: Iterable[str]) -> set[str]:
    """Return paths and what they link to."""
    return {found for path in paths for found in (path, os.path.realpath(path))}


def _folders(paths: Iterable[str]) -> tuple[str, ...]:
    """Return folders with a slash at their end, to be compared as prefixes."""
    return tuple({path.rstrip(os.sep) + os.sep for path in paths})


def _in_folder(path: str, folder: int) -> str:
    """Join `path` to an open folder, where Linux tells its name."""
    link = f"/proc/self/fd/{folder}"
    if folder >= 0 and os.path.exists(link):
        return os.path.join(os.readlink(link), path)
    return path
