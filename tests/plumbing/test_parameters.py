"""What params.yaml may hold, and the one line that refuses the rest."""

import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import ParseError, parse_yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from yaml import YAMLError

from stages.plumbing import parameters
from stages.plumbing.errors import UserError, one_line
from hermetic import values

ROOT = Path(__file__).parents[1]
PARAMS: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROOT / "params.yaml").read_text("utf-8")
)
# PyYAML alone reads 5e-4 as a string.
PARAMS["train"]["l2"] = float(PARAMS["train"]["l2"])
SECTIONS = {name: getattr(parameters, name.capitalize()) for name in PARAMS}
KEYS = [(section, key) for section, values in PARAMS.items() for key in values]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(**sections: Any) -> None:
    """Write the repository's params.yaml into this folder, with other sections."""
    text = yaml.safe_dump(PARAMS | sections, allow_unicode=True)
    Path("params.yaml").write_text(text, "utf-8")


def error_line(section: str) -> str:
    """Return the line that refuses a section of the params.yaml in this folder."""
    with pytest.raises(UserError) as caught:
        parameters.load(SECTIONS[section])
    line = one_line(caught.value)
    assert line is not None
    assert line.startswith("params.yaml")
    assert len(line) < 300
    return line


@pytest.mark.parametrize("section", SECTIONS)
def test_the_parameters_of_the_repository_are_accepted(section):
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    loaded = parameters.load(SECTIONS[section])
    keys = set(PARAMS[section]) - {"classes", "splits"}
    assert {key: getattr(loaded, key) for key in keys} == {
        key: PARAMS[section][key] for key in keys
    }


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_missing_key_is_named(section, key):
    values = PARAMS[section].copy()
    del values[key]
    write(**{section: values})
    line = error_line(section)
    assert f"{section}: " in line
    assert f"missing required field `{key}`" in line


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_named_with_the_known_ones(section):
    write(**{section: PARAMS[section] | {"größe": 1}})
    known = ", ".join(PARAMS[section])
    unknown = "Object contains unknown field `größe`"
    expected = f"params.yaml: {section}: {unknown}: known are {known}"
    assert error_line(section) == expected


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_named(section):
    rest = {name: values for name, values in PARAMS.items() if name != section}
    Path("params.yaml").write_text(yaml.safe_dump(rest))
    assert error_line(section) == f"params.yaml: the section {section} is missing"


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("download.url", "", "length >= 1"),
        ("download.url", None, "`str`"),
        ("download.sha256", "AC75" * 16, "[0-9a-f]{64}"),
        ("download.sha256", "ac75", "[0-9a-f]{64}"),
        ("data.classes", ["3"], "length >= 2"),
        ("data.classes", [str(i) for i in range(257)], "length <= 256"),
        ("data.classes", ["3", "7", "3"], "'3' is listed twice"),
        ("data.classes", ["K\u00f6", "3", "Ko\u0308"], "'K\u00f6' is listed twice"),
        ("data.classes", "37", "`array`"),
        ("data.classes[1]", ["3", 7], 'write "7"'),
        ("data.classes[0]", [3.5, "7"], 'write "3.5"'),
        ("data.classes[0]", ["", "7"], "length >= 1"),
        ("data.classes[0]", ["a/b", "7"], "matching"),
        (
            "data.splits",
            {"train": "train", "valid": "train"},
            "'train' is both train and valid",
        ),
        (
            "data.splits",
            {"train": "\u00fc", "valid": "u\u0308"},
            "is both train and valid",
        ),
        ("data.splits", {"train": "train"}, "missing required field `valid`"),
        (
            "data.splits",
            {"train": "a", "valid": "b", "test": "c"},
            "unknown field `test`",
        ),
        ("data.splits.valid", {"train": "train", "valid": 1}, 'write "1"'),
        ("data.size", 28, "`array | null`"),
        ("data.size", [28], "length 2"),
        ("data.size[0]", [0, 28], ">= 1"),
        ("data.size[1]", [28, 4097], "<= 4096"),
        ("data.grayscale", "no", "`bool`"),
        ("data.grayscale", 1, "`bool`"),
        ("data.background", -1, ">= 0"),
        ("data.background", 256, "<= 255"),
        ("data.background", 0.5, "`int | null`"),
        ("data.background", False, "`int | null`"),
        ("data.background", "white", "`int | null`"),
        ("baseline.distance", "l3", "l1, l2"),
        ("baseline.distance", 1, "l1, l2"),
        ("train.seed", -1, ">= 0"),
        ("train.seed", 2**32, "<"),
        ("train.loss", "mse", "squared_error, brier, absolute, log_loss"),
        ("train.schedule", None, "constant, cosine"),
        ("train.learning_rate", 0, "> 0"),
        ("train.learning_rate", 1e7, "<= 1000000"),
        ("train.learning_rate", float("nan"), "`float`"),
        ("train.learning_rate", float("inf"), "<= 1000000"),
        ("train.learning_rate", float("-inf"), "> 0"),
        ("train.learning_rate", True, "`float`"),
        ("train.momentum", 1, "< 1"),
        ("train.momentum", float("nan"), "`float`"),
        ("train.l2", -0.1, ">= 0"),
        ("train.l2", float("nan"), "`float`"),
        ("train.batch_size", 0, ">= 1"),
        ("train.batch_size", 64.5, "`int`"),
        ("train.epochs", 100_001, "<= 100000"),
        ("train.epochs", "20", "`int`"),
        ("train.init_std", float("inf"), "<= 1000000"),
        ("report.mistakes", 1001, "<= 1000"),
        ("report.mistakes", -1, ">= 0"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_key_and_the_bounds(
    path, value, allowed
):
    section, key = re.findall(r"\w+", path)[:2]
    write(**{section: PARAMS[section] | {key: value}})
    line = error_line(section)
    assert f"params.yaml: {path}: " in line
    assert allowed in line


@pytest.mark.parametrize("background", [None, 0, 255])
def test_a_background_is_a_gray_level_or_null(background):
    write(data=PARAMS["data"] | {"background": background})
    assert parameters.load(parameters.Data).background == background


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("value", [None, 3, "x", ["x"]])
def test_a_section_that_is_no_mapping_is_refused(section, value):
    write(**{section: value})
    assert error_line(section).startswith(f"params.yaml: {section}: ")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "the section train is missing"),
        (b"- train", "the section train is missing"),
        (b"train: {seed: \xff}", "not UTF-8"),
        ("train: {}".encode("utf-16"), "not UTF-8"),
        (b"a: 1\ntrain: [", "line 2: not valid YAML"),
        (b"\ttrain: 1", "line 1: not valid YAML"),
        (b"train: *nothing", "undefined alias"),
        (b"train: {}\n---\ntrain: {}", "line 2: not valid YAML"),
        (b"train: \x00", "not valid YAML"),
        (b"train: {[1]: 2}", "train: "),
        (
            b"train: !!python/object/apply:os.system [ls]",
            "could not determine a constructor",
        ),
        (b"train: {seed: 2020-13-45}", "not valid YAML (month"),
        (b"train: {seed: !!int x}", "not valid YAML"),
        (b"train: {seed: !!timestamp x}", "not valid YAML"),
        (b"train: {seed: " + b"9" * 5000 + b"}", "not valid YAML"),
        (b"train: !" + b"x" * 5000 + b" y", "not valid YAML"),
        (b"train: {}\ndata: {}\ntrain: {}", "line 3: not valid YAML (found duplicate"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused_and_nothing_in_it_runs(text, part):
    Path("params.yaml").write_bytes(text)
    assert part in error_line("train")


def test_a_missing_file_is_named():
    assert "is missing" in error_line("train")


def test_a_byte_order_mark_is_accepted():
    write()
    path = Path("params.yaml")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert parameters.load(parameters.Report).mistakes == PARAMS["report"]["mistakes"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1E2", 100), ("+2.e1", 20), ("5", 5), ("1e+1", 10), (".5", 0.5)],
)
def test_a_number_is_a_number_however_it_is_written(text, value):
    write()
    path = Path("params.yaml")
    params = path.read_text("utf-8")
    path.write_text(re.sub("learning_rate: .*", f"learning_rate: {text}", params))
    assert parameters.load(parameters.Train).learning_rate == value


def read(yaml_text: str) -> Any:
    """Read a parameter as the stages do, or return None if it is no valid YAML."""
    try:
        return values.parse_yaml(f"key: {yaml_text}\n")
    except (YAMLError, ValueError, IndexError):
        return None


def read_by_dvc(yaml_text: str) -> Any:
    """Read a parameter as DVC does, or return None if it is no valid YAML."""
    try:
        return parse_yaml(f"key: {yaml_text}\n", "params.yaml")
    except (ParseError, ValueError, IndexError):
        return None


WORDS = ["yes", "no", "on", "off", "y", "n", "true", "false", "null", "inf", "nan"]
SPELLINGS = [form(word) for word in WORDS for form in (str, str.title, str.upper)]
PLAIN = st.lists(
    st.sampled_from([*"01789+-.eExob:_~=<af", "2001", *SPELLINGS]),
    min_size=1,
    max_size=8,
).map("".join)


@settings(max_examples=500, deadline=None)
@given(PLAIN)
@example("0100")
@example("1:30")
@example("1:30.5")
@example("08")
@example("0o17")
@example("-0b1_0")
@example("+0xf_F")
@example("1e5")
@example(".5e5")
@example("-.inf")
@example("2001-01-01")
@example("2001-1-1")
@example("no")
@example("Y")
def test_a_parameter_is_what_it_is_for_dvc(text):
    """The same value and type (NaN is NaN, 0.0 is not -0.0), or valid for neither."""
    assert repr(read(text)) == repr(read_by_dvc(text))


@pytest.mark.parametrize(
    "text",
    [
        "{a: 1, a: 1}",
        "{a: 1, <<: {a: 2, b: 3}}",
        "[&x {a: 1}, {b: &y {<<: *x, a: 2}}, {<<: *y, a: 3}, *y]",
        "{<<: [{a: 1}, {a: 2}]}",
        "!!int 0100",
        "!!float 1:30",
        "!!float 1_0.5",
        "!!str 1",
        "'1'",
        "{[1]: 2}",
        "{<<: {}, <<: {}}",
    ],
)
def test_keys_and_tags_are_what_they_are_for_dvc(text):
    assert repr(read(text)) == repr(read_by_dvc(text))


def test_words_and_numbers_of_other_versions_of_yaml_are_read_as_they_are_written():
    params = (ROOT / "params.yaml").read_text("utf-8")
    params = re.sub("classes: .*", "classes: [yes, no, 1:30]", params)
    params = re.sub("batch_size: .*", "batch_size: 0100", params)
    Path("params.yaml").write_text(params, "utf-8")
    assert parameters.load(parameters.Data).classes == ("yes", "no", "1:30")
    assert parameters.load(parameters.Train).batch_size == 100


def test_a_name_that_yaml_reads_as_a_number_is_told_as_one():
    params = (ROOT / "params.yaml").read_text("utf-8")
    for name, number in (("07", "7"), ("0o17", "15"), ("1_0.50", "10.5")):
        text = re.sub("classes: .*", f"classes: [{name}, '1']", params)
        Path("params.yaml").write_text(text, "utf-8")
        reads = f"data.classes[0]: YAML reads the number {number} here"
        remedy = f'write "{number}", or the exact name, in quotes'
        assert error_line("data") == f"params.yaml: {reads}: {remedy}"


@pytest.mark.parametrize(
    "bomb",
    [
        "train: *i",
        "train: {epochs: *i}",
        "data: {classes: *i}",
        "data: {classes: [*i, *i]}",
    ],
)
def test_a_billion_laughs_are_refused_in_little_memory(bomb):
    """Nine lists, each the one before nine times: 9 ** 9 items if written out."""
    names = "abcdefghi"
    items = ["x", *(f"*{name}" for name in names)]
    lists = [
        f"{name}: &{name} [{', '.join([item] * 9)}]"
        for name, item in zip(names, items, strict=False)
    ]
    section = bomb.partition(":")[0]
    rest = {name: values for name, values in PARAMS.items() if name != section}
    Path("params.yaml").write_text("\n".join([*lists, yaml.safe_dump(rest), bomb]))
    tracemalloc.start()
    error_line(section)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=400)
    | st.binary()
    | st.dates()
    | st.sampled_from(["l1", "log_loss", "3", "train", "a" * 10_000])
    | st.sampled_from([10**400, {"a"}, {str(i) for i in range(999)}])
)
VALUES = st.recursive(
    SCALARS,
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(st.text() | st.integers(), values, max_size=4)
    ),
)


@pytest.mark.parametrize("section", SECTIONS)
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
        assert isinstance(parameters.load(SECTIONS[section]), SECTIONS[section])
    except UserError as error:
        line = one_line(error)
        assert line is not None
        assert line.startswith("params.yaml")
        assert section in line or "not valid YAML" in line
        assert key in line or "`key`" in line or "not valid YAML" in line
        assert len(line) < 300
