"""Read the values of parameter files as DVC reads them."""

import ast
import json
import re
from collections.abc import Callable, Collection, Hashable
from copy import deepcopy
from typing import Any, NoReturn

import yaml

# libyaml is ten times as fast; ruamel.yaml, which DVC uses, would double the time in
# which a stage starts.
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(SafeLoader):
    """YAML 1.2 as ruamel.yaml has it: `no` is a string, and 0100 is a hundred."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def number(self, node: yaml.ScalarNode) -> int:
        """Construct an integer."""
        text = node.value.replace("_", "")
        base = {"0b": 2, "0o": 8, "0x": 16}.get(text.lstrip("+-")[:2], 10)
        return int(text, base)

    def date(self, node: yaml.ScalarNode) -> Any:
        """Construct a date; the libraries differ about the time of a day."""
        if len(node.value) > len("2000-01-01"):
            _fail(node, f"the time {node.value} is no value of YAML 1.2: quote it")
        return super().construct_yaml_timestamp(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Construct a mapping, and refuse a key that is there twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, Hashable) and key in seen:
                    _fail(key_node, f"the key {key} is there twice")
                seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)


def _fail(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


DIGITS = "0123456789"
for kind, pattern, first in [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (
        "float",
        r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9_]+([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        f"-+.{DIGITS}",
    ),
    (
        "int",
        r"[-+]?0b[01_]+|[-+]?0o?[0-7_]+|[-+]?[0-9_]+|[-+]?0x[0-9a-fA-F_]+",
        f"-+{DIGITS}",
    ),
    ("merge", "<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (
        "timestamp",
        r"\d{4}-\d\d-\d\d|\d{4}-\d\d?-\d\d?([Tt]|[ \t]+)\d\d?:\d\d:\d\d(\.\d*)?"
        r"([ \t]*(Z|[-+]\d\d?(:\d\d)?))?",
        DIGITS,
    ),
    ("value", "=", "="),
]:
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$", re.ASCII), [*first]
    )
Loader.add_constructor("tag:yaml.org,2002:int", Loader.number)
Loader.add_constructor("tag:yaml.org,2002:timestamp", Loader.date)


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2, and so as DVC does. Raises yaml.YAMLError, or ValueError."""
    if re.search(r"^%YAML\s+1\.1", text, re.M):
        raise yaml.YAMLError("its first line asks for YAML 1.1: remove it")
    return yaml.load(text, Loader)


def parse(text: str, file: str) -> Any:
    """Parse a parameter file; the suffix decides, as it does for DVC."""
    if file.endswith(".json"):
        return json.loads(text)
    if file.endswith(".toml"):
        import tomllib

        return tomllib.loads(text)
    if file.endswith(".py"):
        return _constants(ast.parse(text, file).body)
    return parse_yaml(text)


def _constants(body: list[ast.stmt], *, of_self: bool = False) -> dict[str, Any]:
    """Return the literals that statements assign, those of classes by their names."""
    found: dict[str, Any] = {}
    for statement in body:
        match statement:
            case ast.ClassDef(name=name, body=inside):
                found[name] = _constants(inside)
            case ast.FunctionDef(name="__init__", body=inside):
                found |= _constants(inside, of_self=True)
            case (
                ast.Assign(targets=[target], value=ast.expr() as value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
            ):
                match target:
                    case ast.Name(id=name) if not of_self:
                        pass
                    case ast.Attribute(value=ast.Name(id="self"), attr=name):
                        pass
                    case _:
                        continue
                try:
                    found[name] = ast.literal_eval(value)
                except ValueError:
                    continue
    return found


class Params(dict[str, Any]):
    """The declared parameters below a key; another one is refused by its name."""

    def __init__(self, key: str, refuse: Callable[[str], Exception]) -> None:
        """Begin with none."""
        super().__init__()
        self._key, self._refuse = key, refuse

    def __missing__(self, name: str) -> NoReturn:
        """Refuse."""
        raise self._refuse(f"{self._key}.{name}" if self._key else name)

    def __contains__(self, name: object) -> bool:
        """Return True, or refuse."""
        return super().__contains__(name) or self.__missing__(str(name))

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, never the default: what is declared is there."""
        return self[name]

    def __deepcopy__(self, memo: Any) -> dict[str, Any]:
        """Return a plain mapping."""
        return deepcopy(dict(self), memo)

    def __reduce__(self) -> Any:
        """Become a plain mapping elsewhere."""
        return dict, (dict(self),)


def select(
    values: Any, keys: Collection[str], key: str, refuse: Callable[[str], Exception]
) -> Any:
    """Return what is at a dotted key, or of a mapping there what `keys` declare.

    `*` declares all. Raises KeyError if it is not there, and what `refuse` returns for
    the first key that is not declared.
    """
    if any(_is_below(key, declared) for declared in keys):
        return deepcopy(_find(values, key))
    below = sorted(declared for declared in keys if _is_below(declared, key))
    if not below:
        raise refuse(key)
    found = Params(key, refuse)
    for declared in below:
        *folders, name = declared[len(key) + 1 if key else 0 :].split(".")
        inner, path = found, key
        for folder in folders:
            path = f"{path}.{folder}" if path else folder
            inner = dict.setdefault(inner, folder, Params(path, refuse))
        dict.__setitem__(inner, name, deepcopy(_find(values, declared)))
    return found


def _is_below(key: str, above: str) -> bool:
    return above in ("", "*", key) or key.startswith(f"{above}.")


def _find(values: Any, key: str) -> Any:
    for step in key.split(".") if key else []:
        try:
            values = values[int(step) if isinstance(values, list | tuple) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(key) from None
    return values
