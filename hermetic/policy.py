"""What a stage may use: what dvc.yaml declares, its environment, and `allow`."""

import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase, translate
from pathlib import Path

from . import settings
from .declaration import Declaration, absolute, covering, temporary

SYSTEM = [
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys"),
    *("/dev", "/nix/store", "/gnu/store", "/System", "/Library", "/private/etc"),
    os.path.realpath("/etc/resolv.conf"),  # may be a link to /run
]
"""System files that any stage may read."""
SHARED_MEMORY = "/dev/shm"
IN_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")
"""The end of a path in DVC's cache."""

PATH = "HERMETIC_PATH"
"""Environment variable: folders of modules that this package needs, see site."""

Match = Callable[[str], bool | None]
"""Of a path: whether patterns ignore it, re-include it, or do not match it (None)."""


class Ignored:
    """What DVC skips in the deps of a stage."""

    def __init__(self, root: str) -> None:
        """Start with the patterns that DVC always ignores."""
        self.files: list[str] = []
        self.repositories: set[str] = set()
        """Other DVC repositories in the deps."""
        self._root = root
        self._patterns = {root: [".git/", ".git", ".hg/", ".dvc/"]}
        self._matches: list[tuple[str, Match]] = []
        self._folders: dict[str, bool] = {}

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
        return self._is_in_ignored(os.path.dirname(path)) or self._is_ignored(path)

    def _is_in_ignored(self, folder: str) -> bool:
        if folder not in self._folders:
            self._folders[folder] = folder != self._root and (
                folder in self.repositories
                or self._is_in_ignored(os.path.dirname(folder))
                or self._is_ignored(folder + os.sep)
            )
        return self._folders[folder]

    def _is_ignored(self, path: str) -> bool:
        if not self._matches:
            deepest_first = sorted(self._patterns.items(), reverse=True)
            self._matches = [(f + os.sep, _matcher(p)) for f, p in deepest_first]
        for folder, match in self._matches:
            # The deepest .dvcignore with a matching pattern decides.
            if path.startswith(folder):
                ignored = match(path[len(folder) :])
                if ignored is not None:
                    return ignored
        return False


def _matcher(patterns: list[str]) -> Match:
    """Return a function that matches .gitignore patterns.

    Its argument is a relative path; that of a folder ends with a slash.
    """
    # The common case, names alone, without pathspec, which takes long to import.
    if all(re.fullmatch(r"\\?(?!.*\*\*)[\w.*?~#-]+/?", p) for p in patterns):
        globs = [pattern.removeprefix("\\") for pattern in patterns]
        of_all = [glob for glob in globs if not glob.endswith("/")]
        found = [re.compile("|".join(map(translate, of_all)) or "(?!)")]
        found += [re.compile("|".join(translate(glob.rstrip("/")) for glob in globs))]

        def match(path: str) -> bool | None:
            name = path.rstrip(os.sep).rpartition(os.sep)[2]
            return bool(found[path.endswith(os.sep)].match(name)) or None

        return match
    from pathspec import GitIgnoreSpec

    spec = GitIgnoreSpec.from_lines(patterns)
    return lambda path: spec.check_file(path).include


class Policy:
    """What a stage may use. Paths are absolute."""

    def __init__(
        self,
        declared: Declaration,
        scratch: str,
        allow: Sequence[str] = (),
        read: Sequence[str] = (),
        leftovers: Iterable[str] | None = None,
    ) -> None:
        """Walk the deps once. `scratch` is the folder for temporary files."""
        self.declared, self.scratch = declared, scratch
        self.records = [f"{declared.root}/{name}" for name in (".git", ".dvc")]
        """What Git and DVC keep."""
        self.allow, self.read = [*allow], [*read]
        if leftovers is None:
            with suppress(OSError):
                leftovers = [f"{SHARED_MEMORY}/{n}" for n in os.listdir(SHARED_MEMORY)]
        self.leftovers = {*(leftovers or [])}
        """What other processes have in shared memory."""
        self.out_folders = {os.path.dirname(out) for out in declared.outs}
        self.temporary_outs = {temporary(out) for out in declared.outs}
        self.deps = {os.path.realpath(dep): dep for dep in declared.deps}
        self.deps |= {dep: dep for dep in declared.deps}
        """The deps by their path and, for a link, the path of its target."""
        self._set_allowed()
        self._walk_deps()
        self._find_environment()

    def _set_allowed(self) -> None:
        self.network = any("://" in place for place in self.allow)
        prefix = [f"{sys.pycache_prefix}/"] if sys.pycache_prefix else []
        places = [place for place in [*self.allow, *prefix] if "://" not in place]
        for place in map(self._expand, places):
            if place.endswith(os.sep):
                with suppress(OSError):  # on a read-only disk, there is no cache
                    os.makedirs(place, exist_ok=True)
        found = self._found(places) | {self.scratch}
        self.readable_names = {n[3:] for n in self.read if n.startswith("**/")}
        self.readable = self._found(self.read)
        if self.readable_names:
            for folder, folders, names in os.walk(self.declared.root):
                folders[:] = [n for n in folders if n not in (".git", ".dvc", ".venv")]
                self.readable |= {f"{folder}/{n}" for n in names if self.is_readable(n)}
        # Allowing everything in the folder of the stage would leave nothing to enforce.
        self.listable = {p for p in found if covering(self.declared.base, [p])}
        self.allowed = found - self.listable

    def _expand(self, place: str) -> str:
        return os.path.join(self.declared.base, settings.expand(place))

    def _found(self, places: Iterable[str]) -> set[str]:
        return _with_targets(absolute(self._expand(place)) for place in places)

    def _walk_deps(self) -> None:
        root, deps = self.declared.root, self.declared.deps
        self.ignored = Ignored(root)
        self.links: set[str] = set()
        """Targets of the links in deps: DVC may link the files to its cache."""
        self.module_folders = {os.path.dirname(dep) for dep in deps if _is_module(dep)}
        for dep in deps:
            for above in map(str, Path(dep).parents):
                if covering(above, [root]):
                    self.ignored.read(above)
            if os.path.isdir(dep):
                self._walk(dep)
            elif os.path.islink(dep):
                self.links.add(os.path.realpath(dep))

    def _walk(self, folder: str) -> None:
        with suppress(PermissionError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = os.path.join(folder, os.readlink(entry.path))
                    # Resolving each of many thousand links would take seconds. Of
                    # those into DVC's cache, the kernel allows the folders.
                    above = target.rpartition(os.sep)[0]
                    if above in self.links:
                        continue
                    if IN_CACHE.search(target):
                        self.links.add(above)
                    elif not os.path.isdir(target):  # DVC does not follow it
                        self.links.add(os.path.realpath(target))
                elif entry.is_dir():
                    if entry.name == ".dvc":
                        self.ignored.repositories.add(folder)
                    self._walk(entry.path)
                elif entry.name == ".dvcignore":
                    self.ignored.read(folder)
                elif _is_module(entry.name):
                    self.module_folders.add(folder)

    def _find_environment(self) -> None:
        self.prefixes = _with_targets([sys.prefix, sys.base_prefix, sys.exec_prefix])
        # Leave out one that contains the repository, as /usr contains /usr/src/app.
        root = self.declared.root
        self._prefixes = _slashed(p for p in self.prefixes if not covering(root, [p]))
        paths, base = sysconfig.get_paths(), {"platbase": sys.base_exec_prefix}
        stdlib = [paths["stdlib"], sysconfig.get_path("platstdlib", vars=base)]
        # Debian's Python has more than those two.
        folders = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
        packages = _with_targets(folders)
        # This package, if `observe` has started it from another environment.
        needed = filter(None, os.environ.get(PATH, "").split(os.pathsep))
        own = _with_targets([os.path.dirname(__file__), *needed])
        packages |= {folder for folder in own if not covering(folder, [root])}
        self.library_folders = packages | _with_targets(stdlib)
        # For example, those of the Python that created a virtual environment.
        other = [f"{p}/{name}-packages" for p in stdlib for name in ("site", "dist")]
        self._stdlib = _slashed(_with_targets(stdlib))
        self._other_packages = _slashed(_with_targets(other))
        # Those in the repository have to be declared, as other modules in it.
        editable = [p for p in _editable(packages) if not covering(p, [root])]
        self.editable = _with_targets(editable)
        self._packages = _slashed(packages | self.editable)

    def is_installed(self, path: str, is_module: bool) -> bool:
        """Return whether a file is in the environment or the standard library."""
        path += os.sep
        if path.startswith(self._packages):
            return True
        if is_module:
            in_stdlib = path.startswith(self._stdlib)
            return in_stdlib and not path.startswith(self._other_packages)
        return path.startswith(self._prefixes)

    def remedy(self, path: str) -> str:
        """Say how to allow a file that dvc.yaml cannot declare."""
        key, name = settings.place(path, self.declared.root)
        return f'add "{name}" to {key} in {settings.PLACE}'

    def is_readable(self, name: str) -> bool:
        """Return whether files of a name may be read wherever they are."""
        return any(fnmatchcase(name, pattern) for pattern in self.readable_names)


def _is_module(name: str) -> bool:
    return name.endswith(".py")


def _editable(folders: Iterable[str]) -> list[str]:
    """Return the projects that `pip install --editable` has installed (PEP 610)."""
    found = []
    for folder in folders:
        with suppress(OSError):
            infos = [n for n in os.listdir(folder) if n.endswith(".dist-info")]
            files = [f"{folder}/{name}/direct_url.json" for name in infos]
            for file in filter(os.path.exists, files):
                import json

                entry = json.loads(Path(file).read_text("utf-8"))
                if entry.get("dir_info", {}).get("editable"):
                    from urllib.request import url2pathname  # deferred: it takes 28 ms

                    found.append(url2pathname(entry["url"].removeprefix("file://")))
    return found


def _with_targets(paths: Iterable[str]) -> set[str]:
    """Return paths and, for links, their targets."""
    return {found for path in paths for found in (path, os.path.realpath(path))}


def _slashed(paths: Iterable[str]) -> tuple[str, ...]:
    """Return folders with a trailing slash, for prefix matching."""
    return tuple({path.rstrip(os.sep) + os.sep for path in paths})
