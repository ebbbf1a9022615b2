"""Parameter files are read as DVC reads them, and only what is declared is shown."""

import copy
import json
import pickle
from typing import Any

import pytest
import yaml
from dvc.dependency.param import read_param_file
from dvc.fs import localfs
from dvc.utils.serialize import ParseError, parse_py, parse_toml
from dvc.utils.serialize import parse_yaml as parse_by_dvc
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic import values

KEYS = st.sampled_from(["a", "b", "c-d", "é", "1", "yes", "<<", "'q'", '"a: b"'])
SCALARS = st.sampled_from(
    [
        *("1", "-1.5", "1e3", "0100", "no", "~", "2001-01-01", "plain words", "a#b"),
        *("'it''s'", '"tab\\t \\u00e9"', "'2'", "*x", "&x 1", "!!str 3", "- 1", ""),
    ]
)
FLOW = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(KEYS, inner), max_size=3).map(
            lambda pairs: f"{{{', '.join(f'{k}: {v}' for k, v in pairs)}}}"
        ),
    ),
    max_leaves=6,
)
LINES = st.tuples(
    st.sampled_from(["", "  ", "    ", "- "]),
    st.sampled_from(["", "a: ", "b: ", "c: &x ", "<<: ", "# "]),
    FLOW,
    st.sampled_from(["", " # why", "\r", " |", " >-"]),
).map("".join)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal, and of equal types; NaN is NaN."""
    return repr(ours) == repr(theirs)


@settings(max_examples=1000, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=5).map("\n".join))
def test_a_document_is_never_read_as_anything_else_than_dvc_reads(text):
    try:
        ours = values.parse_yaml(text)
    except (yaml.YAMLError, ValueError):  # libyaml is stricter here and there
        return
    assert same(ours or {}, parse_by_dvc(text, "f") or {})


PLAIN = """# a comment
prepare:   # another
  split: 0.20
  seed: 20170428
  name: "a: b"
  text: |
    two
    lines
  folded: >-
    one
    line
base: &base {lr: 1e-3, layers: [1, 2, 3]}
model:
  <<: *base
  lr: 3.0e-4
  größe: 1_000
empty:
"""


@pytest.mark.parametrize("text", [PLAIN, PLAIN.replace("\n", "\r\n")])
def test_what_people_write_is_read(text):
    assert same(values.parse_yaml(text), parse_by_dvc(text, "f"))
    assert values.parse_yaml(text)["model"]["lr"] == 0.0003


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("%YAML 1.1\n---\na: 1\n", "asks for YAML 1.1"),
        ("a: 1\nb: 2\na: 3\n", "duplicate key a"),
        ("a: {b: {c: 1, c: 2}}", "duplicate key c"),
        ("<<: {a: 1}\n<<: []", "duplicate key <<"),
        ("a: 2001-12-14 10:00:00", "write it in quotes"),
    ],
)
def test_what_would_be_read_in_two_ways_is_refused(text, problem):
    with pytest.raises(yaml.YAMLError, match=problem):
        values.parse_yaml(text)


def test_yaml_1_2_may_be_named():
    assert values.parse_yaml("%YAML 1.2\n---\na: no\n") == {"a": "no"}


PYTHON = """
import os
TRAIN_SIZE: float = 0.2
BOTH = OTHER = 1
SETS = {"a": 1, "b": [2, 3]}
FOLDER = os.path.join("a", "b")
NAMES = ["x", "y"]
WHERE = (1, -2)
UNSET: int

class Model:
    FILTERS = 32
    RATES = {1, 2}

    def __init__(self):
        self.layers = 5
        self.units[0] = 6
        local = 7

    def fit(self):
        self.epochs = 8

if True:
    INSIDE = 9
"""


def test_the_constants_of_a_python_file_are_those_that_dvc_finds():
    theirs = parse_py(PYTHON.replace("UNSET: int\n", ""), "p.py")
    assert same(values.parse(PYTHON, "p.py"), theirs)
    assert theirs["Model"] == {"FILTERS": 32, "RATES": {1, 2}, "layers": 5}


def test_json_and_toml_are_read_by_their_suffix():
    text = '[a]\nb = 1\nc = [1.5, "x"]\n'
    assert values.parse(text, "p.toml") == parse_toml(text, "p.toml")
    assert values.parse('{"a": {"b": 1e2}}', "p.json") == {"a": {"b": 100.0}}
    with pytest.raises(ValueError, match="Expecting"):
        values.parse("a: 1", "p.json")


NESTED = {"a": {"b": 1, "c": {"d": [2, {"e": 3}]}}, "f": None}


@pytest.mark.parametrize("key", ["a", "a.b", "a.c", "a.c.d", "a.c.d.1.e", "f"])
def test_a_dotted_key_is_what_dvc_records_for_it(tmp_path, key):
    (tmp_path / "p.json").write_text(json.dumps(NESTED), "utf-8")
    path = str(tmp_path / "p.json")
    recorded = read_param_file(localfs, path, [key], flatten=True)
    for declared in ({key}, {"*"}, {key.partition(".")[0]}):
        assert values.select(NESTED, declared, key, LookupError) == recorded[key]


def test_only_what_is_declared_is_shown():
    keys = {"a.b", "a.c.d"}
    found = values.select(NESTED, keys, "a", LookupError)
    plain = {"b": 1, "c": {"d": [2, {"e": 3}]}}
    assert found == plain == {**found} == dict(found)
    assert (len(found), list(found)) == (2, ["b", "c"])
    assert json.loads(json.dumps(found)) == plain
    assert copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == plain
    assert "b" in found
    assert found.get("b") == 1
    assert values.select(NESTED, keys, "", LookupError) == {"a": plain}
    twice = {"a.c.d", "a.c.d.0"}
    assert values.select(NESTED, twice, "a.c", LookupError) == {"d": [2, {"e": 3}]}


DEEDS = {
    "a": lambda found: found["x"],
    "get": lambda found: found.get("x"),
    "a default": lambda found: found.get("x", 0),
    "in": lambda found: "x" in found,
    "pop": lambda found: found.pop("x", 0),
    "setdefault": lambda found: found.setdefault("x", 0),
}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_a_key_that_is_not_declared_is_refused_by_its_whole_name(deed):
    found = values.select(NESTED, {"a.b", "a.c.d"}, "", LookupError)
    with pytest.raises(LookupError, match=r"^a\.x$"):
        deed(found["a"])
    with pytest.raises(LookupError, match=r"^a\.c\.x$"):
        deed(found["a"]["c"])


def test_what_is_read_may_be_changed():
    read = values.select(NESTED, {"a"}, "a", LookupError)
    read["c"]["d"].append(4)
    assert values.select(NESTED, {"a.c.d"}, "a", LookupError)["c"]["d"] == [2, {"e": 3}]


@pytest.mark.parametrize("keys", [{"a.z"}, {"*"}, {"a"}])
def test_a_key_that_the_file_lacks_is_a_key_error(keys):
    for key in ("a.z", "a") if keys == {"a.z"} else ("a.z",):
        with pytest.raises(KeyError, match=r"a\.z"):
            values.select(NESTED, keys, key, LookupError)


def test_ill_formed_yaml_is_an_error_for_both():
    for text in ("a: [", "a: b: c", "\ta: 1", "a: *x"):
        with pytest.raises(ParseError):
            parse_by_dvc(text, "f")
        with pytest.raises(yaml.YAMLError):
            values.parse_yaml(text)
