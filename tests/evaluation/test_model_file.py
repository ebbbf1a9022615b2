"""The model file: read as it was written, or refused."""

import re

import numpy as np
import pytest

from stages.evaluation import model_file
from stages.evaluation.model_file import TrainedModel, pixel_weights
from stages.plumbing import artifacts
from stages.plumbing.tensors import Decoding, format_decoding
from tests.builders import refusal
from tests.evaluation.test_outputs import MEANINGS

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RANDOM = np.random.default_rng(0)


def draw(classes: int, outputs: str) -> TrainedModel:
    """Draw a model for images of 4 x 6."""
    count = 1 if classes == 2 else classes
    return TrainedModel(
        {
            "weights": RANDOM.normal(size=(24, count)).astype(np.float32),
            "bias": RANDOM.normal(size=count).astype(np.float32),
        },
        classes=["drei ③", "семь", "九", "four"][:classes],
        outputs=outputs,
        image_size=(4, 6),
        decoding=Decoding(size=(4, 6), grayscale=True, background=255),
    )


def load(arrays: dict[str, np.ndarray]) -> TrainedModel:
    """Write a model file with these arrays, and load it."""
    artifacts.publish({artifacts.MODEL: arrays})
    return TrainedModel.load(artifacts.MODEL)


@pytest.mark.parametrize(("outputs", "count"), MEANINGS)
def test_a_model_is_read_as_it_was_written(outputs, count):
    written = draw(max(count, 2), outputs)
    read = load(written.to_arrays())
    assert read[1:] == written[1:]
    assert read.params.keys() == written.params.keys()
    for name, array in written.params.items():
        np.testing.assert_array_equal(read.params[name], array)


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_computed_in_float64_block_by_block(monkeypatch, classes):
    monkeypatch.setattr(model_file, "BLOCK_PIXELS", 2 * 24)
    model = draw(classes, "target")
    images = RANDOM.integers(256, size=(5, 4, 6), dtype=np.uint8)
    weights, bias = (model.params[name].astype(float) for name in ("weights", "bias"))
    expected = [(image.ravel() / 255) @ weights + bias for image in images]
    logits = model.logits(images)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": np.array(["3"])},
        {"classes": np.array(["3", "5", "7"])},
        {"outputs": np.array("softmax")},
        {"outputs": np.array("log_loss")},
        {"image_size": np.array([4, 5])},
        {"image_size": np.array([24])},
        {"image_size": np.array([0, 6])},
        {"params/bias": np.zeros(2, np.float32)},
        {"params/bias": np.zeros(1)},
        {"decoding": format_decoding(Decoding((6, 4), False, None))},
        {"decoding": np.array("{}")},
        {"decoding": np.array("resized")},
    ],
)
def test_a_model_whose_arrays_do_not_fit_together_is_refused(changes):
    line = refusal(load, draw(2, "sigmoid").to_arrays() | changes)
    assert line.startswith("models/model.npz is damaged (")
    assert line.endswith("run dvc repro")


def test_the_arrays_of_another_model_are_refused_with_what_is_missing():
    arrays = draw(2, "sigmoid").to_arrays()
    arrays["params/first"] = arrays.pop("params/weights")
    assert re.search("stages/model.py cannot run it.*'weights'", refusal(load, arrays))


def test_a_model_that_does_not_say_how_to_use_it_is_refused():
    """Earlier versions of the train stage wrote weights and bias only."""
    line = refusal(load, dict(draw(2, "sigmoid").params))
    assert re.search("classes is not a file.*delete it and run dvc repro", line)


def test_weights_of_pixels_have_a_row_for_each():
    arrays = {"bias": np.zeros(24), "first": np.zeros((24, 3)), "last": np.ones((3, 1))}
    assert pixel_weights(arrays, 24) == "first"
    assert pixel_weights(arrays, 784) is None
