"""Declarations, parameters and .dvcignore are read as DVC reads them."""

import copy
import json
import pickle
from typing import Any

import pytest
import yaml
from dvc.dependency.param import ParamsDependency, read_param_file
from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.repo import Repo
from dvc.utils.serialize import load_path
from ruamel.yaml import YAMLError

from hermetic import params, read_params
from hermetic.declaration import Declaration, declaration
from hermetic.policy import Policy
from hermetic.tests.conftest import under_dvc, write

DECLARATIONS = {
    "plain": "cmd: c, deps: [a, b/], params: [p, q.r], outs: [o]",
    "options": "cmd: c, outs: [{o: {cache: false}}], metrics: [m], "
    "plots: [{p: {x: n}}]",
    "wdir": "cmd: c, wdir: w, deps: [a, ../b], params: [p], outs: [o]",
    "other params": "cmd: c, params: [{f.json: [x]}, {g.toml: }]",
    "vars": "cmd: 'c ${v}', deps: ['${v}/a'], outs: ['${v}.o']",
    "vars and wdir": "cmd: c, wdir: '${v}', deps: [a, ../b], params: [p], "
    "outs: ['${v}.o']",
    "foreach": "foreach: [1, 2], do: {cmd: c, deps: ['a${item}'], outs: ['o${item}']}",
    "matrix": "matrix: {n: [1, 2]}, cmd: c, outs: ['o${item.n}']",
}


@pytest.mark.parametrize("folder", [".", "sub"])
@pytest.mark.parametrize("text", DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_declaration_is_read_as_dvc_reads_it(tmp_path, text, folder):
    for name in (".", "w", "x"):
        write(tmp_path / folder / name, {"params.yaml": "{p: 1, q: {r: 2}}"})
    write(tmp_path / folder, {"b/file": "", "f.json": '{"x": 1}', "g.toml": "x = 1"})
    data_csv = "outs: [{md5: c4ca4238a0b923820dcc509a6f75849b, path: data.csv}]"
    write(tmp_path, {"data.csv": "1", "data.csv.dvc": data_csv})
    under_dvc(tmp_path)
    dvc_yaml = f"vars: [{{v: x}}]\nstages: {{s: {{{text}}}}}"
    (tmp_path / folder / "dvc.yaml").write_text(dvc_yaml, "utf-8")
    stages = Repo(str(tmp_path)).index.stages
    *_, theirs = (stage for stage in stages if getattr(stage, "name", None))
    ours = declaration(theirs.name, tmp_path / folder)
    assert ours is not None
    assert (ours.stage, ours.root) == (theirs.name, str(tmp_path))
    of_params = [dep for dep in theirs.deps if isinstance(dep, ParamsDependency)]
    assert ours.deps == {dep.fs_path for dep in theirs.deps if dep not in of_params}
    assert ours.outs == {out.fs_path for out in theirs.outs}
    pairs = {(dep.fs_path, key) for dep in of_params for key in dep.params or ["*"]}
    assert ours.params == pairs


IGNORED = {
    ".dvcignore": "# a comment\n*.log\n!keep.log\n/data/folder/c\nname\nfolder/\n",
    "data/folder/sub/.dvcignore": "*.png\n!b.log\n",
}
NAMES = [
    *("a.log", "keep.log", "c", "c/x", "name", "names", "name/x", "folder/x", "folder"),
    *("x/x", "sub/a.log", "sub/b.log", "sub/c.png", "d.png", "sub/folder/x"),
    *("sub/name", "sub/#a#", "sub/.#a", "sub/.b"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "patterns", [IGNORED, {".dvcignore": "name\nfolder/\n*.png\n?.log\n\\#*#\n.#*\n"}]
)
def test_what_is_ignored_is_what_dvc_ignores(tmp_path, name, patterns):
    write(tmp_path, {".dvc/config": "[core]\nno_scm = true\n", **patterns})
    dep, path = tmp_path / "data/folder", tmp_path / "data/folder" / name
    write(dep, {"sub/x": "", name: ""})
    root = str(tmp_path)
    deps = frozenset({str(dep)})
    declared = Declaration("s", root, root, deps, frozenset(), frozenset())
    theirs = Repo(root).dvcignore.is_ignored_file(str(path))
    assert (str(path) in Policy(declared, "/scratch").ignored) == theirs


PLAIN = """# a comment
prepare:   # another
  split: 0.20
  octal: 0100
  word: no
  date: 2001-01-01
  text: |
    two
    lines
base: &base {lr: 1e-3, layers: [1, 2, 3]}
model:
  <<: *base
  lr: 3.0e-4
  größe: 1_000
empty:
"""
PYTHON = """
import os
TRAIN_SIZE: float = 0.2
FOLDER = os.path.join("a", "b")
WHERE = (1, -2)

class Model:
    FILTERS = {"a": [32]}

    def __init__(self):
        self.layers = 5
"""
FILES = {
    "p.yaml": PLAIN,
    "q.yaml": PLAIN.replace("\n", "\r\n"),
    "of_1.1.yaml": "%YAML 1.1\n---\na: no\n",
    "empty.yaml": "",
    "p.json": '{"a": {"b": 1e2}}',
    "p.toml": '[a]\nb = 1\nc = [1.5, "x"]\n',
    "p.TOML": "a = 1",
    "p.py": PYTHON,
    "p": "a: 1",
}


@pytest.mark.parametrize("name", FILES)
def test_parameter_files_are_read_as_dvc_reads_them(tmp_path, name):
    path = tmp_path / name
    path.write_text(FILES[name], "utf-8", newline="")
    theirs = load_path(str(path), localfs)
    assert repr(read_params("", str(path))) == repr(theirs)
    if text := FILES[name].strip():
        path.write_text(f"{text}\n]", "utf-8")
        for read in (load_path, lambda file, _: read_params("", file)):
            with pytest.raises((ValueError, SyntaxError, DvcException, YAMLError)):
                read(str(path), localfs)


NESTED = {"a": {"b": 1, "c": {"d": [2, {"e": 3}]}}, "f": None}


@pytest.mark.parametrize("key", ["a", "a.b", "a.c", "a.c.d", "a.c.d.1.e", "f"])
def test_a_dotted_key_is_what_dvc_records_for_it(tmp_path, key):
    (tmp_path / "p.json").write_text(json.dumps(NESTED), "utf-8")
    path = str(tmp_path / "p.json")
    recorded = read_param_file(localfs, path, [key], flatten=True)
    for declared in ({key}, {"*"}, {key.partition(".")[0]}):
        assert params.select(NESTED, declared, key, LookupError) == recorded[key]


def select(keys: set[str], key: str) -> Any:
    return params.select(NESTED, keys, key, LookupError)


def test_only_what_is_declared_is_shown():
    keys = {"a.b", "a.c.d"}
    found = select(keys, "a")
    plain = {"b": 1, "c": {"d": [2, {"e": 3}]}}
    assert found == plain == {**found} == dict(found)
    assert (len(found), list(found)) == (2, ["b", "c"])
    assert json.loads(json.dumps(found)) == plain
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert copied == plain
        assert "x" not in copied["c"]
    assert "b" in found
    assert found.get("b") == 1
    assert select(keys, "") == {"a": plain}
    assert select({"a.c.d", "a.c.d.0"}, "a.c") == {"d": [2, {"e": 3}]}


LOOKUPS = {
    "a": lambda found: found["x"],
    "get": lambda found: found.get("x", 0),
    "in": lambda found: "x" in found,
    "pop": lambda found: found.pop("x", 0),
    "setdefault": lambda found: found.setdefault("x", 0),
}


@pytest.mark.parametrize("look_up", LOOKUPS.values(), ids=LOOKUPS)
def test_a_key_that_is_not_declared_is_refused_by_its_whole_name(look_up):
    found = select({"a.b", "a.c.d"}, "")
    with pytest.raises(LookupError, match=r"^a\.x$"):
        look_up(found["a"])
    with pytest.raises(LookupError, match=r"^a\.c\.x$"):
        look_up(found["a"]["c"])


def test_what_is_read_may_be_changed():
    select({"a"}, "a")["c"]["d"].append(4)
    assert select({"a.c.d"}, "a")["c"]["d"] == [2, {"e": 3}]


@pytest.mark.parametrize(
    ("keys", "key"), [({"a.z"}, "a.z"), ({"a.z"}, "a"), ({"*"}, "a.z"), ({"a"}, "a.z")]
)
def test_a_key_that_the_file_lacks_is_a_key_error(keys, key):
    with pytest.raises(KeyError, match=r"a\.z"):
        select(keys, key)


LONG = "long é 😀 \x07 \\ / \t \n" + "word  " * 50
TEXTS = {
    "p.json": json.dumps({"a": {"b": LONG, "c": 1e-05}, "d": 2}, indent="\t"),
    "p.yaml": f"x: &x {{e: 9}}\na: {{<<: *x, b: {json.dumps(LONG)}, c: 1e-05}}\nd: 2",
}


@pytest.mark.parametrize("file", TEXTS)
def test_the_declared_part_of_a_parameter_file_has_its_values(file):
    read = json.loads if file == "p.json" else yaml.safe_load
    whole = read(TEXTS[file])
    for keys in ({"a"}, {"a.b"}, {"a.b", "d"}, {"a.c"}):
        part = read(params.declared_part(TEXTS[file], file, keys) or "")
        expected = {}
        for key in keys:
            above, _, name = key.partition(".")
            value = whole[above]
            expected[above] = {name: value[name]} if name else value
        assert part == expected


def test_two_stages_of_one_name_are_told_apart_by_their_dvc_yaml(tmp_path, monkeypatch):
    write(
        tmp_path,
        {
            ".git/HEAD": "",
            "dvc.yaml": "stages: {s: {cmd: c, outs: [a]}}",
            "sub/dvc.yaml": "stages: {s: {cmd: c, wdir: .., outs: [b]}}",
        },
    )
    for address, out in {"s": "a", "sub/dvc.yaml:s": "b"}.items():
        monkeypatch.setenv("DVC_STAGE", address)
        found = declaration(folder=tmp_path)
        assert found
        assert found.outs == {str(tmp_path / out)}
