"""Read parameter files as DVC does; show a stage only what it declares."""

import os
from collections.abc import Callable, Collection
from copy import deepcopy
from functools import lru_cache
from typing import Any, NoReturn


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2 with DVC's own library; return {} for an empty document."""
    from ruamel.yaml import YAML  # deferred: takes 20 ms
    from ruamel.yaml.error import FileMark, MarkedYAMLError

    try:
        return YAML(typ="safe").load(text) or {}
    except MarkedYAMLError as error:
        last = text.rstrip().count("\n")
        if error.problem_mark and error.problem_mark.line > last:
            # libyaml counts the end of the text as another line.
            error.problem_mark = FileMark("", 0, last, 0)
        raise


@lru_cache(maxsize=1)
def parse(text: str, file: str) -> Any:
    """Parse a parameter file in the format that its suffix names, as DVC does.

    The result is shared between calls; `select` copies what it returns.
    """
    match os.path.splitext(file)[1].lower():
        case ".json":
            import json

            return json.loads(text)
        case ".toml":
            import tomllib

            return tomllib.loads(text)
        case ".py":
            from dvc.utils.serialize import parse_py  # deferred: takes 0.1 s

            return parse_py(text, file)
    return parse_yaml(text)


class Params(dict[str, Any]):
    """The declared parameters below a key; looking up any other key raises."""

    def __init__(self, key: str, refuse: Callable[[str], Exception]) -> None:
        """Create an empty mapping; `refuse` returns the error for a dotted key."""
        super().__init__()
        self._key, self._refuse = key, refuse

    def __missing__(self, name: object) -> NoReturn:
        raise self._refuse(_join(self._key, str(name)))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self.__missing__(name)

    def get(self, name: str, _default: Any = None) -> Any:
        """Return a value; a default would hide an undeclared key."""
        return self[name]

    setdefault = get

    def pop(self, name: str, _default: Any = None) -> Any:
        """Remove a value and return it."""
        value = self[name]
        del self[name]
        return value

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # a copied or pickled one is a plain dict


def select(
    values: Any, keys: Collection[str], key: str, refuse: Callable[[str], Exception]
) -> Any:
    """Return the value at a dotted key, or the part of it that `keys` declare.

    The key `*` declares everything. Raises KeyError if the file lacks the key, and the
    error that `refuse` returns if the key is not declared.
    """
    if any(_is_below(key, declared) for declared in keys):
        return deepcopy(find(values, key))
    below = sorted(declared for declared in keys if _is_below(declared, key))
    if not below:
        raise refuse(key)
    found = Params(key, refuse)
    for declared in below:
        if any(_is_below(declared, other) for other in below if other != declared):
            continue  # a key above it is declared, too
        *sections, name = declared.removeprefix(f"{key}.").split(".")
        section, path = found, key
        for step in sections:
            path = _join(path, step)
            section = dict.setdefault(section, step, Params(path, refuse))
        section[name] = deepcopy(find(values, declared))
    return found


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _is_below(key: str, above: str) -> bool:
    """Return whether a dotted key is `above` or inside it."""
    return above in ("", "*", key) or key.startswith(f"{above}.")


def find(values: Any, key: str) -> Any:
    """Return the value at a dotted key, or everything at ""; raise KeyError."""
    for step in key.split(".") if key else []:
        try:
            values = values[int(step) if isinstance(values, list | tuple) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(key) from None
    return values
