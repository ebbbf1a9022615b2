"""Read the values of parameter files as DVC reads them."""

import ast
import json
import re
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import yaml

# libyaml is ten times as fast as Python; ruamel.yaml, with which DVC reads its files,
# would double the time in which a stage starts.
FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TAG = "tag:yaml.org,2002:"


class Loader(FastLoader):
    """YAML 1.2 as ruamel.yaml has it: `no` is a string, and 0100 is a hundred."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def integer(self, node: yaml.ScalarNode) -> int:
        """Construct an integer."""
        text = node.value.replace("_", "")
        return int(text, {"0b": 2, "0o": 8, "0x": 16}.get(text.lstrip("+-")[:2], 10))

    def real(self, node: yaml.ScalarNode) -> float:
        """Construct a float."""
        text = node.value.replace("_", "").lower()
        return float(re.sub(r"\.(inf|nan)$", r"\1", text))

    def date(self, node: yaml.ScalarNode) -> Any:
        """Construct a date; the libraries differ about the time of a day."""
        if len(node.value) > len("2000-01-01"):
            _fail(node, f"found the time {node.value}: write it in quotes")
        return super().construct_yaml_timestamp(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Construct a mapping, in which a list as a key is a tuple."""
        self.flatten_mapping(node)
        return {self.key(k): self.construct_object(v, deep) for k, v in node.value}

    def key(self, node: yaml.Node) -> Hashable:
        """Construct a key."""
        key = self.construct_object(node, deep=True)
        key = tuple(key) if isinstance(key, list) else key
        try:
            hash(key)
        except TypeError:
            _fail(node, "found a mapping as a key")
        return key

    def check_keys(self, node: yaml.Node, seen: set[yaml.Node]) -> None:
        """Refuse a key that a mapping holds twice, here or below."""
        if node in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(node)
        is_mapping = isinstance(node, yaml.MappingNode)
        keys: set[Hashable] = set()
        for item in node.value:
            for part in item if is_mapping else [item]:
                self.check_keys(part, seen)
            if is_mapping:
                is_merge = item[0].tag == f"{TAG}merge"
                if (key := "<<" if is_merge else self.key(item[0])) in keys:
                    _fail(item[0], f"found duplicate key {key}")
                if not is_merge or self.merges(item[1]):
                    keys.add(key)

    def merges(self, node: yaml.Node) -> bool:
        """Return whether a merge of mappings, or of one, brings any key."""
        several = isinstance(node, yaml.SequenceNode)
        return any(mapping.value for mapping in (node.value if several else [node]))


def _fail(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


# Each kind of plain scalar, its pattern, and the characters it may begin with.
for kind, pattern, first in [
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    (
        "float",
        r"[-+]?\d[\d_]*(\.[\d_]*([eE][-+]?\d+)?|[eE][-+]?\d+)"
        r"|[-+]?\.[\d_]+([eE][-+]\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("int", r"[-+]?(0b[01_]+|0o?[0-7_]+|[\d_]+|0x[\da-fA-F_]+)", "-+0123456789"),
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    (
        "timestamp",
        r"\d{4}-\d\d-\d\d|\d{4}-\d\d?-\d\d?([Tt]|[ \t]+)\d\d?:\d\d:\d\d(\.\d*)?"
        r"([ \t]*(Z|[-+]\d\d?(:\d\d)?))?",
        "0123456789",
    ),
    ("value", "=", "="),
]:
    known = re.compile(f"(?:{pattern})$", re.ASCII)
    Loader.add_implicit_resolver(TAG + kind, known, [*first])
for kind, construct in {
    "int": Loader.integer,
    "float": Loader.real,
    "timestamp": Loader.date,
}.items():
    Loader.add_constructor(TAG + kind, construct)


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2, and so as DVC does. Raises yaml.YAMLError, or ValueError."""
    if re.search(r"^%YAML\s+1\.1", text, re.M):
        raise yaml.YAMLError("its first line asks for YAML 1.1: remove it")
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        loader.check_keys(node, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:  # libyaml counts a line after the last
        last = len(text.splitlines()) - 1
        if error.problem_mark and error.problem_mark.line > last:
            error.problem_mark = yaml.Mark("", 0, last, 0, None, 0)
        raise
    finally:
        loader.dispose()


@lru_cache(maxsize=1)
def parse(text: str, file: str) -> Any:
    """Parse a parameter file; the suffix decides, as it does for DVC.

    Several keys are read of one file: do not change the result, which `select` copies.
    """
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
            case ast.ClassDef():
                found[statement.name] = _constants(statement.body)
            case ast.FunctionDef(name="__init__"):
                found |= _constants(statement.body, of_self=True)
            case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
                with suppress(ValueError):  # no literal, or no simple name
                    name = _assigned(target, of_self=of_self)
                    found[name] = ast.literal_eval(statement.value or target)
    return found


def _assigned(target: ast.expr, *, of_self: bool) -> str:
    match target:
        case ast.Name(id=name) if not of_self:
            return name
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name
    raise ValueError


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

    def get(self, name: str, *_: Any) -> Any:
        """Return a value, never a default: what is declared is there."""
        return self[name]

    def pop(self, name: str, *_: Any) -> Any:
        """Remove a value and return it."""
        value = self[name]
        del self[name]
        return value

    def setdefault(self, name: str, *_: Any) -> Any:
        """Return a value: what is declared is there."""
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
        return deepcopy(find(values, key))
    below = sorted(declared for declared in keys if _is_below(declared, key))
    if not below:
        raise refuse(key)
    outermost = [d for d in below if not any(d != e and _is_below(d, e) for e in below)]
    found = Params(key, refuse)
    for declared in outermost:
        *folders, name = declared[len(key) + 1 if key else 0 :].split(".")
        inner, path = found, key
        for folder in folders:
            path = f"{path}.{folder}" if path else folder
            inner = dict.setdefault(inner, folder, Params(path, refuse))
        inner[name] = deepcopy(find(values, declared))
    return found


def _is_below(key: str, above: str) -> bool:
    return above in ("", "*", key) or key.startswith(f"{above}.")


def find(values: Any, key: str) -> Any:
    """Return the value at a dotted key, or all at ""; raise KeyError without one."""
    for step in key.split(".") if key else []:
        try:
            values = values[int(step) if isinstance(values, list | tuple) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(key) from None
    return values
