"""What dvc.yaml declares for a stage, and what .dvcignore takes out of it."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .values import parse_yaml

ALWAYS_IGNORED = [".git/", ".git", ".hg/", ".dvc/"]
"""By DVC, whatever .dvcignore says."""


class UndeclaredAccess(PermissionError):
    """A stage touched what dvc.yaml does not declare for it.

    A PermissionError, since libraries know how to handle that one.
    """

    def __str__(self) -> str:
        """Return the text, also where a library has set `filename` (shutil does)."""
        return str(self.args[0])


class Declaration(NamedTuple):
    """What dvc.yaml declares for a stage. Paths are absolute."""

    stage: str
    root: str
    """The repository: the nearest folder above dvc.yaml with .dvc or .git."""
    base: str
    """The folder in which the stage runs, and to which its paths are relative."""
    deps: frozenset[str]
    outs: frozenset[str]
    params: frozenset[tuple[str, str]]
    """Pairs of a parameter file and a dotted key; the key `*` is the whole file."""
    others: frozenset[str] = frozenset()
    """The deps and outs of the other stages of this dvc.yaml."""
    folders: frozenset[str] = frozenset()
    """The outs that dvc.yaml writes with a slash at their end."""


def declaration(
    stage: str | None = None, folder: str | Path = "."
) -> Declaration | None:
    """Read what dvc.yaml declares for a stage.

    The file is the one in `folder`, or in the nearest folder above it that has the
    stage. The stage is the one that DVC runs (DVC_STAGE), or else `stage`; None if
    there is neither. Raises UndeclaredAccess for a stage that no dvc.yaml has. Templates
    (`${…}`, `foreach`, `matrix`) are left to DVC itself, which takes half a second.
    """
    name = os.environ.get("DVC_STAGE", "").rpartition(":")[2] or stage
    if not name:
        return None
    for above in [Path(folder).resolve(), *Path(folder).resolve().parents]:
        has_file = (above / "dvc.yaml").is_file()
        if has_file and (declared := _read_declaration(name, str(above))):
            return declared
        if (above / ".dvc").is_dir():
            break
    raise UndeclaredAccess(
        f"stage {name} is in no dvc.yaml in or above {folder}: "
        "set its wdir in or below the folder of dvc.yaml"
    )


def _read_declaration(name: str, folder: str) -> Declaration | None:
    text = Path(folder, "dvc.yaml").read_text("utf-8")
    if re.search(r"\$\{|\bforeach:|\bmatrix:", text):
        return _resolve_templates(name, folder)
    stages = (parse_yaml(text) or {}).get("stages") or {}
    if name not in stages:
        return None
    entry = stages[name]
    base = _base(entry, folder)
    params = set()
    for item in entry.get("params") or []:
        files = {"params.yaml": [item]} if isinstance(item, str) else item
        for file, keys in files.items():
            params |= {(absolute(file, base), key) for key in keys or ["*"]}
    others = [other for name_of, other in stages.items() if name_of != name]
    return Declaration(
        stage=name,
        root=_repository(folder),
        base=base,
        deps=frozenset(_paths(entry, base, "deps")),
        outs=frozenset(_paths(entry, base, *OUTS)),
        params=frozenset(params),
        others=frozenset(
            path
            for other in others
            for path in _paths(other, _base(other, folder), "deps", *OUTS)
        ),
        folders=frozenset(
            absolute(path, base) for path in _names(entry, *OUTS) if path[-1:] == "/"
        ),
    )


OUTS = ("outs", "metrics", "plots")


def _base(entry: dict[str, Any], folder: str) -> str:
    return os.path.realpath(os.path.join(folder, entry.get("wdir", ".")))


def _paths(entry: dict[str, Any], base: str, *kinds: str) -> Iterator[str]:
    return (absolute(name, base) for name in _names(entry, *kinds))


def _names(entry: dict[str, Any], *kinds: str) -> Iterator[str]:
    for item in [item for kind in kinds for item in entry.get(kind) or []]:
        # An item with options is a mapping whose one key is the path.
        yield from [item] if isinstance(item, str) else item


def _resolve_templates(name: str, folder: str) -> Declaration | None:
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    file = os.path.join(folder, "dvc.yaml")
    stages = [
        stage
        for stage in Repo(folder).index.stages
        if os.path.realpath(stage.path) == file
    ]
    for stage in stages:
        if stage.name != name:
            continue
        params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
        return Declaration(
            stage=name,
            root=_repository(folder),
            base=os.path.realpath(stage.wdir),
            deps=frozenset(dep.fs_path for dep in stage.deps if dep not in params),
            outs=frozenset(out.fs_path for out in stage.outs),
            params=frozenset(
                (dep.fs_path, key) for dep in params for key in dep.params or ["*"]
            ),
            others=frozenset(
                item.fs_path
                for other in stages
                if other is not stage
                for item in [*other.deps, *other.outs]
                if not isinstance(item, ParamsDependency)
            ),
            folders=frozenset(
                out.fs_path for out in stage.outs if out.def_path.endswith("/")
            ),
        )
    return None


def _repository(folder: str) -> str:
    for above in [Path(folder), *Path(folder).parents]:
        if (above / ".dvc").is_dir() or (above / ".git").exists():
            return str(above)
    return folder


class Contents:
    """What lies in the deps of a stage that are folders, as far as it matters."""

    def __init__(self, declared: Declaration) -> None:
        """Walk through them once."""
        self.links: list[str] = []
        """What links lead to: DVC may link the files of a folder to its cache."""
        self.module_folders = {
            os.path.dirname(d) for d in declared.deps if _is_module(d)
        }
        self.ignore_files: list[str] = []
        self._root = declared.root
        self._patterns = {declared.root: ALWAYS_IGNORED}
        for dep in declared.deps:
            for above in Path(dep).parents:
                if covering(str(above), [declared.root]):
                    self._read_patterns(str(above))
            for folder, _, names in os.walk(dep):
                if ".dvcignore" in names:
                    self._read_patterns(folder)
                if any(map(_is_module, names)):
                    self.module_folders.add(folder)
                paths = [os.path.join(folder, name) for name in names]
                self.links += map(os.path.realpath, filter(os.path.islink, paths))

    def _read_patterns(self, folder: str) -> None:
        with suppress(FileNotFoundError):
            file = os.path.join(folder, ".dvcignore")
            lines = Path(file).read_text("utf-8").splitlines()
            self.ignore_files.append(file)
            lines = [line.strip() for line in lines if not line.startswith("#")]
            always = ALWAYS_IGNORED if folder == self._root else []
            self._patterns[folder] = [*always, *filter(None, lines)]

    def is_ignored(self, path: str) -> bool:
        """Tell whether .dvcignore hides a file of the repository, or a folder above it.

        The patterns go for all below their folder; those of the deepest one decide.
        """
        deepest_first = sorted(self._patterns.items(), reverse=True)
        end = len(self._root)
        while 0 <= end < len(path):
            end = path.find(os.sep, end + 1)
            here = path if end < 0 else path[: end + 1]
            verdicts = [
                _match(patterns, here[len(folder) + 1 :])
                for folder, patterns in deepest_first
                if here.startswith(folder + os.sep)
            ]
            if next((found for found in verdicts if found is not None), False):
                return True
        return False


def _is_module(name: str) -> bool:
    return name.endswith(".py")


def _match(patterns: list[str], path: str) -> bool | None:
    """Tell whether patterns take a path out (True), or in again, or say nothing of it.

    A folder ends with a slash.
    """
    if all(re.fullmatch(r"[\w.-]+/?", pattern) for pattern in patterns):
        name = re.sub(r".*/(?=.)", "", path)  # the usual ones need no library
        return True if {name, name.rstrip(os.sep)} & {*patterns} else None
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(patterns).check_file(path).include


def absolute(path: str, base: str = ".") -> str:
    """Resolve the links of the folder of `path`, but not `path` itself.

    DVC may link an out into its cache.
    """
    path = os.path.join(base, path)
    folder, name = os.path.split(path.rstrip(os.sep))
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(folder), name)


def covering(path: str, declared: Iterable[str]) -> str | None:
    """Return the declared path that is `path` or a folder above it."""
    for candidate in declared:
        folder = candidate if candidate.endswith(os.sep) else candidate + os.sep
        if path == candidate or path.startswith(folder):
            return candidate
    return None
