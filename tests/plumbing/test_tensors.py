"""data/tensors.npz: read as written, or refused; its bytes the same everywhere."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from stages.plumbing import artifacts, npz
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import Decoding, load_tensors, shorten
from tests.builders import damaged, refusal, tensor_arrays
from tests.conftest import contents

pytestmark = pytest.mark.usefixtures("in_tmp_path")

PATH = Path(artifacts.TENSORS)


def publish(**changes: np.ndarray) -> bytes:
    """Write a tensor file with some other arrays, and return its content."""
    artifacts.publish({artifacts.TENSORS: tensor_arrays(**changes)})
    return PATH.read_bytes()


def test_tensors_are_read_as_they_were_written_with_any_class_names():
    publish()
    expected, loaded = tensor_arrays(), load_tensors()
    for name in ("train", "valid"):
        for field, array in getattr(loaded, name)._asdict().items():
            np.testing.assert_array_equal(array, expected[f"{name}_{field}"])
            assert array.dtype == np.uint8
    assert loaded.classes == expected["classes"].tolist()
    assert loaded.valid_in_train.tolist() == [True, False]
    assert [*loaded.valid_names] == ["ä 1.png", "猫"]
    assert loaded.decoding == Decoding((2, 3), color="gray", background=255)


def test_objects_are_neither_written_nor_read():
    """An array of objects needs pickle, which runs whatever the file says."""
    classes = np.array(["3", None])
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        publish(classes=classes)
    assert contents(Path(), ".") == {}
    np.savez(PATH, allow_pickle=True, **tensor_arrays(classes=classes))
    damaged = "data/tensors.npz is damaged (Object arrays cannot be loaded"
    assert damaged in refusal(load_tensors)


ZEROS = np.zeros((4, 2, 3, 1), np.uint8)
SHAPES = "do not fit together"


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("train_images", ZEROS * 0.0, "train_images is of type float64, not uint8"),
        ("valid_labels", np.arange(2), "valid_labels is of type int64, not uint8"),
        ("classes", np.array([3, 7]), "classes is of type int64, not str"),
        ("valid_in_train", ZEROS[:3, 0, 0, 0], "valid_in_train does not fit"),
        ("valid_names", np.frombuffer(b"a\n", np.uint8), "valid_names does not fit"),
        ("decoding", np.array("{}"), "decoding: "),
        ("decoding", np.array('{"size": 3}'), "decoding: "),
        ("decoding", np.array("[1]"), "decoding: "),
        ("valid_images", ZEROS.reshape(4, 3, 2, 1)[:2], SHAPES),
        ("train_images", ZEROS[..., 0], SHAPES),
        ("train_labels", ZEROS[:3, 0, 0, 0], SHAPES),
        ("valid_labels", np.array([0, 2], np.uint8), SHAPES),
        ("valid_images", ZEROS[:0], SHAPES),
    ],
)
def test_tensors_of_other_types_or_shapes_are_refused(name, array, reason):
    publish(**{name: array})
    line = refusal(load_tensors)
    assert line.startswith("data/tensors.npz is damaged")
    assert reason in line
    assert ": delete it and run dvc repro;" in line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat/1.png", "cat/1.png"),
        ("valid/cat/1.png", "…/cat/1.png"),
        ("valid/12345678.png", "…2345678.png"),
        ("12345678/a.png/", "…/a.png/"),
    ],
)
def test_of_a_long_name_the_end_is_shown(name, shown):
    assert shorten(name, 12) == shown


def test_a_missing_array_and_a_missing_file_are_named():
    assert refusal(load_tensors) == "data/tensors.npz is missing: run dvc repro"
    artifacts.publish({artifacts.MODEL: {"weights": np.zeros(1, np.float32)}})
    line = refusal(npz.load_arrays, artifacts.MODEL, dict.fromkeys("ab", "float32"))
    assert "models/model.npz is damaged" in line
    assert "'a" in line


def test_other_files_are_refused():
    publish()
    np.save("x.npy", ZEROS)
    others = [b"", b"PK", b"\x93NUMPY", b"\x80\x04.", b"<html>", bytes(1000)]
    for content in (*others, Path("x.npy").read_bytes()):
        PATH.write_bytes(content)
        assert "data/tensors.npz is damaged" in refusal(load_tensors)


def test_damage_never_changes_a_pixel_or_ends_in_another_error():
    whole = publish()
    for content in damaged(whole, "npz", 300):
        PATH.write_bytes(content)
        if len(content) < len(whole):
            assert "data/tensors.npz is damaged" in refusal(load_tensors)
        else:
            with suppress(UserError):
                expected = tensor_arrays()["train_images"]
                np.testing.assert_array_equal(load_tensors().train.images, expected)
