"""The model file: read as it was written, or refused."""

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest

from stages.evaluation import model_file
from stages.evaluation.model_file import TrainedModel, pixel_weights
from stages.plumbing import artifacts
from stages.plumbing.tensors import Decoding, format_decoding
from tests.builders import refusal
from tests.evaluation.test_outputs import MEANINGS

pytestmark = pytest.mark.usefixtures("in_tmp_path")
UNSIZED = format_decoding(Decoding(None, "gray", None))
RANDOM = np.random.default_rng(0)


def draw(classes: int, outputs: str) -> TrainedModel:
    """Draw a model for images of 4 x 6."""
    count = 1 if classes == 2 else classes
    return TrainedModel(
        {
            "weights": RANDOM.normal(size=(24, count)).astype(np.float32),
            "bias": RANDOM.normal(size=count).astype(np.float32),
        },
        mean=RANDOM.random((4, 6, 1), np.float32),
        classes=["drei ③", "семь", "九", "four"][:classes],
        outputs=outputs,
        decoding=Decoding(size=(4, 6), color="gray", background=255),
    )


def load(arrays: dict[str, np.ndarray]) -> TrainedModel:
    """Write a model file with these arrays, and load it."""
    artifacts.publish({artifacts.MODEL: arrays})
    return TrainedModel.load(artifacts.MODEL)


@pytest.mark.parametrize(("outputs", "count"), MEANINGS)
def test_a_model_is_read_as_it_was_written(outputs, count):
    written = draw(max(count, 2), outputs)
    read = load(written.to_arrays())
    assert read[2:] == written[2:]
    assert read.params.keys() == written.params.keys()
    np.testing.assert_array_equal(read.mean, written.mean)
    for name, array in written.params.items():
        np.testing.assert_array_equal(read.params[name], array)


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_computed_in_float64_block_by_block(monkeypatch, classes):
    monkeypatch.setattr(model_file, "BLOCK_PIXELS", 2 * 24)
    model = draw(classes, "target")
    images = RANDOM.integers(256, size=(5, 4, 6, 1), dtype=np.uint8)
    weights, bias = (model.params[name].astype(float) for name in ("weights", "bias"))
    expected = [(image / 255 - model.mean).ravel() @ weights + bias for image in images]
    logits = model.logits(images)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": np.array(["3"])},
        {"classes": np.array(["3", "5", "7"])},
        {"classes": np.array(["3", "3"])},
        {"params/bias": np.array([np.nan], np.float32)},
        {"mean": np.full((4, 6, 1), np.inf, np.float32)},
        {"outputs": np.array("softmax")},
        {"outputs": np.array("log_loss")},
        {"mean": np.zeros((4, 5, 1), np.float32)},
        {"mean": np.zeros((4, 6), np.float32)},
        {"mean": np.zeros((4, 6, 3), np.float32)},
        {"mean": np.zeros((0, 6, 1), np.float32)},
        {"params/bias": np.zeros(1)},
        {"decoding": format_decoding(Decoding((6, 4), None, None))},
        {"decoding": np.array("{}")},
        {"decoding": np.array("resized")},
    ],
)
def test_a_model_whose_arrays_do_not_fit_together_is_refused(changes):
    line = refusal(load, draw(2, "sigmoid").to_arrays() | changes)
    assert line.startswith("models/model.npz is damaged (")
    assert "run dvc repro" in line


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mean": np.zeros((4, 5, 1), "f4"), "decoding": UNSIZED}, "ValueError: .*"),
        ({"params/bias": np.zeros(2, np.float32)}, r"its outputs .* \(2, 2\), not .*"),
        ({"params/weights": None}, "KeyError: 'weights'"),
    ],
)
def test_arrays_that_forward_cannot_run_are_another_models(changes, reason):
    arrays = draw(2, "sigmoid").to_arrays() | changes
    line = refusal(load, {k: a for k, a in arrays.items() if a is not None})
    start = r"models/model.npz does not fit stages/model.py \("
    remedy = r"\): run dvc repro, or correct stages/model.py"
    assert re.fullmatch(start + reason + remedy, line)


def test_a_model_that_does_not_say_how_to_use_it_is_refused():
    """Earlier versions of the train stage wrote weights and bias only."""
    line = refusal(load, dict(draw(2, "sigmoid").params))
    assert re.search("mean is not a file.*delete it and run dvc repro", line)


def test_weights_of_pixels_are_found_by_what_they_do(monkeypatch):
    """A dense layer behind others may have a row for each pixel by chance."""
    params = {"weights": RANDOM.normal(size=(24, 3)), "bias": np.zeros(3)}
    assert pixel_weights(params, (4, 6, 1)) == "weights"
    assert pixel_weights({"kernel": np.ones((3, 3))}, (4, 6, 1)) is None

    def behind_features(params: Any, images: Any) -> Any:
        features = images.reshape(len(images), -1) + 0.1
        return features @ params["dense"]

    monkeypatch.setattr(model_file.model, "forward", behind_features)
    assert pixel_weights({"dense": np.ones((24, 1))}, (4, 6, 1)) is None


def test_looking_for_the_weights_of_pixels_copies_them_once():
    weights = np.ones((4096, 200), np.float32)
    params = {"weights": weights, "bias": np.zeros(200, np.float32)}
    tracemalloc.start()
    assert pixel_weights(params, (64, 64, 1)) == "weights"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * weights.nbytes
