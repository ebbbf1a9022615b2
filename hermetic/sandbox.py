"""Sandbox a stage with Landlock; report violations at exit."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress

from . import landlock
from .declaration import UndeclaredAccess, absolute, covering
from .hook import RECORD
from .landlock import READ, REMOVE_FOLDER, WRITE
from .policy import SYSTEM, Policy

UNCHECKED_FOLDERS = {".git", ".dvc", "__pycache__"}
UNCHECKED_FILES = {".gitignore", "dvc.lock"}
"""What DVC and Git write next to the outs."""
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
        """Apply the sandbox if the kernel supports it."""
        self._policy, self._declared = policy, policy.declared
        self._made: list[str] = []
        self._before: dict[str, State] = {}
        self.is_on = landlock.version() > 0
        if self.is_on:
            # A rule needs an existing folder. If this one were missing, the rule would
            # have to name a parent, and would allow more.
            for folder in policy.out_folders | self._declared.folders:
                self._make(folder)
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
        allow(READ | WRITE, *policy.allowed, policy.scratch, "/dev")
        allow(READ, *declared.deps, *policy.links, *policy.ignored.files)
        allow(READ, *(file for file, key in declared.params if key == "*"))
        for folder in [] if sys.dont_write_bytecode else policy.module_folders:
            folder = os.path.join(folder, "__pycache__")
            with suppress(OSError):
                os.makedirs(folder, exist_ok=True)
            allow(READ | WRITE, folder)
        for folder in policy.out_folders:
            allow(READ | WRITE if self._has_only_outs(folder) else WRITE, folder)
        allow(READ | WRITE, *declared.outs)  # those that DVC has not deleted
        if RECORD in os.environ:
            allow(WRITE, os.environ[RECORD])
        allow(REMOVE_FOLDER, *map(os.path.dirname, [policy.scratch, *self._made]))
        return rules

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
        """Yield the other files in the outs' folders.

        Leaves out other stages' outs: DVC itself notices when they change.
        """
        policy, declared = self._policy, self._declared
        skipped = {
            *(*declared.outs, *policy.temporary_outs),
            *(declared.others - declared.deps),
            *(policy.scratch, *policy.allowed),
            *(*policy.prefixes, *policy.library_folders),
        }
        folders = policy.out_folders
        todo = [f for f in folders if not covering(f, folders - {f})]
        while todo:
            with suppress(PermissionError), os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.path in skipped or entry.name in UNCHECKED_FILES:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name not in UNCHECKED_FOLDERS:
                            todo.append(entry.path)
                        continue
                    with suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        state = (found.st_ino, found.st_size, found.st_mtime_ns)
                        yield entry.path, state

    def undeclared_writes(self) -> UndeclaredAccess | None:
        """Return the error for files next to the outs that were written or removed."""
        if not self.is_on:
            return None
        changes = self._before.items() ^ dict(self._scan()).items()
        if not changes:
            return None
        first, *others = sorted({self._policy.relative(path) for path, _ in changes})
        more = f" and {len(others)} more" if others else ""
        return UndeclaredAccess(
            f"stage {self._declared.stage} writes {first}{more}, which dvc.yaml does "
            f'not declare: add "- {first}" to its outs, or run it again if '
            "another process changed it"
        )

    def explain(self, error: BaseException) -> UndeclaredAccess | None:
        """Return the violation that may have caused an error in C code or a program."""
        errors = list(_chain(error))
        if not self.is_on or not any(map(_may_be_denial, errors)):
            return None
        stage = self._declared.stage
        names = [name for cause in errors for name in _names(cause)]
        for name in names:
            if denial := self._denial(absolute(name, self._declared.base)):
                return UndeclaredAccess(f"stage {stage} {denial}")
        if names:
            return None
        return UndeclaredAccess(
            f"stage {stage} and the programs it starts can use only what dvc.yaml "
            "declares: if they were denied a file, add it to its deps or outs"
        )

    def _denial(self, path: str) -> str | None:
        """Describe the denied access to a file that an error names, or return None."""
        policy, declared = self._policy, self._declared
        name = policy.relative(path)
        existing = path if os.path.exists(path) else os.path.dirname(path)
        if not os.access(existing, os.R_OK) or path in policy.temporary_outs:
            return None  # denied by its own file mode
        if out := covering(path, declared.outs):
            folder = os.path.dirname(out)
            if not os.access(existing, os.W_OK) or self._has_only_outs(folder):
                return None
            return (
                f"can write {name} but not read it back, because its folder holds "
                "other files: put its outs in a folder of their own, or end an out "
                "that is a folder with a slash"
            )
        usable = [*declared.deps, *policy.allowed, *policy.prefixes, policy.scratch]
        if covering(path, usable) or covering(path, SYSTEM):
            return None
        if not covering(path, [declared.root]):
            return f"uses {path}, outside the repository: name it in enforce(allow=[…])"
        return (
            f'uses {name}, which dvc.yaml does not declare: add "- {name}" to its '
            "deps, or to its outs"
        )

    def remove_folders(self) -> None:
        """Remove the folders that were made for outs and are still empty."""
        for folder in reversed(self._made):
            with suppress(OSError):
                os.rmdir(folder)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


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
