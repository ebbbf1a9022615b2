"""Predictions and probabilities of the linear model against SciPy, and where they are extreme."""

import warnings
from itertools import product

import numpy as np
import pytest
from scipy.special import expit, softmax  # type: ignore[import-untyped]

from stages import linear
from stages.losses import LOSSES

EXTREME = [-1e300, -1e4, -746.0, -1.0, -1e-300, 0.0, 1e-300, 1.0, 746.0, 1e4, 1e300]
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("outputs", [1, 3])
def test_raw_predictions_are_pixels_times_weights_plus_bias_in_float64(outputs):
    images = RANDOM.integers(256, size=(5, 4, 6), dtype=np.uint8)
    weights = RANDOM.normal(size=(24, outputs)).astype(np.float32)
    bias = RANDOM.normal(size=outputs).astype(np.float32)
    raw = linear.raw_predictions(images, weights, bias)
    expected = [
        [sum(int(p) / 255 * float(w) for p, w in zip(image.flat, column, strict=True)) + float(b)]
        for image in images
        for column, b in zip(weights.T, bias, strict=True)
    ]
    assert raw.dtype == np.float64
    np.testing.assert_allclose(raw.reshape(-1, 1), expected, rtol=1e-12)


@pytest.mark.parametrize("loss", ["brier", "absolute", "log_loss"])
def test_probabilities_of_a_pair_are_the_sigmoid_of_the_logit_and_its_rest(loss):
    raw = RANDOM.normal(scale=20, size=(200, 1))
    p = expit(raw)
    np.testing.assert_allclose(linear.probabilities(raw, loss), np.hstack([p, expit(-raw)]), rtol=1e-12)


@pytest.mark.parametrize(("raw", "first"), [(-0.5, 0), (0, 0), (0.25, 0.25), (1, 1), (3, 1)])
def test_squared_error_predicts_the_probability_itself_cut_to_0_and_1(raw, first):
    p = linear.probabilities(np.array([[raw]]), "squared_error")
    np.testing.assert_allclose(p, [[first, 1 - first]], rtol=1e-12, atol=1e-300)


def test_log_loss_of_more_classes_is_softmax():
    raw = RANDOM.normal(scale=20, size=(200, 4))
    np.testing.assert_allclose(linear.probabilities(raw, "log_loss"), softmax(raw, axis=1), rtol=1e-12)


@pytest.mark.parametrize("loss", ["brier", "absolute"])
def test_one_versus_rest_scales_the_sigmoids_to_a_sum_of_1(loss):
    raw = RANDOM.normal(size=(200, 4))
    expected = expit(raw) / expit(raw).sum(1, keepdims=True)
    np.testing.assert_allclose(linear.probabilities(raw, loss), expected, rtol=1e-12)


def test_squared_error_of_more_classes_scales_the_cut_predictions_to_a_sum_of_1():
    p = linear.probabilities(np.array([[3, 0.5, -1], [0.25, 0.25, 0.5]]), "squared_error")
    np.testing.assert_allclose(p, [[2 / 3, 1 / 3, 0], [0.25, 0.25, 0.5]], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_predictions_give_probabilities_that_sum_to_1_without_a_warning(loss, classes):
    raw = np.array(list(product(EXTREME, repeat=1 if classes == 2 else classes)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = linear.probabilities(raw, loss)
    assert p.shape == (len(raw), classes)
    assert ((p >= 0) & (p <= 1)).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_predicted_class_is_the_most_probable_one(loss, outputs):
    raw = RANDOM.uniform(-0.5, 1.5, size=(500, outputs))
    p = linear.probabilities(raw, loss)
    predicted = linear.predicted_classes(raw, loss)
    np.testing.assert_allclose(p[np.arange(500), predicted], p.max(1))


@pytest.mark.parametrize(
    ("loss", "raw", "expected"),
    [("squared_error", 0.51, 0), ("squared_error", 0.49, 1)]
    + [
        (loss, raw, expected) for loss in ("brier", "absolute", "log_loss") for raw, expected in [(0.01, 0), (-0.01, 1)]
    ],
)
def test_a_pair_is_cut_at_half_a_target_or_at_a_logit_of_0(loss, raw, expected):
    assert linear.predicted_classes(np.array([[raw]]), loss) == [expected]
