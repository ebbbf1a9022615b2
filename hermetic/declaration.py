"""What dvc.yaml declares for a stage, and the error for anything else."""

import os
import re
from collections.abc import Container, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .params import parse_yaml

OUTS = ("outs", "metrics", "plots")


class UndeclaredAccess(PermissionError):
    """A stage accessed something that dvc.yaml does not declare for it.

    A PermissionError, because libraries know how to handle that.
    """

    def __str__(self) -> str:
        # Not PermissionError's text if a library has set `filename`, as shutil does.
        return str(self.args[0])


UndeclaredAccess.__module__ = "hermetic"  # the name in tracebacks


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
    """Deps and outs of the other stages in the same dvc.yaml."""
    folders: frozenset[str] = frozenset()
    """Outs with a trailing slash."""
    command: str = ""

    def relative(self, path: str, key: str = "") -> str:
        """Name a path, or a key of a parameter file, as dvc.yaml does."""
        name = os.path.relpath(path, self.base)
        return f"{name}: {key}" if key else name

    def keys(self, file: str) -> set[str]:
        """Return the keys of a parameter file that are declared."""
        return {key for of, key in self.params if of == file}


def declaration(
    stage: str | None = None, folder: str | Path = "."
) -> Declaration | None:
    """Read the declaration of a stage from dvc.yaml.

    The stage is the one that DVC is running (DVC_STAGE), or else `stage`; with neither,
    returns None. Its dvc.yaml is the one in `folder`, or the nearest above it, or the
    only one of the repository whose stage runs in `folder`. Raises UndeclaredAccess if
    there is none, or if DVC is too old to name the stage.
    """
    address = os.environ.get("DVC_STAGE") or stage
    if not address:
        if "DVC_ROOT" in os.environ:
            raise UndeclaredAccess(
                f"DVC {_dvc_version()} does not name the stage that it runs: "
                "install DVC 3.49 or later"
            )
        return None
    file, _, name = address.rpartition(":")
    # Relative to where DVC was started, as in ../models/dvc.yaml.
    suffix = "/" + re.sub(r"^(\.\./)+", "", file or "dvc.yaml")
    here = os.path.realpath(folder)
    root = _repository(here)
    for place in _places(here, root or "/", name, suffix):
        file = os.path.join(place, "dvc.yaml")
        if file.endswith(suffix) and os.path.isfile(file):
            stages = _read_stages(place)
            if name in stages:
                return _declaration(name, stages, place)
    raise UndeclaredAccess(
        f"stage {name} is in no dvc.yaml in or above {here}, nor with this wdir in one "
        "of the same repository"
    )


def pipeline(file: str) -> dict[tuple[str, str], Declaration]:
    """Return the declarations in a dvc.yaml, by its path and the stage's name."""
    folder = os.path.dirname(file)
    stages = _read_stages(folder)
    return {(file, name): _declaration(name, stages, folder) for name in stages}


def _places(here: str, root: str, name: str, suffix: str) -> Iterator[str]:
    """Yield the folders in which to look for the dvc.yaml of a stage."""
    for above in [here, *map(str, Path(here).parents)]:
        yield above
        if above == root:
            break
    if root == "/":
        return
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if "dvc.yaml" not in files or not f"{folder}/dvc.yaml".endswith(suffix):
            continue
        if entry := _read_stages(folder).get(name):
            found += [folder] if _base(entry, folder) == here else []
    if len(found) > 1:
        raise UndeclaredAccess(
            f"stage {name} is in {' and '.join(found)}: rename one of the two"
        )
    yield from found


def _dvc_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("dvc")
    except metadata.PackageNotFoundError:
        return "(the one that started this)"


def _read_stages(folder: str) -> dict[str, Any]:
    """Return the entries of dvc.yaml by stage, with templates resolved."""
    file = os.path.join(folder, "dvc.yaml")
    text = Path(file).read_text("utf-8")
    if re.search(r"\$\{|\bforeach:|\bmatrix:", text):
        # Importing this takes half a second, so only for files that need it.
        from dvc.dvcfile import load_file
        from dvc.repo import Repo

        return load_file(Repo(folder), file).resolver.resolve()["stages"]
    return parse_yaml(text, file).get("stages") or {}


def _declaration(name: str, stages: dict[str, Any], folder: str) -> Declaration:
    entry = stages[name]
    base = _base(entry, folder)
    params = set()
    for item in entry.get("params") or []:
        files = {"params.yaml": [item]} if isinstance(item, str) else item
        for file, keys in files.items():
            params |= {(absolute(file, base), key) for key in keys or ["*"]}
    others = [other for other_name, other in stages.items() if other_name != name]
    folders = [out for out in _names(entry, *OUTS) if out.endswith("/")]
    return Declaration(
        stage=name,
        root=_repository(folder) or folder,
        base=base,
        deps=_paths(entry, folder, "deps"),
        outs=_paths(entry, folder, *OUTS),
        params=frozenset(params),
        others=frozenset().union(*(_paths(o, folder, "deps", *OUTS) for o in others)),
        folders=frozenset(absolute(out, base) for out in folders),
        command=str(entry.get("cmd")),
    )


def _base(entry: dict[str, Any], folder: str) -> str:
    return os.path.realpath(os.path.join(folder, entry.get("wdir", ".")))


def _paths(entry: dict[str, Any], folder: str, *kinds: str) -> frozenset[str]:
    base = _base(entry, folder)
    return frozenset(absolute(name, base) for name in _names(entry, *kinds))


def _names(entry: dict[str, Any], *kinds: str) -> Iterator[str]:
    for item in [item for kind in kinds for item in entry.get(kind) or []]:
        # An item with options is a mapping with one key, the path.
        yield from [item] if isinstance(item, str) else item


def _repository(folder: str) -> str | None:
    for above in [Path(folder), *Path(folder).parents]:
        if (above / ".dvc").is_dir() or (above / ".git").exists():
            return str(above)
    return None


resolved = lru_cache(maxsize=4096)(os.path.realpath)
"""The real path of a folder, remembered: a stage opens many files of each."""


def absolute(path: str, base: str = "") -> str:
    """Return an absolute path with the links in its folder resolved.

    A link at `path` itself is not followed: DVC may link an out to its cache.
    """
    path = os.path.join(base or os.getcwd(), path)
    folder, name = os.path.split(path.rstrip(os.sep))
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(resolved(folder), name)


def covering(path: str, declared: Container[str]) -> str | None:
    """Return the declared path that is `path` or a folder above it, if any."""
    while path not in declared:
        above = os.path.dirname(path)
        if above == path:
            return None
        path = above
    return path


def temporary(path: str) -> str:
    """Return the path where a stage writes an out before renaming it to `path`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")
