"""What dvc.yaml declares for a stage, and the error for anything else."""

import os
import re
from collections.abc import Iterable, Iterator
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


def declaration(
    stage: str | None = None, folder: str | Path = "."
) -> Declaration | None:
    """Read the declaration of a stage from dvc.yaml.

    Reads the dvc.yaml in `folder`, or the nearest one above it that has the stage. The
    stage is the one that DVC is running (DVC_STAGE), or else `stage`; with neither,
    returns None. Raises UndeclaredAccess if no dvc.yaml has the stage.
    """
    name = os.environ.get("DVC_STAGE", "").rpartition(":")[2] or stage
    if not name:
        return None
    for above in [Path(folder).resolve(), *Path(folder).resolve().parents]:
        if (above / "dvc.yaml").is_file():
            stages = _read_stages(str(above))
            if name in stages:
                return _declaration(name, stages, str(above))
        if (above / ".dvc").is_dir():
            break  # the root of the repository
    raise UndeclaredAccess(
        f"stage {name} is in no dvc.yaml in or above {folder}: "
        "set its wdir in or below the folder of dvc.yaml"
    )


def _read_stages(folder: str) -> dict[str, Any]:
    """Return the entries of dvc.yaml by stage, with templates resolved."""
    file = os.path.join(folder, "dvc.yaml")
    text = Path(file).read_text("utf-8")
    if re.search(r"\$\{|\bforeach:|\bmatrix:", text):
        # Importing this takes half a second, so only for files that need it.
        from dvc.dvcfile import load_file
        from dvc.repo import Repo

        return load_file(Repo(folder), file).resolver.resolve()["stages"]
    return parse_yaml(text).get("stages") or {}


def _declaration(name: str, stages: dict[str, Any], folder: str) -> Declaration:
    entry = stages[name]
    base = _base(entry, folder)
    params = set()
    for item in entry.get("params") or []:
        files = {"params.yaml": [item]} if isinstance(item, str) else item
        for file, keys in files.items():
            params |= {(absolute(file, base), key) for key in keys or ["*"]}
    others = [other for other_name, other in stages.items() if other_name != name]
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
            absolute(name, base) for name in _names(entry, *OUTS) if name[-1:] == "/"
        ),
    )


def _base(entry: dict[str, Any], folder: str) -> str:
    return os.path.realpath(os.path.join(folder, entry.get("wdir", ".")))


def _paths(entry: dict[str, Any], base: str, *kinds: str) -> Iterator[str]:
    return (absolute(name, base) for name in _names(entry, *kinds))


def _names(entry: dict[str, Any], *kinds: str) -> Iterator[str]:
    for item in [item for kind in kinds for item in entry.get(kind) or []]:
        # An item with options is a mapping with one key, the path.
        yield from [item] if isinstance(item, str) else item


def _repository(folder: str) -> str:
    for above in [Path(folder), *Path(folder).parents]:
        if (above / ".dvc").is_dir() or (above / ".git").exists():
            return str(above)
    return folder


def absolute(path: str, base: str = ".") -> str:
    """Return an absolute path with the links in its folder resolved.

    A link at `path` itself is not followed: DVC may link an out to its cache.
    """
    path = os.path.join(base, path)
    folder, name = os.path.split(path.rstrip(os.sep))
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(folder), name)


def covering(path: str, declared: Iterable[str]) -> str | None:
    """Return the declared path that is `path` or a folder above it, if any."""
    for candidate in declared:  # with slashes, so that `data` does not cover `data2`
        if f"{path}/".startswith(f"{candidate.rstrip(os.sep)}/"):
            return candidate
    return None


def temporary(path: str) -> str:
    """Return the path where a stage writes an out before renaming it to `path`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")
