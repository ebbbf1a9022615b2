"""What the kernel lets a stage do, and what is found out when the stage has ended."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from . import landlock
from .declaration import Contents, Declaration, Undeclared, absolute, covering
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
    r"permission denied|access denied|errno 13|unable to open|returned non-zero", re.I
)

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
            for folder in {os.path.dirname(out) for out in declared.outs}:
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
        for out in declared.outs:
            folder = os.path.dirname(out)
            allow(folder, WRITE | (READ if self._is_own(folder) else 0))
            allow(out, READ | WRITE)
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
        """Yield the files in the folders of the outs that are no outs."""
        declared, places = self._declared, self._places
        folders = {os.path.dirname(out) for out in declared.outs}
        left_out = {
            *declared.outs,
            *map(temporary, declared.outs),
            *(places.temporary, *places.allowed, *places.prefixes, *places.modules),
        }
        todo = [f for f in folders if not covering(f, folders - {f})]
        while todo:
            with os.scandir(todo.pop()) as entries:
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

    def stray(self) -> Undeclared | None:
        """Return what was written or removed in a folder of outs and is no out."""
        if not self.is_on:
            return None
        now = dict(self._watched())
        changed = {path for path, _ in now.items() ^ self._files.items()}
        if not changed:
            return None
        name = os.path.relpath(min(changed), self._declared.base)
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return Undeclared(
            f"stage {self._declared.stage} writes {name}{more}, which dvc.yaml does "
            f'not declare: add "- {name}" to its outs, or run it again if somebody '
            "else wrote that meanwhile"
        )

    def explain(self, error: BaseException) -> Undeclared | None:
        """Return what the kernel may have denied, if that can have led to an error."""
        if not self.is_on:
            return None
        errors = list(_chain(error))
        if any(isinstance(e, Undeclared) for e in errors):
            return None
        texts = [str(part) for e in errors for part in _parts(e)]
        if not any(isinstance(e, PermissionError) or DENIED.search(str(e)) for e in errors):
            return None
        declared = self._declared
        words = [word for text in texts for word in [text, *re.split(r"[\s'\":,;=]+", text)]]
        for word in filter(None, words):
            path = absolute(word, declared.base)
            if told := self._explain_path(path):
                return Undeclared(f"stage {declared.stage} {told}")
        return Undeclared(
            f"stage {declared.stage} and what it starts can use only what dvc.yaml "
            "declares: if a file was denied, add it to its deps or outs"
        )

    def _explain_path(self, path: str) -> str | None:
        declared, places = self._declared, self._places
        name = os.path.relpath(path, declared.base)
        if covering(path, declared.outs):
            folder = os.path.dirname(covering(path, declared.outs) or path)
            if self._is_own(folder):
                return None
            return (
                f"may write {name}, but not read it again from C code, since its folder "
                "holds other files: give the outs of the stage a folder of their own"
            )
        known = [*declared.deps, *places.allowed, places.temporary]
        if covering(path, known) or not covering(path, [declared.root]):
            return None
        if covering(os.path.realpath(path), places.prefixes):
            return None
        if os.path.isfile(path):
            return (
                f"uses {name}, which dvc.yaml does not declare: add "
                f'"- {name}" to its deps, or to its outs'
            )
        return None

    def release(self) -> None:
        """Remove the folders that were made for outs and are still empty."""
        for folder in reversed(self._made):
            with suppress(OSError):
                os.rmdir(folder)


def temporary(path: str) -> str:
    """Return where to write an out before it is renamed to `path`, to appear whole."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    seen: list[BaseException] = []
    next_error: BaseException | None = error
    while next_error and next_error not in seen:
        seen.append(next_error)
        yield next_error
        next_error = next_error.__cause__ or next_error.__context__


def _parts(error: BaseException) -> Iterator[object]:
    """Yield what an error says, and the command and the output of a program."""
    yield str(error)
    for name in ("filename", "filename2", "cmd", "stderr", "stdout"):
        value = getattr(error, name, None)
        values = value if isinstance(value, list | tuple) else [value]
        for part in values:
            yield os.fsdecode(part) if isinstance(part, str | bytes) else ""
