"""Read parameter files as DVC does; show a stage only what it declares."""

import marshal
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from copy import copy, deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn


def parse_yaml(text: str, file: str = "") -> Any:
    """Parse YAML 1.2 with DVC's own library; return {} for an empty document.

    The result for a file is kept in DVC's folder for temporary files: importing the
    library takes longer than everything else here.
    """
    kept = _kept(file) if file else ""
    with suppress(OSError, EOFError, ValueError, TypeError):
        known, parsed = marshal.loads(Path(kept).read_bytes())
        if known == text:
            return parsed
    parsed = _parse_yaml(text)
    if kept:
        with suppress(OSError, ValueError):  # such as a date
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            temporary = f"{kept}.{os.getpid()}"
            Path(temporary).write_bytes(marshal.dumps((text, parsed), 4))
            os.replace(temporary, kept)
    return parsed


def _kept(file: str) -> str:
    """Return where to keep what a file holds, or nothing outside a DVC repository."""
    for root in Path(file).parents if os.path.isabs(file) else ():
        if (root / ".dvc/tmp").is_dir():
            name = os.path.relpath(file, root)
            name = name.replace("%", "%25").replace(os.sep, "%2F")
            return f"{root}/.dvc/tmp/hermetic/{name}"
    return ""


def _parse_yaml(text: str) -> Any:
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


@lru_cache(maxsize=8)
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
    return parse_yaml(text, file)


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
        """Return a value; the default would hide an undeclared key."""
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
    if covers(keys, key):
        return deepcopy(find(values, key))
    below = sorted(declared for declared in keys if is_below(declared, key))
    if not below:
        raise refuse(key)
    found = Params(key, refuse)
    for declared in below:
        if covers({*below} - {declared}, declared):
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


def is_below(key: str, above: str) -> bool:
    """Return whether a dotted key is `above` or inside it."""
    return above in ("", "*", key) or key.startswith(f"{above}.")


def covers(keys: Collection[str], key: str) -> bool:
    """Return whether `keys` declare all of a dotted key."""
    return any(is_below(key, declared) for declared in keys)


def _touches(keys: Collection[str], key: str) -> bool:
    """Return whether `keys` declare a dotted key or a part of it."""
    return covers(keys, key) or any(is_below(declared, key) for declared in keys)


def declared_part(text: str, file: str, keys: Collection[str]) -> str | None:
    """Return the text of a parameter file without what `keys` do not declare.

    The values keep their form, so that any parser reads them as before. A file with a
    mistake is returned as it is. Returns None for TOML and Python, which only DVC's own
    packages write.
    """
    suffix = os.path.splitext(file)[1].lower()
    if suffix in (".toml", ".py"):
        return None
    if suffix == ".json":  # YAML's writer folds long strings, and has other escapes
        import json

        def kept(values: Any, key: str) -> Any:
            if covers(keys, key) or not isinstance(values, dict):
                return values
            paths = {name: _join(key, name) for name in values}
            paths = {name: path for name, path in paths.items() if _touches(keys, path)}
            return {name: kept(values[name], path) for name, path in paths.items()}

        try:
            return json.dumps(kept(json.loads(text), ""))
        except ValueError:
            return text
    import io

    from ruamel.yaml import YAML, YAMLError
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

    def part(node: Node, key: str) -> Node:
        if isinstance(node, ScalarNode):
            return copy(node)  # the serializer would mark one used twice
        if covers(keys, key) or not isinstance(node, MappingNode):
            return node
        kept = copy(node)  # another key may have the same node, as *alias
        kept.value = []
        for name, value in node.value:
            # What << merges into a section has its keys in the section.
            path = key if name.value == "<<" else _join(key, name.value)
            if _touches(keys, path):
                kept.value.append((copy(name), part(value, path)))
        return kept

    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except YAMLError:
        return text
    if root is None:
        return text
    yaml.serialize(part(root, ""), stream := io.StringIO())
    return stream.getvalue()


def undeclared(
    values: Any, keys: Collection[str], name: str, key: str = ""
) -> Iterator[str]:
    """Yield the dotted keys below `key` that end with `name` and are not declared."""
    for step, value in values.items() if isinstance(values, dict) else ():
        path = _join(key, str(step))
        if name in (step, path) and not _touches(keys, path):
            yield path
        if not covers(keys, path):
            yield from undeclared(value, keys, name, path)


def find(values: Any, key: str) -> Any:
    """Return the value at a dotted key, or everything at ""; raise KeyError."""
    for step in key.split(".") if key else []:
        try:
            values = values[int(step) if isinstance(values, list | tuple) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(key) from None
    return values
