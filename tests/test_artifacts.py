"""What stages write: whole or not at all, the same bytes every time, and read back with checks."""

import json
import os
import random
import struct
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import artifacts
from stages.running import Refusal, one_line

ROOT = Path(__file__).parents[1]
TENSORS: dict[str, Any] = {
    "train_images": np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
    "train_labels": np.array([0, 0, 1, 1], np.uint8),
    "valid_images": np.zeros((2, 2, 3), np.uint8),
    "valid_labels": np.array([0, 1], np.uint8),
    "classes": np.array(["drei ③", "семь"]),
}
OUTPUTS: dict[str, Any] = {
    "models/linear.npz": {"weights": np.arange(6, dtype=np.float32), "bias": np.zeros(1, np.float32)},
    "metrics/linear.json": {"accuracy": 2 / 3, "recall": {"ß": 1.0}},
    "metrics/history.csv": [{"epoch": 0, "loss": 1 / 3}, {"epoch": 1, "loss": 0.25}],
    "metrics/report.html": "<p>größer</p>",
    "metrics/means.png": b"\x89PNG",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def contents() -> dict[str, bytes]:
    """Every file below this folder, hidden ones included."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def refusal(load: Any, *arguments: Any) -> str:
    with pytest.raises(Refusal) as caught:
        load(*arguments)
    line = one_line(caught.value)
    assert line is not None
    return line


def publish_tensors(**changes: Any) -> None:
    artifacts.publish({artifacts.TENSORS: TENSORS | changes})


def test_every_output_is_written_in_the_form_of_its_suffix(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 1000)
    artifacts.publish(OUTPUTS | {"data/archive": source})
    source.unlink()
    files = contents()
    assert set(files) == {*OUTPUTS, "data/archive"}
    assert files["data/archive"] == bytes(range(256)) * 1000
    assert files["metrics/means.png"] == b"\x89PNG"
    assert files["metrics/report.html"].decode() == "<p>größer</p>"
    assert files["metrics/history.csv"] == b"epoch,loss\n0,0.333333\n1,0.25\n"
    assert json.loads(files["metrics/linear.json"]) == {"accuracy": 0.666667, "recall": {"ß": 1.0}}


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("broken", ["metrics/broken.json", "metrics/broken.csv", "metrics/broken.html", "broken/x.npz"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failure_midway_leaves_the_old_files_and_no_temporary(existing, broken, error):
    class Broken:
        """Content that cannot be encoded, after the first outputs have been."""

        def __getattr__(self, _: str) -> Any:
            raise error

        def __getitem__(self, _: object) -> Any:
            raise error

    if existing:
        artifacts.publish(OUTPUTS)
    before = contents()
    changed = {"models/linear.npz": {"weights": np.ones(6)}, "metrics/linear.json": {"accuracy": 0.0}}
    with pytest.raises((error, TypeError)):
        artifacts.publish({**changed, broken: Broken()})
    assert contents() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_others_could_not_read_is_not_written(value):
    with pytest.raises(ValueError, match="JSON"):
        artifacts.publish({"metrics/linear.json": {"accuracy": value}})
    assert contents() == {}


def test_the_same_content_makes_the_same_bytes_at_another_time(monkeypatch):
    artifacts.publish(OUTPUTS)
    before = contents()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2_000_000_000))
    artifacts.publish(OUTPUTS)
    assert contents() == before


def test_an_npz_has_nothing_that_depends_on_the_version_of_python_or_on_the_system():
    """Each header of the zip by its specification: version 2.0, no flags, stored, of 1980, no extra field."""
    publish_tensors()
    content = Path(artifacts.TENSORS).read_bytes()
    with zipfile.ZipFile(artifacts.TENSORS) as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == [f"{name}.npy" for name in TENSORS]
    for entry in entries:
        local = struct.unpack_from("<4s5H3I2H", content, entry.header_offset)
        assert local[:6] == (b"PK\3\4", 20, 0, 0, 0, 0x21)
        assert local[6:] == (entry.CRC, entry.file_size, entry.file_size, len(entry.filename), 0)
        assert (entry.create_version, entry.create_system, entry.external_attr) == (20, 3, 0o600 << 16)
        assert (entry.extra, entry.comment) == (b"", b"")


def test_the_same_content_makes_the_same_bytes_in_another_environment(tmp_path):
    publish_tensors()
    artifacts.publish({"metrics/linear.json": {"recall": dict.fromkeys(TENSORS["classes"].tolist(), 0.5)}})
    before = contents()
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from tests.test_artifacts import TENSORS, artifacts
artifacts.publish({{artifacts.TENSORS: TENSORS}})
artifacts.publish({{"metrics/linear.json": {{"recall": dict.fromkeys(TENSORS["classes"].tolist(), 0.5)}}}})
"""
    for seed, zone in (("1", "Asia/Kathmandu"), ("2", "America/Los_Angeles")):
        folder = tmp_path / seed
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C", "PYTHONUTF8": "0"}
        subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)
        os.chdir(folder)
        assert contents() == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2 / 3, "0.666667"), (-1e-9, "0.0"), (1e-9, "0.0"), (np.float32(0.1), "0.1"), (np.float64(1.0000004), "1.0"),
        (123456.7891239, "123456.789124"), (3, "3"), ("0.123456789", '"0.123456789"'),
    ],
)  # fmt: skip
def test_floats_are_rounded_to_six_decimals_and_nothing_else_is(value, text):
    artifacts.publish({"metrics/linear.json": {"outer": {"x": value}}, "metrics/history.csv": [{"x": value}]})
    assert f'"x": {text}\n' in Path("metrics/linear.json").read_text()
    assert Path("metrics/history.csv").read_text() == f"x\n{text.strip(chr(34))}\n"


def test_tensors_come_back_as_they_were_written_with_any_class_names():
    publish_tensors()
    loaded = artifacts.load_tensors()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
        assert getattr(loaded, name).dtype == array.dtype


def test_json_and_csv_come_back_as_they_were_written():
    artifacts.publish(OUTPUTS)
    assert artifacts.load_json("metrics/linear.json") == {"accuracy": 0.666667, "recall": {"ß": 1.0}}
    assert artifacts.load_csv("metrics/history.csv") == [{"epoch": 0, "loss": 0.333333}, {"epoch": 1, "loss": 0.25}]


def test_objects_are_neither_written_nor_read():
    """An array of objects needs pickle, which runs whatever the file says."""
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        publish_tensors(classes=np.array(["3", None]))
    assert contents() == {}
    np.savez(artifacts.TENSORS, allow_pickle=True, **TENSORS | {"classes": np.array(["3", None])})
    assert "data/tensors.npz is damaged (Object arrays cannot be loaded" in refusal(artifacts.load_tensors)


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("train_images", TENSORS["train_images"].astype(float), "train_images is of type float64, not uint8"),
        ("valid_labels", TENSORS["valid_labels"].astype(np.int64), "valid_labels is of type int64, not uint8"),
        ("classes", np.array([3, 7]), "classes is of type int64, not str"),
        ("valid_images", np.zeros((2, 3, 2), np.uint8), "do not fit together"),
        ("train_images", np.zeros((4, 6), np.uint8), "do not fit together"),
        ("train_labels", np.zeros(3, np.uint8), "do not fit together"),
        ("valid_labels", np.array([0, 2], np.uint8), "do not fit together"),
        ("valid_images", np.zeros((0, 2, 3), np.uint8), "do not fit together"),
    ],
)
def test_tensors_that_are_not_what_the_stages_agreed_on_are_refused(name, array, reason):
    publish_tensors(**{name: array})
    line = refusal(artifacts.load_tensors)
    assert line.startswith("data/tensors.npz is damaged")
    assert reason in line
    assert line.endswith("delete it and run dvc repro")


def test_a_missing_array_and_a_missing_file_are_named():
    assert refusal(artifacts.load_tensors) == "data/tensors.npz is missing: run dvc repro"
    artifacts.publish({artifacts.LINEAR: {"weights": np.zeros(1, np.float32)}})
    kinds = {"weights": "float32", "bias": "float32"}
    assert "models/linear.npz is damaged" in (line := refusal(artifacts.load_arrays, artifacts.LINEAR, kinds))
    assert "bias" in line


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"\x80\x04.", b"<html>", bytes(1000)])
def test_what_is_no_npz_is_refused(content):
    os.makedirs("data")
    Path(artifacts.TENSORS).write_bytes(content)
    assert "data/tensors.npz is damaged" in refusal(artifacts.load_tensors)


def test_one_array_alone_is_refused():
    os.makedirs("data")
    with open(artifacts.TENSORS, "wb") as file:
        np.save(file, np.zeros(3, np.uint8))
    assert "data/tensors.npz is damaged" in refusal(artifacts.load_tensors)


def test_every_truncation_is_refused():
    publish_tensors()
    path = Path(artifacts.TENSORS)
    whole = path.read_bytes()
    for percent in range(0, 100, 5):
        path.write_bytes(whole[: len(whole) * percent // 100])
        assert "data/tensors.npz is damaged" in refusal(artifacts.load_tensors)


def test_flipped_bytes_never_change_a_pixel_or_end_in_another_error():
    publish_tensors()
    path, chance = Path(artifacts.TENSORS), random.Random(0)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with suppress(Refusal):
            loaded = artifacts.load_tensors()
            np.testing.assert_array_equal(loaded.train_images, TENSORS["train_images"])


@pytest.mark.parametrize("text", ["{", "1\n,", "\xff", '{"a": 1'])
def test_a_json_or_csv_file_damaged_by_hand_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "damaged"
    path.write_bytes(("a,b\n" + text).encode("latin-1"))
    for load in (artifacts.load_json, artifacts.load_csv):
        with pytest.raises(Refusal, match=r"damaged is damaged \(.*delete it and run dvc repro$"):
            load(str(path))
