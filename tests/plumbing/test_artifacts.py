"""What stages write: whole or not at all, rounded, and checked when read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.plumbing import artifacts
from tests.builders import refusal
from tests.conftest import contents

pytestmark = pytest.mark.usefixtures("in_tmp_path")

OUTPUTS: dict[str, Any] = {
    "models/model.npz": {"weights": np.arange(6, dtype=np.float32)},
    "metrics/model.json": {"accuracy": 2 / 3, "recall": {"ß": 1.0}},
    "metrics/history.csv": [{"epoch": 0, "loss": 1 / 3}, {"epoch": 1, "loss": 0.25}],
    "metrics/report.html": "<p>größer</p>",
    "metrics/means.png": b"\x89PNG",
}


def test_the_suffix_of_an_output_decides_its_format():
    Path("source").write_bytes(bytes(range(256)) * 1000)
    artifacts.publish(OUTPUTS | {"data/archive": Path("source")})
    Path("source").unlink()
    files = contents(Path(), ".")
    assert set(files) == {*OUTPUTS, "data/archive"}
    assert files["data/archive"] == bytes(range(256)) * 1000
    assert files["metrics/means.png"] == b"\x89PNG"
    assert files["metrics/report.html"].decode() == "<p>größer</p>"
    assert files["metrics/history.csv"] == b"epoch,loss\n0,0.333333\n1,0.25\n"
    metrics = {"accuracy": 0.666667, "recall": {"ß": 1.0}}
    assert json.loads(files["metrics/model.json"]) == metrics
    assert artifacts.load_json("metrics/model.json") == metrics
    assert artifacts.load_csv("metrics/history.csv") == [
        {"epoch": 0, "loss": 0.333333},
        {"epoch": 1, "loss": 0.25},
    ]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("broken", ["a/b.json", "a/b.csv", "a/b.html", "a/b.npz"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failure_midway_leaves_the_old_files_and_no_temporary(
    existing, broken, error
):
    class Broken:
        """Content that cannot be encoded, after the first outputs have been."""

        def fail(self, *_: object) -> Any:
            raise error

        __getattr__ = __getitem__ = fail

    if existing:
        artifacts.publish(OUTPUTS)
    before = contents(Path(), ".")
    changed = {"models/model.npz": {"weights": np.ones(6)}, "metrics/model.json": {}}
    with pytest.raises((error, TypeError)):
        artifacts.publish({**changed, broken: Broken()})
    assert contents(Path(), ".") == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_others_cannot_read_is_not_written(value):
    with pytest.raises(ValueError, match="JSON"):
        artifacts.publish({"metrics/model.json": {"accuracy": value}})
    assert contents(Path(), ".") == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((2 / 3, "0.666667"), (-1e-9, "0.0"), (1e-9, "0.0"), (np.float32(0.1), "0.1")),
        *((np.float64(1.0000004), "1.0"), (123456.7891239, "123456.789124"), (3, "3")),
        ("0.123456789", '"0.123456789"'),
    ],
)
def test_floats_and_only_floats_are_rounded_to_six_decimals(value, text):
    outputs = {"a/b.json": {"outer": {"x": value}}, "a/b.csv": [{"x": value}]}
    artifacts.publish(outputs)
    assert f'"x": {text}\n' in Path("a/b.json").read_text()
    assert Path("a/b.csv").read_text() == f"x\n{text.strip(chr(34))}\n"


@pytest.mark.parametrize("text", ["{", "1\n,", "\xff", '{"a": 1'])
def test_a_damaged_json_or_csv_file_is_refused_in_one_line(text):
    Path("damaged").write_bytes(("a,b\n" + text).encode("latin-1"))
    for load in (artifacts.load_json, artifacts.load_csv):
        line = refusal(load, "damaged")
        assert line.startswith("damaged is damaged (")
        assert ": delete it and run dvc repro;" in line
