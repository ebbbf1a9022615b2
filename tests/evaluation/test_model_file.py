"""The model file: read as it was written, or refused."""

import numpy as np
import pytest

from stages.evaluation import model_file
from stages.evaluation.model_file import TrainedModel, pixel_weights
from stages.plumbing import artifacts
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import Decoding, format_decoding
from tests.evaluation.test_outputs import MEANINGS

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


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The path of a model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return artifacts.MODEL


@pytest.mark.parametrize(("outputs", "count"), MEANINGS)
def test_a_model_is_read_as_it_was_written(path, outputs, count):
    written = draw(count if count > 1 else 2, outputs)
    artifacts.publish({path: written.to_arrays()})
    read = TrainedModel.load(path)
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
def test_a_model_whose_arrays_do_not_fit_together_is_refused(path, changes):
    artifacts.publish({path: draw(2, "sigmoid").to_arrays() | changes})
    with pytest.raises(UserError, match=r"models/model.npz is damaged \(.*run dvc re"):
        TrainedModel.load(path)


def test_the_arrays_of_another_model_are_refused_with_what_is_missing(path):
    arrays = draw(2, "sigmoid").to_arrays()
    arrays["params/first"] = arrays.pop("params/weights")
    artifacts.publish({path: arrays})
    with pytest.raises(UserError, match=r"stages/model.py cannot run it.*'weights'"):
        TrainedModel.load(path)


def test_a_model_that_does_not_say_how_to_use_it_is_refused(path):
    """Earlier versions of the train stage wrote weights and bias only."""
    artifacts.publish({path: dict(draw(2, "sigmoid").params)})
    with pytest.raises(
        UserError, match=r"classes is not a file.*delete it and run dvc repro"
    ):
        TrainedModel.load(path)


def test_weights_of_pixels_have_a_row_for_each():
    arrays = {"bias": np.zeros(24), "first": np.zeros((24, 3)), "last": np.ones((3, 1))}
    assert pixel_weights(arrays, 24) == "first"
    assert pixel_weights(arrays, 784) is None
