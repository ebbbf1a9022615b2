"""What a stage may use: what dvc.yaml declares, its environment, and `allow`."""

import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from .declaration import Declaration, absolute, covering, temporary

SYSTEM = [
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys"),
    *("/dev", "/nix/store", "/gnu/store", "/System", "/Library", "/private/etc"),
    os.path.realpath("/etc/resolv.conf"),  # may be a link to /run
]
"""System files that any stage may read."""


class Ignored:
    """The .dvcignore files that apply to the deps of a stage."""

    def __init__(self, root: str) -> None:
        """Start with the patterns that DVC always ignores."""
        self.files: list[str] = []
        self._root = root
        self._patterns = {root: [".git/", ".git", ".hg/", ".dvc/"]}

    def read(self, folder: str) -> None:
        """Add the patterns of a folder's .dvcignore, if it has one."""
        file = os.path.join(folder, ".dvcignore")
        if file in self.files:
            return
        with suppress(FileNotFoundError):
            lines = Path(file).read_text("utf-8").splitlines()
            self.files.append(file)
            patterns = [line.strip() for line in lines if not line.startswith("#")]
            self._patterns.setdefault(folder, []).extend(filter(None, patterns))

    def __contains__(self, path: str) -> bool:
        """Return whether DVC ignores a file, or a folder above it."""
        deepest_first = sorted(self._patterns.items(), reverse=True)
        parts = path[len(self._root) + 1 :].split(os.sep)
        for count in range(1, len(parts) + 1):
            here = os.path.join(self._root, *parts[:count])
            here += os.sep if count < len(parts) else ""
            matches = (
                _match(patterns, here[len(folder) + 1 :])
                for folder, patterns in deepest_first
                if here.startswith(folder + os.sep)
            )
            # The deepest .dvcignore with a matching pattern decides.
            if next((match for match in matches if match is not None), False):
                return True
        return False


def _match(patterns: list[str], path: str) -> bool | None:
    """Match .gitignore patterns: True is ignored, False re-included, None no match.

    The path of a folder ends with a slash.
    """
    if all(re.fullmatch(r"[\w.-]+/?", pattern) for pattern in patterns):
        name = re.sub(r".*/(?=.)", "", path)  # the common case, without pathspec
        return True if {name, name.rstrip(os.sep)} & {*patterns} else None
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(patterns).check_file(path).include


class Policy:
    """What a stage may use. Paths are absolute."""

    def __init__(
        self, declared: Declaration, scratch: str, allow: Sequence[str] = ()
    ) -> None:
        """Walk the deps once. `scratch` is the folder for temporary files."""
        self.declared, self.scratch, self.allow = declared, scratch, [*allow]
        self.out_folders = {os.path.dirname(out) for out in declared.outs}
        self.temporary_outs = {temporary(out) for out in declared.outs}
        self._set_allowed()
        self._walk_deps()
        self._find_environment()

    def _set_allowed(self) -> None:
        self.network = any("://" in place for place in self.allow)
        found = set()
        prefix = [f"{sys.pycache_prefix}/"] if sys.pycache_prefix else []
        for place in [*self.allow, *prefix]:
            if "://" not in place:
                place = os.path.expanduser(place)
                if place.endswith(os.sep):
                    os.makedirs(place, exist_ok=True)
                found |= {absolute(place), os.path.realpath(place)}
        # Allowing everything in the folder of the stage would leave nothing to enforce.
        self.listable = {p for p in found if covering(self.declared.base, [p])}
        self.allowed = found - self.listable

    def _walk_deps(self) -> None:
        root, deps = self.declared.root, self.declared.deps
        self.ignored = Ignored(root)
        self.links: list[str] = []
        """Targets of the links in deps: DVC may link the files to its cache."""
        self.module_folders = {os.path.dirname(dep) for dep in deps if _is_module(dep)}
        for dep in deps:
            for above in reversed(Path(dep).parents):
                if covering(str(above), [root]):
                    self.ignored.read(str(above))
            for folder, _, names in os.walk(dep):
                if ".dvcignore" in names:
                    self.ignored.read(folder)
                if any(map(_is_module, names)):
                    self.module_folders.add(folder)
                paths = [os.path.join(folder, name) for name in names]
                self.links += map(os.path.realpath, filter(os.path.islink, paths))

    def _find_environment(self) -> None:
        self.prefixes = _with_targets([sys.prefix, sys.base_prefix, sys.exec_prefix])
        # Leave out one that contains the repository, as /usr contains /usr/src/app.
        root = self.declared.root
        self._prefixes = _slashed(p for p in self.prefixes if not covering(root, [p]))
        stdlib = [
            sysconfig.get_path("stdlib"),
            sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}),
        ]
        packages = map(sysconfig.get_path, ("purelib", "platlib"))
        self._packages = _slashed(_with_targets(packages))
        self._stdlib = _slashed(_with_targets(stdlib))
        self.library_folders = [p.rstrip(os.sep) for p in self._packages + self._stdlib]
        # For example, those of the Python that created a virtual environment.
        other = [f"{p}/{name}-packages" for p in stdlib for name in ("site", "dist")]
        self._other_packages = _slashed(_with_targets(other))

    def is_installed(self, path: str, is_module: bool) -> bool:
        """Return whether a file is in the environment or the standard library."""
        path += os.sep
        if path.startswith(self._packages):
            return True
        if is_module:
            in_stdlib = path.startswith(self._stdlib)
            return in_stdlib and not path.startswith(self._other_packages)
        return path.startswith(self._prefixes)

    def relative(self, path: str) -> str:
        """Return a path as dvc.yaml names it."""
        return os.path.relpath(path, self.declared.base)


def _is_module(name: str) -> bool:
    return name.endswith(".py")


def _with_targets(paths: Iterable[str]) -> set[str]:
    """Return paths and, for links, their targets."""
    return {found for path in paths for found in (path, os.path.realpath(path))}


def _slashed(paths: Iterable[str]) -> tuple[str, ...]:
    """Return folders with a trailing slash, for prefix matching."""
    return tuple({path.rstrip(os.sep) + os.sep for path in paths})
