"""What params.yaml may hold, and the one line that refuses the rest."""

import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages import model
from stages.plumbing import parameters
from stages.plumbing.errors import UserError, one_line
from tests.builders import refusal
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("in_tmp_path")

FILE = Path("params.yaml")
TEXT = (ROOT / FILE).read_text("utf-8")
PARAMS: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)
PARAMS["train"]["l2"] = float(PARAMS["train"]["l2"])  # PyYAML reads 5e-4 as a string
STRUCTS = {
    name: getattr(parameters, name.capitalize()) for name in PARAMS if name != "model"
} | {"model": parameters.settings(model.init)}


def write(**sections: Any) -> None:
    """Write the repository's params.yaml, with other sections; None leaves one out."""
    changed = {k: v for k, v in (PARAMS | sections).items() if v is not None}
    FILE.write_text(yaml.safe_dump(changed, allow_unicode=True), "utf-8")


def error_line(section: str) -> str:
    """Return the line that refuses a section of the params.yaml in this folder."""
    line = refusal(parameters.load, STRUCTS[section])
    assert line.startswith("params.yaml")
    assert len(line) < 300
    return line


@pytest.mark.parametrize("section", STRUCTS)
def test_a_section_has_just_the_keys_that_the_repository_has(section):
    FILE.write_text(TEXT, "utf-8")
    loaded, params = parameters.load(STRUCTS[section]), PARAMS[section]
    for key in set(params) - {"classes", "splits"}:
        assert getattr(loaded, key) == params[key]
    write(**{section: None})
    assert error_line(section) == f"params.yaml: the section {section} is missing"
    write(**{section: params | {"größe": 1}})
    unknown = f"{section}: Object contains unknown field `größe`"
    assert (
        error_line(section)
        == f"params.yaml: {unknown}: known keys are {', '.join(params)}"
    )
    for key in params:
        write(**{section: {name: params[name] for name in params if name != key}})
        missing = f"{section}: Object missing required field `{key}`"
        assert error_line(section) == f"params.yaml: {missing}"
    for value in (3, "x", ["x"]):
        write(**{section: value})
        assert error_line(section).startswith(f"params.yaml: {section}: ")


REFUSED: dict[str, list[tuple[Any, str]]] = {
    "download.url": [
        *(("", "length >= 1"), (None, "`str | array`"), ([], "length >= 1")),
        ([str(i) for i in range(201)], "length <= 200"),
    ],
    "download.url[1]": [(["a", 7], 'write "7"'), (["a", ""], "length >= 1")],
    "download.sha256": [
        *(("AC75" * 16, "[0-9a-f]{64}"), ("ac75", "[0-9a-f]{64}")),
        (["ac" * 32, "75" * 32], "Expected a list of 1, a digest for each url"),
    ],
    "download.sha256[0]": [(["ac75"], "[0-9a-f]{64}")],
    "data.classes": [
        *((["3"], "length >= 2"), ([str(i) for i in range(257)], "length <= 256")),
        *((["3", "7", "3"], "'3' is listed twice"), ("37", "`array`")),
        (["K\u00f6", "3", "Ko\u0308"], "'K\u00f6' is listed twice"),
    ],
    "data.classes[0]": [
        *(([3.5, "7"], 'write "3.5"'), (["", "7"], "length >= 1")),
        (["a/b", "7"], "matching"),
    ],
    "data.classes[1]": [(["3", 7], 'write "7"'), (["3", True], 'write "true"')],
    "data.splits": [
        ({"train": "train", "valid": "train"}, "'train' is both train and valid"),
        ({"train": "\u00fc", "valid": "u\u0308"}, "is both train and valid"),
        ({"train": "train"}, "missing required field `valid`"),
        ({"train": "a", "valid": "b", "test": "c"}, "unknown field `test`"),
    ],
    "data.splits.valid": [({"train": "train", "valid": 1}, 'write "1"')],
    "data.size": [(28, "`array | null`"), ([28], "length 2")],
    "data.size[0]": [([0, 28], ">= 1")],
    "data.size[1]": [([28, 4097], "<= 4096")],
    "data.color": [("RGB", "null, gray, rgb"), (True, "null, gray, rgb")],
    "data.background": [
        *((-1, ">= 0"), (256, "<= 255"), (0.5, "`int | null`")),
        *((False, "`int | null`"), ("white", "`int | null`")),
    ],
    "baseline.distance": [("l3", "l1, l2"), (1, "l1, l2")],
    "model.init_std": [(float("inf"), "<= 1000000"), (-1, ">= 0")],
    "train.seed": [(-1, ">= 0"), (2**32, "<")],
    "train.loss": [("mse", "squared_error, brier, absolute, log_loss")],
    "train.schedule": [(None, "constant, cooldown")],
    "train.learning_rate": [
        *((0, "> 0"), (1e7, "<= 1000000"), (float("nan"), "`float`")),
        *((float("inf"), "<= 1000000"), (float("-inf"), "> 0"), (True, "`float`")),
    ],
    "train.momentum": [(1, "< 1"), (float("nan"), "`float`")],
    "train.l2": [(-0.1, ">= 0"), (float("nan"), "`float`")],
    "train.batch_size": [(0, ">= 1"), (64.5, "`int`")],
    "train.epochs": [(100_001, "<= 100000"), ("20", "`int`")],
    "report.mistakes": [(1001, "<= 1000"), (-1, ">= 0")],
}


@pytest.mark.parametrize("path", REFUSED)
def test_a_value_out_of_bounds_is_refused_with_its_key_and_the_bounds(path):
    section, key = re.findall(r"\w+", path)[:2]
    for value, allowed in REFUSED[path]:
        write(**{section: PARAMS[section] | {key: value}})
        line = error_line(section)
        assert f"params.yaml: {path}: " in line
        assert allowed in line


@pytest.mark.parametrize(
    ("urls", "digests", "said"),
    [
        (["a", "b", "a"], ["aa", "bb", "cc"], "url: 'a' is listed twice"),
        (["a", "b"], ["aa", "aa"], f"sha256: '{'aa' * 32}' is listed twice"),
        (["a", "b"], ["aa"], "sha256: Expected a list of 2, a digest for each url"),
    ],
)
def test_lists_of_archives_that_do_not_fit_are_refused(urls, digests, said):
    write(download={"url": urls, "sha256": [32 * digest for digest in digests]})
    assert error_line("download") == f"params.yaml: download.{said}"


def test_the_archives_that_a_page_shows_keep_their_order():
    page = (ROOT / "docs/scaling.md").read_text("utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    FILE.write_text(text, "utf-8")
    digests = parameters.load(parameters.Download).digests
    shards = ["shards/0.tar", "shards/1.tgz", "https://shards.example/2.zip"]
    assert [*digests] == shards
    assert [*digests.values()] == re.findall("[0-9a-f]{64}", text)


@pytest.mark.parametrize("background", [None, 0, 255])
def test_a_background_is_a_gray_level_or_null(background):
    write(data=PARAMS["data"] | {"background": background})
    assert parameters.load(parameters.Data).background == background


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "the section train is missing"),
        (b"train:", "train: Object missing required field `seed`"),
        (b"train: {seed: \xff}", "not UTF-8"),
        ("train: {}".encode("utf-16"), "not UTF-8"),
        (b"a: 1\ntrain: [", "line 2: not valid YAML"),
        (b"\ttrain: 1", "line 1: not valid YAML"),
        (b"train: *nothing", "undefined alias"),
        (b"train: {}\n---\ntrain: {}", "line 2: not valid YAML"),
        (b"train: \x00", "not valid YAML"),
        (b"train: {[1]: 2}", "train: "),
        (b"train: !!python/object/apply:os.system [ls]", "not determine a constructor"),
        (b"train: {seed: 2020-13-45}", "not valid YAML (month"),
        (b"train: {seed: " + b"9" * 5000 + b"}", "not valid YAML"),
        (b"train: !" + b"x" * 5000 + b" y", "not valid YAML"),
        (b"train: {}\ndata: {}\ntrain: {}", "line 3: not valid YAML (found duplicate"),
    ],
)
def test_a_file_that_is_not_valid_yaml_is_refused_and_nothing_in_it_runs(text, part):
    FILE.write_bytes(text)
    assert part in error_line("train")


def test_a_missing_file_is_named():
    assert "is missing" in error_line("train")


def test_a_byte_order_mark_is_accepted():
    FILE.write_text(TEXT, "utf-8-sig")
    assert parameters.load(parameters.Report).mistakes == PARAMS["report"]["mistakes"]


def test_values_are_read_as_they_are_written():
    """As in YAML 1.2: other versions take no for false, and 0100 for 64."""
    rates = {"3e-4": 3e-4, "1E2": 100, "+2.e1": 20, "5": 5, "1e+1": 10, ".5": 0.5}
    for written, value in rates.items():
        text = re.sub("learning_rate: .*", f"learning_rate: {written}", TEXT)
        FILE.write_text(re.sub("batch_size: .*", "batch_size: 0100", text), "utf-8")
        assert parameters.load(parameters.Train).learning_rate == value
        assert parameters.load(parameters.Train).batch_size == 100
    names = "".join(f"\n    - {name}" for name in ("yes", "no", "1:30"))
    FILE.write_text(re.sub("classes: .*", f"classes: {names}", TEXT), "utf-8")
    assert parameters.load(parameters.Data).classes == ("yes", "no", "1:30")
    for name, number in (("07", "7"), ("0o17", "15"), ("1_0.50", "10.5")):
        FILE.write_text(re.sub("classes: .*", f"classes: [{name}, '1']", TEXT), "utf-8")
        reads = f"data.classes[0]: YAML reads the number {number} here"
        remedy = f'write "{number}", or the exact name, in quotes'
        assert error_line("data") == f"params.yaml: {reads}: {remedy}"


@pytest.mark.parametrize(
    "bomb", ["train: *i", "train: {epochs: *i}", "data: {classes: [*i, *i]}"]
)
def test_a_billion_laughs_are_refused_in_little_memory(bomb):
    """Nine lists, each the one before nine times: 9 ** 9 items if written out."""
    lists = [f"a: &a [{', '.join('x' * 9)}]"]
    for previous, name in pairwise("abcdefghi"):
        lists.append(f"{name}: &{name} [{', '.join([f'*{previous}'] * 9)}]")
    section = bomb.partition(":")[0]
    write(**{section: None})
    FILE.write_text("\n".join([*lists, FILE.read_text("utf-8"), bomb]), "utf-8")
    tracemalloc.start()
    error_line(section)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


SCALARS = (
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=400)),
    *(st.binary(), st.dates()),
    st.sampled_from(["l1", "log_loss", "3", "train", "a" * 10_000]),
    st.sampled_from([10**400, {"a"}, {str(i) for i in range(999)}]),
)
VALUES = st.recursive(
    st.one_of(SCALARS),
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(st.text() | st.integers(), values, max_size=4)
    ),
)


@pytest.mark.parametrize("section", STRUCTS)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_value_of_a_key_is_accepted_or_refused_by_name(section, data):
    key = data.draw(st.sampled_from(sorted(PARAMS[section])))
    write(**{section: PARAMS[section] | {key: data.draw(VALUES)}})
    try:
        assert isinstance(parameters.load(STRUCTS[section]), STRUCTS[section])
    except UserError as error:
        line = str(one_line(error))
        assert line.startswith("params.yaml")
        assert len(line) < 300
        named = section in line and (key in line or "`key`" in line)
        assert named or "not valid YAML" in line
