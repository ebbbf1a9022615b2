"""What the kernel lets a stage do, and what is found out when the stage has ended."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from . import landlock
from .declaration import Contents, Declaration, UndeclaredAccess, absolute, covering
from .landlock import READ, REMOVE_FOLDER, WRITE

SYSTEM = [
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys"),
    *("/dev", "/nix/store", "/gnu/store", "/System", "/Library", "/private/etc"),
    os.path.realpath("/etc/resolv.conf"),  # may be a link to /run
]
NOT_WATCHED_FOLDERS = {".git", ".dvc", "__pycache__"}
NOT_WATCHED_FILES = {".gitignore", "dvc.lock"}
"""What DVC and Git write beside the outs."""
DENIED = re.compile(
    r"permission denied|access denied|unable to open|errno.{0,3}13", re.I
)
"""How libraries tell EACCES in errors of their own."""

RECORD = "HERMETIC_RECORD"
"""The variable with the file in which `python -m hermetic` wants to have it all."""

State = tuple[int, int, int]
"""Of a file: inode, size in bytes, time of the last change in ns."""


class Places(NamedTuple):
    """What a stage may use beside what dvc.yaml declares. Paths are absolute."""

    prefixes: Sequence[str]
    """Of the environment and of the Python behind it."""
    modules: Sequence[str]
    """Folders of installed modules, whose bytecode may be written."""
    allowed: Sequence[str]
    temporary: str
    """The folder for temporary files, of this stage alone."""
    network: bool


class Hold:
    """The kernel's hold on this process and on all that it will start."""

    def __init__(
        self, declared: Declaration, contents: Contents, places: Places
    ) -> None:
        """Take hold, as far as this kernel can."""
        self._declared, self._contents, self._places = declared, contents, places
        self._made: list[str] = []
        self._files: dict[str, State] = {}
        self.is_on = landlock.version() > 0
        if self.is_on:
            # Where an out's folder is missing, any folder above it had to be opened.
            for folder in {*map(os.path.dirname, declared.outs), *declared.folders}:
                self._make(folder)
            self._files = dict(self._watched())
            self.is_on = landlock.restrict(self._rules(), network=places.network)

    def _make(self, folder: str) -> None:
        if not os.path.isdir(folder):
            self._make(os.path.dirname(folder))
            os.mkdir(folder)
            self._made.append(folder)

    def _rules(self) -> dict[str, int]:
        """Return what is allowed by path."""
        declared, places = self._declared, self._places
        rules: dict[str, int] = {}

        def allow(path: str, access: int) -> None:
            rules[path] = rules.get(path, 0) | access

        for folder in [*SYSTEM, *places.prefixes]:
            for path in landlock.without(folder, declared.root):
                allow(path, READ)
        allow(os.path.dirname(sys.executable), READ)
        allow(os.path.join(sys.prefix, "pyvenv.cfg"), READ)
        for path in [*places.modules, *places.allowed, places.temporary, "/dev"]:
            allow(path, READ | WRITE)
        for path in [*declared.deps, *(f for f, key in declared.params if key == "*")]:
            allow(path, READ)
        for path in [*self._contents.links, *self._contents.ignore_files]:
            allow(path, READ)
        for folder in [] if sys.dont_write_bytecode else self._contents.module_folders:
            folder = os.path.join(folder, "__pycache__")
            with suppress(OSError):
                os.makedirs(folder, exist_ok=True)
            allow(folder, READ | WRITE)
        for folder in {os.path.dirname(out) for out in declared.outs}:
            allow(folder, READ | WRITE if self._is_own(folder) else WRITE)
        for out in declared.outs:  # one that DVC has left there
            allow(out, READ | WRITE)
        if RECORD in os.environ:
            allow(os.environ[RECORD], WRITE)
        for folder in [places.temporary, *self._made]:  # to remove it in the end
            allow(os.path.dirname(folder), REMOVE_FOLDER)
        return rules

    def _is_own(self, folder: str) -> bool:
        """Tell whether a folder holds nothing but outs of this stage."""
        declared = self._declared
        files = [file for file, _ in declared.params]
        known = {*self._files, *declared.others, *declared.deps, *files, declared.base}
        return not any(
            covering(path, [folder]) and not covering(path, declared.outs)
            for path in known
        )

    def _watched(self) -> Iterator[tuple[str, State]]:
        """Yield the files in the folders of the outs that are no outs.

        DVC itself sees what becomes of the outs of other stages.
        """
        declared, places = self._declared, self._places
        folders = {os.path.dirname(out) for out in declared.outs}
        left_out = {
            *declared.outs,
            *map(temporary, declared.outs),
            *(declared.others - declared.deps),
            *(places.temporary, *places.allowed, *places.prefixes, *places.modules),
        }
        todo = [f for f in folders if not covering(f, folders - {f})]
        while todo:
            with suppress(PermissionError), os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.path in left_out or entry.name in NOT_WATCHED_FILES:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name not in NOT_WATCHED_FOLDERS:
                            todo.append(entry.path)
                        continue
                    with suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        state = (found.st_ino, found.st_size, found.st_mtime_ns)
                        yield entry.path, state

    def stray(self) -> UndeclaredAccess | None:
        """Return what was written or removed in a folder of outs and is no out."""
        if not self.is_on:
            return None
        changed = {
            path for path, _ in self._files.items() ^ dict(self._watched()).items()
        }
        if not changed:
            return None
        first, *others = sorted(
            os.path.relpath(p, self._declared.base) for p in changed
        )
        more = f" and {len(others)} more" if others else ""
        return UndeclaredAccess(
            f"stage {self._declared.stage} writes {first}{more}, which dvc.yaml does "
            f'not declare: add "- {first}" to its outs, or run it again if '
            "somebody else changed that meanwhile"
        )

    def explain(self, error: BaseException) -> UndeclaredAccess | None:
        """Return what the kernel may have denied, if that can have led to an error."""
        errors = list(_chain(error))
        if not self.is_on or not any(map(_may_be_denial, errors)):
            return None
        stage = self._declared.stage
        names = [name for cause in errors for name in _names(cause)]
        for name in names:
            if deed := self._denied(absolute(name, self._declared.base)):
                return UndeclaredAccess(f"stage {stage} {deed}")
        if names:
            return None
        return UndeclaredAccess(
            f"stage {stage} and the programs it starts can use only what dvc.yaml "
            "declares: if they were denied a file, add it to its deps or outs"
        )

    def _denied(self, path: str) -> str | None:
        """Return what to say of a file that an error names, if the kernel denied it."""
        declared, places = self._declared, self._places
        name = os.path.relpath(path, declared.base)
        above = path if os.path.exists(path) else os.path.dirname(path)
        if not os.access(above, os.R_OK) or path in map(temporary, declared.outs):
            return None  # it is the mode of the file
        if out := covering(path, declared.outs):
            if not os.access(above, os.W_OK) or self._is_own(os.path.dirname(out)):
                return None
            return (
                f"may write {name}, but not read it again, since its folder holds "
                "other files: give its outs a folder of their own, or write a slash "
                "after an out that is a folder"
            )
        usable = [*declared.deps, *places.allowed, *places.prefixes, places.temporary]
        if covering(path, usable) or covering(path, SYSTEM):
            return None
        if not covering(path, [declared.root]):
            return f"uses {path}, outside the repository: name it in enforce(allow=[…])"
        return (
            f'uses {name}, which dvc.yaml does not declare: add "- {name}" to its '
            "deps, or to its outs"
        )

    def release(self) -> None:
        """Remove the folders that were made for outs and are still empty."""
        for folder in reversed(self._made):
            with suppress(OSError):
                os.rmdir(folder)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while True:
        yield error
        if not (cause := error.__cause__ or error.__context__):
            return
        error = cause


def _may_be_denial(error: BaseException) -> bool:
    """Tell whether a file or a program failed, maybe since the kernel denied a file."""
    is_refusal = isinstance(error, UndeclaredAccess)  # the audit hook has told it
    has_failed = isinstance(error, PermissionError) or hasattr(error, "returncode")
    return not is_refusal and (has_failed or bool(DENIED.search(str(error))))


def _names(error: BaseException) -> Iterator[str]:
    """Yield the files that an error names, or the command or output of a program."""
    if isinstance(error, PermissionError) and isinstance(error.filename, str):
        yield error.filename
    told = [str(error)]
    for part in ("cmd", "stderr", "stdout"):
        value = getattr(error, part, None)
        for text in value if isinstance(value, list | tuple) else [value]:
            told += [os.fsdecode(text)] if isinstance(text, str | bytes) else []
    for text in told:
        for word in [text, *re.split(r"[\s'\":,;=()]+", text)]:
            if os.path.isfile(word):
                yield word


def temporary(path: str) -> str:
    """Return where to write an out before it is renamed to `path`, to appear whole."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")
