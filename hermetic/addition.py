"""Add lines to dvc.yaml, and leave all else in it as it is."""

import difflib
import json
import os
import re
import subprocess
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from .params import parse_yaml


def text(file: str) -> str:
    """Read dvc.yaml with its line ends."""
    return Path(file).read_bytes().decode("utf-8")


def items(section: str, names: Collection[str], folder: str) -> list[Any]:
    """Return the items of a section of dvc.yaml; params are named FILE: KEY.

    An out that Git tracks is not to be cached: DVC refuses it otherwise.
    """
    found: list[Any] = []
    files: dict[str, list[str] | None] = {}
    for name in sorted(names):
        file, _, key = name.rpartition(": ")
        if section == "outs" and _git(folder, "ls-files", "--", name):
            found.append({name: {"cache": False}})
        elif section != "params":
            found.append(name)
        elif key == "*":
            files[file] = None
        elif file == "params.yaml":
            found.append(key)
        else:
            files[file] = [*(files.get(file) or []), key]
    return found + [{file: keys} for file, keys in files.items()]


def with_items(text: str, stage: str, section: str, items: list[Any]) -> str | None:
    """Add items to a section of a stage in the text of dvc.yaml.

    Returns None where that would change anything else, or where the stage has no text
    of its own: with foreach, matrix and what several stages share.
    """
    expected = _plain(text)
    entry = expected["stages"].get(stage)
    if not items or not entry:
        return None if items else text
    entry[section] = [*(entry.get(section) or []), *items]
    with suppress(YAMLError, LookupError, ValueError):  # of what is not there
        new = _insert(text, stage, section, items)
        return new if _plain(new) == expected else None
    return None


def _plain(text: str) -> Any:
    # JSON repeats what YAML's aliases share.
    return json.loads(json.dumps(parse_yaml(text), default=str))


def _insert(text: str, stage: str, section: str, items: list[Any]) -> str:
    root = YAML(typ="safe", pure=True).compose(text)
    entry = _values(_values(root)["stages"])[stage]
    values, column = _values(entry), entry.value[0][0].start_mark.column
    flow = ", ".join(_yaml(item, in_flow=True) for item in items)
    lines = []
    if section not in values:
        order = ["cmd", "deps", "params", "outs"]
        above = [key for key in order[: order.index(section)] if key in values]
        position = max(_end(text, values[key]) for key in above)
        if text[entry.start_mark.index] == "{":
            return f"{text[:position]}, {section}: [{flow}]{text[position:]}"
        like = re.search(r"^( *)(?:deps|params|outs|metrics):\s*\n( *)- ", text, re.M)
        lines = [" " * column + f"{section}:"]
        column += len(like[2]) - len(like[1]) if like else 2
    else:
        node = values[section]
        position = _end(text, node.value[-1])
        if node.flow_style:
            comma = " , " if text[position - 1] == ":" else ", "
            return f"{text[:position]}{comma}{flow}{text[position:]}"
        start = node.value[0].start_mark.index
        column = text[text.rfind("\n", 0, start) + 1 : start].index("-")
    lines += [" " * column + f"- {_yaml(item)}" for item in items]
    # After a comment on the same line.
    position += len(re.split(r"\r?\n", text[position:], maxsplit=1)[0])
    added = "".join(("\r\n" if "\r\n" in text else "\n") + line for line in lines)
    return text[:position] + added + text[position:]


def _values(node: Any) -> dict[str, Any]:
    return {key.value: value for key, value in node.value}


def _end(text: str, node: Any) -> int:
    """Return the position after a node; a block's own mark is after its comments."""
    index: int = node.end_mark.index
    if isinstance(node.value, list) and node.value and text[index - 1] not in "]}":
        last = node.value[-1]
        if not isinstance(last, tuple):
            return _end(text, last)
        key, value = last
        if value.start_mark.index == value.end_mark.index:  # null
            return text.index(":", key.end_mark.index) + 1
        return _end(text, value)
    return len(text[:index].rstrip())


def _yaml(item: Any, *, in_flow: bool = False) -> str:
    if isinstance(item, str):
        is_plain = re.fullmatch(r"[\w./][\w./ @+=~-]*", item)
        is_plain = is_plain and parse_yaml(f"[{item}]") == [item]
        return item if is_plain else json.dumps(item)
    [(name, value)] = item.items()
    if value == {"cache": False}:
        text = "{cache: false}"
    else:
        text = f"[{', '.join(map(_yaml, value))}]" if value else "null"
    text = f"{_yaml(name)}: {text}"
    return f"{{{text}}}" if in_flow else text.removesuffix(" null")


def diff(file: str, new: str) -> str:
    """Return a patch for `git apply`, empty if nothing changes."""
    folder = os.path.dirname(file)
    top = _git(folder, "rev-parse", "--show-toplevel").rstrip("\n") or folder
    name = os.path.relpath(file, top)
    before, after = (re.findall(r".*\n|.+", lines) for lines in (text(file), new))
    found = difflib.unified_diff(before, after, f"a/{name}", f"b/{name}")
    end = "\n\\ No newline at end of file\n"
    changes = [line if line.endswith("\n") else line + end for line in found]
    return "".join([f"diff --git a/{name} b/{name}\n", *changes]) if changes else ""


def _git(folder: str, *arguments: str) -> str:
    """Return what Git prints, or nothing without it."""
    with suppress(FileNotFoundError):
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True
        )
        return done.stdout
    return ""
