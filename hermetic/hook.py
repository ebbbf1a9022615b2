"""Refuse accesses through Python that dvc.yaml does not declare."""

import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from . import landlock, params, settings
from .declaration import UndeclaredAccess, absolute, covering, resolved
from .policy import IN_CACHE, SHARED_MEMORY, SYSTEM, Policy

RECORD = "HERMETIC_RECORD"
"""Environment variable: where to log accesses, instead of refusing any."""

TERMINALS = ["/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr"]
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: dict[str, list[tuple[int, int | None]]] = {
    # By event: the argument positions of each path and its dir_fd.
    "os.rename": [(0, 2), (1, 3)],
    "os.link": [(1, 3)],  # its target is a read
    "os.symlink": [(1, 2)],  # as here
    "os.remove": [(0, 1)],
    "os.rmdir": [(0, 1)],
    "os.mkdir": [(0, 2)],
    "os.chmod": [(0, 2)],
    "os.truncate": [(0, None)],
    "os.utime": [(0, 3)],
    "os.chown": [(0, 3)],
    "os.setxattr": [(0, None)],
}
LISTINGS = {"os.listdir", "os.scandir"}
IMPORTERS = {
    # Modules that list every folder of sys.path to find modules and packages. The
    # imports themselves are checked separately.
    *("importlib._bootstrap_external", "_frozen_importlib_external"),
    *("importlib.metadata", "importlib_metadata", "pkg_resources", "pkgutil"),
}
PROGRAMS = {
    *("subprocess.Popen", "os.system", "os.posix_spawn", "os.spawn", "pty.spawn"),
}
NETWORK = {
    *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"),
    *("socket.getaddrinfo", "socket.getnameinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr"),
}
EVENTS = {"open", "import", "os.exec", *CHANGES, *LISTINGS, *PROGRAMS, *NETWORK}


class AuditHook:
    """An audit hook (PEP 578) that raises UndeclaredAccess for what a policy forbids.

    It remembers the first violation. From then on nothing may be written, so a stage
    that swallows the error has no result. In an observed run (RECORD) it raises nothing
    and logs what the stage uses, declared or not.
    """

    def __init__(
        self, policy: Policy, texts: Mapping[str, bytes] | None = None
    ) -> None:
        """Read the parameter files, unless the parent process has."""
        self.policy, self.declared = policy, policy.declared
        self.log = os.environ.get(RECORD)
        """The path of the log of an observed run."""
        self.texts = dict(texts or {})
        """Parameter files by path: the kernel may deny reading them later."""
        self.is_sandboxed = False
        """Whether the kernel restricts this process and the programs it starts."""
        self.is_paused = False
        self._owner = os.getpid() if texts is None else 0
        self._logged: set[tuple[str, str]] = set()
        self._copies: dict[str, str] = {}
        self._temporary: set[str] = set()
        # Files, because child processes share them.
        self._program_file = os.path.join(policy.scratch, "program")
        self._violation_file = os.path.join(policy.scratch, "violation")
        self._violation = ""  # its text and, after a zero, where it happened
        self.is_to_report = texts is None
        """Whether to report the violation: a Python started later reports its own."""
        if texts is None:
            for file, _ in self.declared.params:
                with suppress(Exception):  # told when the stage reads it
                    self.texts[file] = Path(file).read_bytes()
                    self._parse(file)

    @property
    def violation(self) -> UndeclaredAccess | None:
        """The first violation of this process and those that it started."""
        if not self._violation and os.path.exists(self._violation_file):
            with self.paused(), suppress(OSError):
                self._violation = Path(self._violation_file).read_text("utf-8")
        if not self._violation:
            return None
        text, _, trace = self._violation.partition("\0")
        violation = UndeclaredAccess(text)
        violation.__cause__ = UndeclaredAccess(f"swallowed in\n{trace}")
        return violation

    @property
    def has_started_programs(self) -> bool:
        """Whether this process, or one that it forked, has started a program."""
        return os.path.exists(self._program_file)

    def is_owner(self) -> bool:
        """Return whether this is the process that began to enforce, and no fork."""
        return os.getpid() == self._owner

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
            path, mode, flags = arguments
            if isinstance(path, str | bytes):
                path = os.fsdecode(path)
                # os.open has no mode, and may look in an open folder (dir_fd), which
                # the event does not name. The kernel knows it.
                if mode is None and not os.path.isabs(path):
                    if flags & WRITE_FLAGS and self.is_sandboxed:
                        known = {*self.declared.outs, *self.policy.allowed}
                        if not covering(absolute(path), known):
                            self._note_program()  # for the check at the end
                        return
                    if not flags & WRITE_FLAGS and not os.path.isfile(path):
                        return
                check = self.check_write if flags & WRITE_FLAGS else self.check_read
                check(path)
        elif event in CHANGES:
            self._check_change(event, arguments)
        elif event in LISTINGS:
            self._check_listing(arguments[0])
        elif event == "import":
            if arguments[1]:  # the file of an extension module
                self.check_read(arguments[1], is_module=True)
        elif event == "os.exec":
            access = "replaces itself with another program"
            self._refuse(access, "start it with subprocess.run")
        elif event in PROGRAMS:
            self._check_program(event)
        elif not self.policy.network:
            self._check_network(event, arguments)

    def _check_change(self, event: str, arguments: tuple[Any, ...]) -> None:
        resolved.cache_clear()
        for index, folder_index in CHANGES[event]:
            path = arguments[index]
            folder = -1 if folder_index is None else arguments[folder_index]
            if isinstance(path, str | bytes):
                path = _in_folder(os.fsdecode(path), folder)
                if path and not (event == "os.mkdir" and os.path.isdir(path)):
                    self.check_write(path)
                if path and event == "os.symlink":
                    target = os.fsdecode(arguments[0])
                    self.check_read(os.path.join(os.path.dirname(path), target))
                elif path and event == "os.link":
                    self.check_read(_in_folder(os.fsdecode(arguments[0]), arguments[2]))

    def _note_program(self) -> None:
        with self.paused(), suppress(OSError):
            Path(self._program_file).touch()

    def _check_program(self, event: str) -> None:
        self._note_program()
        if not self.is_sandboxed and not (self.log and landlock.version()):
            self._refuse(
                f"starts a program ({event}), whose file accesses cannot be "
                "checked against dvc.yaml on this system",
                "do its work in Python, or run it on Linux 5.13 or later",
            )

    def _check_network(self, event: str, arguments: tuple[Any, ...]) -> None:
        address = arguments[-1]
        if event == "socket.sendmsg" and address is None:
            return  # over a connection that was checked
        if event == "socket.bind" and address[:1] in (("127.0.0.1",), ("::1",)):
            return  # libraries try it to learn what the system supports
        if isinstance(address, str | bytes) and event.endswith(("bind", "connect")):
            path = os.fsdecode(address)  # of a Unix socket
            if not path.startswith("\0"):  # a name without a file
                self.check_write(path)
                return
        url = "https://…"
        add = f'add "{url}" to what {settings.PLACE} allows it'
        remedy = f"fetch that in a stage of its own, and {add}"
        self._refuse("uses the network", remedy, url)

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
        if place := covering(path, policy.deps):
            dep = policy.deps[place]
            if dep != path and dep + path[len(place) :] in policy.ignored:
                where, remedy = (
                    ", which .dvcignore hides from DVC",
                    "correct .dvcignore",
                )
                if covering(path, policy.ignored.repositories):
                    where = " in another DVC repository, which DVC skips"
                    remedy = "move it"
                access = f"reads {declared.relative(path)}{where}"
                self._refuse(access, f"{remedy}, or do without it")
            elif self.log:
                for place, dep in policy.deps.items():
                    if covering(path, [place]):
                        self._use(dep)
            return
        if (path, "*") in declared.params:
            self._use(path, "*")
            return
        if covering(path, declared.outs) or path in policy.out_folders:
            return
        if policy.is_readable(os.path.basename(path)):
            return
        real, allowed = os.path.realpath(path), policy.allowed | policy.readable
        for found in (path, real):
            if covering(found, allowed) or policy.is_installed(found, is_module):
                return
        is_missing = not is_module and not os.path.exists(real)
        if is_missing and not self._is_own_code():
            return  # libraries look for settings; tracebacks, for source
        if covering(real, [declared.root]):
            name = declared.relative(path)
            section, remedy = "deps", f'add "- {name}" to its deps'
            if keys := declared.keys(path):
                for key in keys:
                    self._use(path, key)  # which keys, only the parser knows
                if self.log:
                    return
                add = f'or add "- {name}:", all of it, to its params'
                remedy = f"use hermetic.read_params(KEY), {add}"
            elif covering(path, policy.records):
                section, remedy = "allow", policy.remedy(path)
            elif os.path.basename(path) == "params.yaml":
                add = "add the keys it uses to its params"
                remedy = f'{add}, or "- {name}:" for all of them'
            self._undeclared("reads", name, remedy, section)
        elif is_module:
            self._refuse(
                f"imports {path}, from outside the environment",
                "unset PYTHONPATH, or install it into the environment",
            )
        elif covering(real, policy.leftovers) or not covering(real, SYSTEM):
            self._refuse(
                f"reads {path}, outside the repository",
                f"add a copy of it to its deps, or {policy.remedy(path)}",
                path,
            )

    def check_redirections(self) -> None:
        """Raise UndeclaredAccess for files that the shell opened for the stage."""
        for number, check in (0, self.check_read), (1, self.check_write):
            path = os.path.realpath(f"/proc/self/fd/{number}")
            # If the stage's command does not name it, DVC itself was redirected.
            name = os.path.basename(path)
            if name in self.declared.command and os.path.isfile(path):
                check(path)

    def _check_listing(self, folder: Any) -> None:
        if isinstance(folder, int):  # a file descriptor
            folder = _in_folder(".", folder)
            if not folder:
                return
        caller = next(_callers()).f_globals.get("__name__", "")
        if caller in IMPORTERS and "_bootstrap" in caller:
            return
        folder = absolute(os.fsdecode("." if folder is None else folder))
        # Others than the import system may be asked for any folder, as for plugins.
        around = {folder, os.path.dirname(folder)}
        if caller in IMPORTERS and around & {*map(absolute, sys.path)}:
            return
        policy = self.policy
        if covering(folder, policy.listable) or not os.path.isdir(folder):
            return
        if os.path.basename(folder) == "__pycache__":
            return
        known = self.declared.deps | policy.allowed
        if folder in policy.out_folders and not covering(folder, known):
            name = self.declared.relative(folder)
            self._undeclared("reads", name, f'add "- {name}" to its deps', "deps")
        else:
            self.check_read(folder)

    def check_write(self, path: str) -> None:
        """Raise UndeclaredAccess unless the stage may write, move or remove `path`."""
        policy, outs = self.policy, self.declared.outs
        path = absolute(path)
        folder, name = os.path.split(path)
        # Python's own cache, which changes no results.
        if "__pycache__" in (name, os.path.basename(folder)):
            return
        if covering(path, {*policy.allowed, *TERMINALS}):
            return
        if covering(path, [SHARED_MEMORY]) and path not in policy.leftovers:
            return
        if violation := self.violation:
            raise violation
        # A folder above an out may be created.
        has_out = any(out.startswith(path + os.sep) for out in outs)
        if covering(path, outs) or has_out or path in policy.temporary_outs:
            return
        if self.is_sandboxed and self._is_temporary(path):
            return
        name = self.declared.relative(path)
        if covering(path, policy.records):
            self._undeclared("writes", name, policy.remedy(path), "allow")
        elif covering(path, [self.declared.root]):
            self._undeclared("writes", name, f'add "- {name}" to its outs', "outs")
        else:
            self._refuse(
                f"writes {path}, outside the repository",
                f"write to an out or to tempfile's folder, or {policy.remedy(path)}",
                path,
            )

    def check_links(self) -> None:
        """Raise UndeclaredAccess for links in the outs to what may not be read.

        DVC records the content of their targets, and would not notice an edit.
        """
        for out in self.declared.outs:
            for link in [out] if os.path.islink(out) else _links(out):
                target = os.path.join(os.path.dirname(link), os.readlink(link))
                if not IN_CACHE.search(target):
                    self.check_read(target)

    def declared_copy(self, path: str) -> str | None:
        """Return a copy of a parameter file with only the keys that are declared.

        Returns None for other files, and for one that may be read as it is.
        """
        keys = self.declared.keys(path)
        if not keys or "*" in keys or covering(path, self.policy.deps) or self.log:
            return None
        if path not in self._copies:
            text = self.texts.get(path, b"").decode("utf-8-sig")
            part = params.declared_part(text, path, keys)
            if part is None:
                return None
            with self.paused():
                folder = tempfile.mkdtemp(dir=self.policy.scratch)
                self._copies[path] = os.path.join(folder, os.path.basename(path))
                Path(self._copies[path]).write_text(part, "utf-8")
        return self._copies[path]

    def explain(self, error: BaseException) -> UndeclaredAccess | None:
        """Return the violation of a stage that misses a key in a `declared_copy`."""
        for cause in chain(error):
            if not isinstance(cause, LookupError | AttributeError):
                continue
            for file in self._copies:
                keys = self.declared.keys(file)
                for name in re.findall(r"[\w.-]+", str(cause)):
                    for key in params.undeclared(self._parse(file), keys, name):
                        return self._undeclared_param(key, file)
        return None

    def _undeclared_param(self, key: str, path: str) -> UndeclaredAccess:
        name = self.declared.relative(path)
        line = f"{name}: [{key}]" if key else f"{name}:"
        line = key if key and name == "params.yaml" else line
        access = f"reads {key or name}, which dvc.yaml does not declare"
        return self._violate(access, f'add "- {line}" to its params')

    def _is_temporary(self, path: str) -> bool:
        """Return whether a new file beside an out may be for renaming it to the out.

        What is left of it in the end fails the stage.
        """
        folder, name = os.path.split(path)
        if path not in self._temporary and not os.path.lexists(path):
            outs = map(os.path.split, self.declared.outs)
            beside = [out for above, out in outs if above == folder]
            is_named = any(out in name for out in beside)
            caller = next(_callers()).f_globals.get("__name__")
            if is_named or (beside and caller == "tempfile"):
                self._temporary.add(path)
                self._note_program()
        return path in self._temporary

    def read_params(self, key: str, file: str) -> Any:
        """Return what the stage declares at a dotted key of a parameter file."""
        path = absolute(file)
        keys = self.declared.keys(path)
        if not keys and not self.log:
            raise self._undeclared_param(key, path)
        if path not in self.texts:
            with self.paused():  # raises the error of a file that cannot be read
                self.texts[path] = Path(path).read_bytes()
        parsed = self._parse(path)
        if self.log and not params.covers(keys, key):
            self.record("params", self.declared.relative(path, key or "*"))
            return params.select(parsed, {"*"}, key, KeyError)
        found = params.select(
            parsed, keys, key, lambda key: self._undeclared_param(key, path)
        )
        for declared in keys:
            if params.is_below(declared, key) or declared == "*":
                self._use(path, declared)
        return found

    def _parse(self, file: str) -> Any:
        return params.parse(self.texts[file].decode("utf-8-sig"), file)

    def _use(self, path: str, key: str = "") -> None:
        if self.log:
            self.record("", self.declared.relative(path, key))

    def record(self, missing: str, name: str) -> None:
        """Log what the stage uses and the line that first did.

        `missing` is the section of dvc.yaml that lacks it: deps, outs or params; or
        else `allow`; or nothing if it is declared.
        """
        if not self.log or (missing, name) in self._logged:
            return
        self._logged.add((missing, name))
        import json  # deferred: only an observed run needs it

        stage = os.environ.get("DVC_STAGE", self.declared.stage)  # with its dvc.yaml
        entry = {"stage": stage, "missing": missing, "name": name, "line": self._line()}
        with self.paused(), open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry)}\n")

    def _line(self) -> str:
        """Return the innermost current line of the repository's own code."""
        for frame in _callers():
            if file := self._own_file(frame):
                return f"{self.declared.relative(file)}:{frame.f_lineno}"
        return "cmd"

    def _is_own_code(self) -> bool:
        """Return whether the repository's own code asks, and not a library."""
        caller = next(_callers(), None)
        return bool(caller and self._own_file(caller))

    def _own_file(self, frame: FrameType) -> str:
        """Return the file of a frame, or nothing for code from elsewhere."""
        name = frame.f_code.co_filename
        file = absolute(name)
        is_other = self.policy.is_installed(file, is_module=True)
        is_own = covering(file, [self.declared.root]) and name[:1] != "<"
        return file if (is_own or name == "<string>") and not is_other else ""

    def _undeclared(self, verb: str, name: str, remedy: str, section: str) -> None:
        access = f"{verb} {name}, which dvc.yaml does not declare"
        self._refuse(access, remedy, name, section)

    def _refuse(
        self, access: str, remedy: str, name: str = "", section: str = "allow"
    ) -> None:
        """Raise UndeclaredAccess, or log it in an observed run."""
        if self.log:
            self.record(section, name or access)
        else:
            raise self._violate(access, remedy)

    def _violate(self, access: str, remedy: str) -> UndeclaredAccess:
        """Return an error; keep the first one, as later ones may follow from it."""
        error = UndeclaredAccess(f"stage {self.declared.stage} {access}: {remedy}")
        self.is_to_report = True
        if not self.violation:
            self._violation = str(error)
            with self.paused(), suppress(OSError):
                import traceback

                stack = traceback.extract_stack(next(_callers(), None))
                self._violation += "\0" + "".join(traceback.format_list(stack))
                text = self._violation.encode("utf-8", "replace")
                Path(self._violation_file).write_bytes(text)
        return error


def _callers() -> Iterator[FrameType]:
    """Yield the frames outside this package, the innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame:
        if os.path.dirname(frame.f_code.co_filename) != os.path.dirname(__file__):
            yield frame
        frame = frame.f_back


def _links(folder: str) -> Iterator[str]:
    """Yield the links in a folder, if it is one."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.path
            elif entry.is_dir():
                yield from _links(entry.path)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _in_folder(path: str, folder: int) -> str:
    """Join `path` to an open folder; return "" where its name cannot be told."""
    if folder < 0 or os.path.isabs(path):
        return path
    link = f"/proc/self/fd/{folder}"
    return os.path.join(os.readlink(link), path) if os.path.exists(link) else ""
