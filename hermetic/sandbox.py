"""Sandbox a stage with Landlock, and find what it denied or could not deny."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from . import landlock, settings
from .declaration import UndeclaredAccess, absolute, covering, temporary
from .hook import chain
from .landlock import READ, REMOVE_FOLDER, WRITE
from .policy import SYSTEM, Policy

UNCHECKED = {"__pycache__", ".gitignore"}
"""What Python and DVC write next to the outs."""
UNCHECKED_BELOW = {".git": {"objects", "logs"}, ".dvc": {"cache", "tmp"}}
"""What changes nothing that is recorded, in Git's and DVC's own folders."""
DENIED = re.compile(
    r"permission denied|access denied|unable to open|errno.{0,3}13", re.I
)
"""How libraries word EACCES."""

State = tuple[int, int, int]
"""Of a file: inode, size in bytes, modification time in ns."""


class Sandbox:
    """Landlock's restrictions on this process and everything it starts.

    The kernel can allow a file that does not exist yet only through its folder. So the
    outs' folders are writable, and other writes to them are detected at exit.
    """

    def __init__(self, policy: Policy) -> None:
        """Describe a sandbox that `apply`, here or in a parent process, puts on."""
        self._policy, self._declared = policy, policy.declared
        self._made: list[str] = []
        self._before: dict[str, State] = {}
        self.unnamed: dict[str, int] = {}
        """By out: an open file without a name, which the kernel allows to read, too."""
        self.hidden: dict[str, str] = {}
        """By out that may be a folder: an empty one beside it."""
        self.is_on = landlock.version() > 0

    def apply(self, create: Iterable[str] = ()) -> None:
        """Create some outs, then restrict this process if the kernel supports it."""
        policy = self._policy
        if self.is_on:
            # A rule needs an existing folder. If this one were missing, the rule would
            # have to name a parent, and would allow more.
            for folder in policy.out_folders | self._declared.folders:
                self._make(folder)
            for out in create:
                Path(self._declared.base, out).touch()
            self._before = dict(self._scan())  # to find changes at exit
            self.is_on = landlock.restrict(self._rules(), network=policy.network)

    def _make(self, folder: str) -> None:
        if not os.path.isdir(folder):
            self._make(os.path.dirname(folder))
            os.mkdir(folder)
            self._made.append(folder)

    def _rules(self) -> dict[str, int]:
        """Return the access to allow by path."""
        policy, declared = self._policy, self._declared
        rules: dict[str, int] = {}

        def allow(access: int, *paths: str) -> None:
            for path in paths:
                rules[path] = rules.get(path, 0) | access

        for folder in [*SYSTEM, *policy.prefixes]:
            allow(READ, *landlock.except_for(declared.root, folder))
        allow(READ, os.path.dirname(sys.executable), f"{sys.prefix}/pyvenv.cfg")
        allow(READ | WRITE, *policy.library_folders)  # for __pycache__
        allow(READ | WRITE, *policy.allowed, "/dev")
        allow(READ, *policy.readable, *policy.editable)
        allow(READ, *policy.deps, *policy.links, *policy.ignored.files)
        allow(READ, *(file for file, key in declared.params if key == "*"))
        for folder in [] if sys.dont_write_bytecode else policy.module_folders:
            folder = os.path.join(folder, "__pycache__")
            with suppress(OSError):
                os.makedirs(folder, exist_ok=True)
            allow(READ | WRITE, folder)
        for folder in policy.out_folders:
            allow(READ | WRITE if self._has_only_outs(folder) else WRITE, folder)
        allow(READ | WRITE, *declared.outs)  # those that DVC has not deleted
        for out in declared.outs:
            if not self._has_only_outs(os.path.dirname(out)):
                self._prepare(out, temporary(out))
        unnamed = (f"/proc/self/fd/{handle}" for handle in self.unnamed.values())
        allow(READ | WRITE, *self.hidden.values(), *unnamed)
        allow(REMOVE_FOLDER, *map(os.path.dirname, [policy.scratch, *self._made]))
        return rules

    def _prepare(self, *paths: str) -> None:
        """Create what `open` and `os.mkdir` will give the path of an out.

        So a stage can read an out again whose folder holds other files.
        """
        for path in paths:
            folder, name = os.path.split(path)
            with suppress(OSError, AttributeError):  # not on every system
                if not os.path.lexists(path):
                    flags = os.O_TMPFILE | os.O_RDWR
                    self.unnamed[path] = os.open(folder, flags, 0o666)
                    if "." not in name:
                        hidden = os.path.join(folder, f".{name}.hermetic")
                        self.hidden[path] = hidden
                        self._make(hidden)
                        self._made.append(hidden)  # that of a killed run, too

    def link(self, path: str) -> bool:
        """Give the prepared file of an out its name; return False if that exists."""
        handle = self.unnamed.pop(path)
        try:
            source = f"/proc/self/fd/{handle}"
            os.link(source, path, src_dir_fd=handle, follow_symlinks=True)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True

    def _has_only_outs(self, folder: str) -> bool:
        """Return whether a folder holds nothing but outs of this stage."""
        declared = self._declared
        files = [file for file, _ in declared.params]
        known = {*self._before, *declared.others, *declared.deps, *files, declared.base}
        return not any(
            covering(path, [folder]) and not covering(path, declared.outs)
            for path in known
        )

    def _scan(self) -> Iterator[tuple[str, State]]:
        """Yield the other files in the outs' folders."""
        policy, declared = self._policy, self._declared
        skipped = {
            *(*declared.outs, *policy.temporary_outs),
            *(*policy.allowed, *policy.readable),
            *(*policy.prefixes, *policy.library_folders),
        }
        folders = policy.out_folders
        todo = [f for f in folders if not covering(f, folders - {f})]
        while todo:
            above = os.path.basename(folder := todo.pop())
            unchecked = UNCHECKED | UNCHECKED_BELOW.get(above, set())
            with suppress(PermissionError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.path in skipped or entry.name in unchecked:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                        continue
                    with suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        state = (found.st_ino, found.st_size, found.st_mtime_ns)
                        yield entry.path, state

    def undeclared_writes(self) -> list[str]:
        """Return the files next to the outs that were written or removed."""
        if not self.is_on:
            return []
        changes = self._before.items() ^ dict(self._scan()).items()
        return sorted({path for path, _ in changes})

    def is_edited(self, path: str) -> bool:
        """Return whether a changed file is no new one, and not in a folder for outs.

        It is beside dvc.yaml, where people work while a stage runs.
        """
        folders = self._policy.out_folders
        wide = {folder for folder in folders if covering(self._declared.base, [folder])}
        is_known = path in self._before or self.is_record(path)
        return is_known and not covering(path, folders - wide)

    def is_record(self, path: str) -> bool:
        """Return whether a file is Git's or DVC's own, as other commands change it."""
        is_lock = os.path.basename(path) == "dvc.lock"
        return is_lock or bool(covering(path, self._policy.records))

    def explain(self, error: BaseException) -> UndeclaredAccess | None:
        """Return the violation that may have caused an error in C code or a program."""
        errors = list(chain(error))
        if not self.is_on or not any(map(_may_be_denial, errors)):
            return None
        stage = self._declared.stage
        names = [name for cause in errors for name in _names(cause)]
        if names:
            return self.denial(names)
        return UndeclaredAccess(
            f"stage {stage} and the programs it starts can use only what dvc.yaml "
            "declares: if they were denied a file, add it to its deps or outs; "
            f'if it was the network, add "tcp://" to allow in {settings.PLACE}'
        )

    def denial(self, names: Iterable[str]) -> UndeclaredAccess | None:
        """Return the violation of the first file that was denied."""
        for name in names:
            if denial := self._denial(absolute(name, self._declared.base)):
                return UndeclaredAccess(f"stage {self._declared.stage} {denial}")
        return None

    def _denial(self, path: str) -> str | None:
        """Describe the denied access to a file that an error names, or return None."""
        policy, declared = self._policy, self._declared
        name = declared.relative(path)
        existing = path if os.path.exists(path) else os.path.dirname(path)
        if os.path.isfile(path):
            with suppress(OSError), open(path, "rb"):
                return None
        if not os.access(existing, os.R_OK) or path in policy.temporary_outs:
            return None  # denied by its own file mode
        if out := covering(path, declared.outs):
            folder = os.path.dirname(out)
            if not os.access(existing, os.W_OK) or self._has_only_outs(folder):
                return None
            out = declared.relative(out)
            remedy = f'add "{out}" to create in {settings.PLACE}'
            if out != name:
                remedy = f'end that out with a slash, "{out}/"'
            return (
                f"can write {name} but not read it back, because its folder holds "
                f"other files: {remedy}, or put its outs in a folder of their own"
            )
        if path in policy.allowed and not os.path.lexists(path):
            return f"may use {name}, but not create it: allow its folder, or create it"
        if covering(path, {*policy.deps, *policy.allowed, *policy.prefixes, *SYSTEM}):
            return None
        if not covering(path, [declared.root]):
            return f"uses {path}, outside the repository: {policy.remedy(path)}"
        return (
            f'uses {name}, which dvc.yaml does not declare: add "- {name}" to its '
            "deps, or to its outs"
        )

    def remove_folders(self) -> None:
        """Remove the folders that were made for outs and are still empty."""
        for folder in reversed(self._made):
            with suppress(OSError):
                os.rmdir(folder)


def _may_be_denial(error: BaseException) -> bool:
    """Return whether the kernel may have denied a file; the hook has its own error."""
    has_failed = isinstance(error, PermissionError) or hasattr(error, "returncode")
    is_denial = has_failed or bool(DENIED.search(str(error)))
    return is_denial and not isinstance(error, UndeclaredAccess)


def _names(error: BaseException) -> Iterator[str]:
    """Yield the files that an error or a program's command or output names."""
    if isinstance(error, PermissionError) and isinstance(error.filename, str):
        yield error.filename
    texts = [str(error)]
    for part in ("cmd", "stderr", "stdout"):
        value = getattr(error, part, None)
        for text in value if isinstance(value, list | tuple) else [value]:
            texts += [os.fsdecode(text)] if isinstance(text, str | bytes) else []
    for text in texts:
        for word in [text, *re.split(r"[\s'\":,;=()]+", text)]:
            if os.path.isfile(word):
                yield word
