"""What stages write: whole or not at all, the same bytes, and checked when read."""

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

from stages.plumbing import artifacts, npz
from stages.plumbing.errors import UserError, one_line
from stages.plumbing.tensors import Decoding

ROOT = Path(__file__).parents[1]
DECODING = Decoding(size=(2, 3), grayscale=True, background=255)
TENSORS: dict[str, Any] = {
    "train_images": np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
    "train_labels": np.array([0, 0, 1, 1], np.uint8),
    "valid_images": np.zeros((2, 2, 3), np.uint8),
    "valid_labels": np.array([0, 1], np.uint8),
    "classes": np.array(["drei ③", "семь"]),
    "valid_in_train": np.array([1, 0], np.uint8),
    "decoding": tensors.format_decoding(DECODING),
}
RECALL = {"recall": dict.fromkeys(TENSORS["classes"].tolist(), 0.5)}
OUTPUTS: dict[str, Any] = {
    "models/model.npz": {
        "weights": np.arange(6, dtype=np.float32),
        "bias": np.zeros(1, np.float32),
    },
    "metrics/model.json": {"accuracy": 2 / 3, "recall": {"ß": 1.0}},
    "metrics/history.csv": [{"epoch": 0, "loss": 1 / 3}, {"epoch": 1, "loss": 0.25}],
    "metrics/report.html": "<p>größer</p>",
    "metrics/means.png": b"\x89PNG",
}
METRICS_READ = {"accuracy": 0.666667, "recall": {"ß": 1.0}}
HISTORY_READ = [{"epoch": 0, "loss": 0.333333}, {"epoch": 1, "loss": 0.25}]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def contents() -> dict[str, bytes]:
    """Read every file below this folder, hidden ones included."""
    files = [path for path in Path().rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def error_line(load: Any, *arguments: Any) -> str:
    """Return the one line of the UserError that loading raises."""
    with pytest.raises(UserError) as caught:
        load(*arguments)
    line = one_line(caught.value)
    assert line is not None
    return line


def publish_tensors(**changes: Any) -> None:
    artifacts.publish({artifacts.TENSORS: TENSORS | changes})


def test_the_suffix_of_an_output_decides_its_format(tmp_path):
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
    assert json.loads(files["metrics/model.json"]) == METRICS_READ


BROKEN = [
    "metrics/broken.json",
    "metrics/broken.csv",
    "metrics/broken.html",
    "broken/x.npz",
]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failure_midway_leaves_the_old_files_and_no_temporary(
    existing, broken, error
):
    class Broken:
        """Content that cannot be encoded, after the first outputs have been."""

        def __getattr__(self, _: str) -> Any:
            raise error

        def __getitem__(self, _: object) -> Any:
            raise error

    if existing:
        artifacts.publish(OUTPUTS)
    before = contents()
    changed = {
        "models/model.npz": {"weights": np.ones(6)},
        "metrics/model.json": {"accuracy": 0.0},
    }
    with pytest.raises((error, TypeError)):
        artifacts.publish({**changed, broken: Broken()})
    assert contents() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_others_cannot_read_is_not_written(value):
    with pytest.raises(ValueError, match="JSON"):
        artifacts.publish({"metrics/model.json": {"accuracy": value}})
    assert contents() == {}


def test_the_same_content_makes_the_same_bytes_at_another_time(monkeypatch):
    artifacts.publish(OUTPUTS)
    before = contents()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2_000_000_000))
    artifacts.publish(OUTPUTS)
    assert contents() == before


def test_an_npz_has_nothing_that_depends_on_the_version_of_python_or_on_the_system():
    """Zip headers by their specification: version 2.0, no flags, stored, of 1980."""
    publish_tensors()
    content = Path(artifacts.TENSORS).read_bytes()
    with zipfile.ZipFile(artifacts.TENSORS) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    assert names == [f"{name}.npy" for name in TENSORS]
    for member in members:
        size = member.file_size
        local = struct.unpack_from("<4s5H3I2H", content, member.header_offset)
        assert local[:6] == (b"PK\3\4", 20, 0, 0, 0, 0x21)
        assert local[6:] == (member.CRC, size, size, len(member.filename), 0)
        assert (member.create_version, member.create_system) == (20, 3)
        assert member.external_attr == 0o600 << 16
        assert (member.extra, member.comment) == (b"", b"")


PUBLISH = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from tests.plumbing.test_artifacts import RECALL, TENSORS, artifacts
artifacts.publish({{artifacts.TENSORS: TENSORS, "metrics/model.json": RECALL}})
"""


@pytest.mark.parametrize(
    ("seed", "zone"), [("1", "Asia/Kathmandu"), ("2", "America/Los_Angeles")]
)
def test_the_same_content_makes_the_same_bytes_in_another_environment(
    tmp_path, monkeypatch, seed, zone
):
    artifacts.publish({artifacts.TENSORS: TENSORS, "metrics/model.json": RECALL})
    before = contents()
    folder = tmp_path / seed
    folder.mkdir()
    variables = {"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", PUBLISH]
    subprocess.run(command, cwd=folder, env=os.environ | variables, check=True)
    monkeypatch.chdir(folder)
    assert contents() == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2 / 3, "0.666667"),
        (-1e-9, "0.0"),
        (1e-9, "0.0"),
        (np.float32(0.1), "0.1"),
        (np.float64(1.0000004), "1.0"),
        (123456.7891239, "123456.789124"),
        (3, "3"),
        ("0.123456789", '"0.123456789"'),
    ],
)
def test_floats_and_only_floats_are_rounded_to_six_decimals(value, text):
    outputs = {
        "metrics/model.json": {"outer": {"x": value}},
        "metrics/history.csv": [{"x": value}],
    }
    artifacts.publish(outputs)
    assert f'"x": {text}\n' in Path("metrics/model.json").read_text()
    assert Path("metrics/history.csv").read_text() == f"x\n{text.strip(chr(34))}\n"


def test_tensors_are_read_as_they_were_written_with_any_class_names():
    publish_tensors()
    loaded = tensors.load_tensors()
    for split in ("train", "valid"):
        for field in tensors.Split._fields:
            array = getattr(getattr(loaded, split), field)
            np.testing.assert_array_equal(array, TENSORS[f"{split}_{field}"])
            assert array.dtype == TENSORS[f"{split}_{field}"].dtype
    assert loaded.classes == TENSORS["classes"].tolist()
    assert loaded.valid_in_train.tolist() == [True, False]
    assert loaded.decoding == DECODING


def test_json_and_csv_are_read_as_they_were_written():
    artifacts.publish(OUTPUTS)
    assert artifacts.load_json("metrics/model.json") == METRICS_READ
    assert artifacts.load_csv("metrics/history.csv") == HISTORY_READ


def test_objects_are_neither_written_nor_read():
    """An array of objects needs pickle, which runs whatever the file says."""
    classes = np.array(["3", None])
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        publish_tensors(classes=classes)
    assert contents() == {}
    np.savez(artifacts.TENSORS, allow_pickle=True, **TENSORS | {"classes": classes})
    damaged = "data/tensors.npz is damaged (Object arrays cannot be loaded"
    assert damaged in error_line(tensors.load_tensors)


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        (
            "train_images",
            TENSORS["train_images"].astype(float),
            "train_images is of type float64, not uint8",
        ),
        (
            "valid_labels",
            TENSORS["valid_labels"].astype(np.int64),
            "valid_labels is of type int64, not uint8",
        ),
        ("classes", np.array([3, 7]), "classes is of type int64, not str"),
        ("valid_in_train", np.zeros(3, np.uint8), "valid_in_train does not fit"),
        ("decoding", np.array("{}"), "decoding: "),
        ("decoding", np.array('{"size": 3}'), "decoding: "),
        ("decoding", np.array("[1]"), "decoding: "),
        ("valid_images", np.zeros((2, 3, 2), np.uint8), "do not fit together"),
        ("train_images", np.zeros((4, 6), np.uint8), "do not fit together"),
        ("train_labels", np.zeros(3, np.uint8), "do not fit together"),
        ("valid_labels", np.array([0, 2], np.uint8), "do not fit together"),
        ("valid_images", np.zeros((0, 2, 3), np.uint8), "do not fit together"),
    ],
)
def test_tensors_of_other_types_or_shapes_are_refused(name, array, reason):
    publish_tensors(**{name: array})
    line = error_line(tensors.load_tensors)
    assert line.startswith("data/tensors.npz is damaged")
    assert reason in line
    assert line.endswith("delete it and run dvc repro")


def test_a_missing_array_and_a_missing_file_are_named():
    missing = "data/tensors.npz is missing: run dvc repro"
    assert error_line(tensors.load_tensors) == missing
    artifacts.publish({artifacts.MODEL: {"weights": np.zeros(1, np.float32)}})
    dtypes = {"weights": "float32", "bias": "float32"}
    line = error_line(npz.load_arrays, artifacts.MODEL, dtypes)
    assert "models/model.npz is damaged" in line
    assert "bias" in line


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x93NUMPY", b"\x80\x04.", b"<html>", bytes(1000)]
)
def test_a_file_that_is_no_npz_is_refused(content):
    os.makedirs("data")
    Path(artifacts.TENSORS).write_bytes(content)
    assert "data/tensors.npz is damaged" in error_line(tensors.load_tensors)


def test_an_npy_file_is_refused():
    os.makedirs("data")
    with open(artifacts.TENSORS, "wb") as file:
        np.save(file, np.zeros(3, np.uint8))
    assert "data/tensors.npz is damaged" in error_line(tensors.load_tensors)


def test_every_truncation_is_refused():
    publish_tensors()
    path = Path(artifacts.TENSORS)
    whole = path.read_bytes()
    for percent in range(0, 100, 5):
        path.write_bytes(whole[: len(whole) * percent // 100])
        assert "data/tensors.npz is damaged" in error_line(tensors.load_tensors)


def test_flipped_bits_never_change_a_pixel_or_end_in_another_error():
    publish_tensors()
    path, chance = Path(artifacts.TENSORS), random.Random(0)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with suppress(UserError):
            images = tensors.load_tensors().train.images
            np.testing.assert_array_equal(images, TENSORS["train_images"])


@pytest.mark.parametrize("text", ["{", "1\n,", "\xff", '{"a": 1'])
def test_a_damaged_json_or_csv_file_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "damaged"
    path.write_bytes(("a,b\n" + text).encode("latin-1"))
    refused = r"damaged is damaged \(.*delete it and run dvc repro$"
    for load in (artifacts.load_json, artifacts.load_csv):
        with pytest.raises(UserError, match=refused):
            load(str(path))
