"""The linear model's logits, probabilities and labels, also for extreme logits."""

import warnings
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax  # type: ignore[import-untyped]
from sklearn import metrics as sk

from stages.model import linear
from stages.train import LOSSES

EXTREME = [-1e300, -1e4, -746.0, -1.0, -1e-300, 0.0, 1e-300, 1.0, 746.0, 1e4, 1e300]
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("outputs", [1, 3])
def test_logits_are_pixels_times_weights_plus_bias_in_float64(outputs):
    images = RANDOM.integers(256, size=(5, 4, 6), dtype=np.uint8)
    weights = RANDOM.normal(size=(24, outputs)).astype(np.float32)
    bias = RANDOM.normal(size=outputs).astype(np.float32)
    logits = linear.logits(images, weights, bias)

    def logit(image: np.ndarray, output: int) -> float:
        pairs = zip(image.flat, weights[:, output], strict=True)
        return sum(int(p) / 255 * float(w) for p, w in pairs) + float(bias[output])

    expected = [[logit(image, i) for i in range(outputs)] for image in images]
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=1e-12)


@pytest.mark.parametrize("loss", ["brier", "absolute", "log_loss"])
def test_a_pair_has_the_probability_sigmoid_of_the_logit(loss):
    logits = RANDOM.normal(scale=20, size=(200, 1))
    expected = np.hstack([expit(logits), expit(-logits)])
    np.testing.assert_allclose(linear.probabilities(logits, loss), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("prediction", "first"), [(-0.5, 0), (0, 0), (0.25, 0.25), (1, 1), (3, 1)]
)
def test_squared_error_predicts_the_probability_itself_clipped(prediction, first):
    p = linear.probabilities(np.array([[prediction]]), "squared_error")
    np.testing.assert_allclose(p, [[first, 1 - first]], rtol=1e-12, atol=1e-300)


def test_log_loss_of_several_classes_is_a_softmax():
    logits = RANDOM.normal(scale=20, size=(200, 4))
    p = linear.probabilities(logits, "log_loss")
    np.testing.assert_allclose(p, softmax(logits, axis=1), rtol=1e-12)


@pytest.mark.parametrize("loss", ["brier", "absolute"])
def test_one_versus_rest_scales_the_sigmoids_to_a_sum_of_1(loss):
    logits = RANDOM.normal(size=(200, 4))
    expected = expit(logits) / expit(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(linear.probabilities(logits, loss), expected, rtol=1e-12)


def test_squared_error_of_several_classes_scales_clipped_predictions_to_a_sum_of_1():
    predictions = np.array([[3, 0.5, -1], [0.25, 0.25, 0.5]])
    expected = [[2 / 3, 1 / 3, 0], [0.25, 0.25, 0.5]]
    p = linear.probabilities(predictions, "squared_error")
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_give_probabilities_that_sum_to_1_without_warnings(
    loss, classes
):
    logits = np.array(list(product(EXTREME, repeat=1 if classes == 2 else classes)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = linear.probabilities(logits, loss)
    assert p.shape == (len(logits), classes)
    assert ((p >= 0) & (p <= 1)).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_predicted_label_is_the_most_probable_one(loss, outputs):
    logits = RANDOM.uniform(-0.5, 1.5, size=(500, outputs))
    p = linear.probabilities(logits, loss)
    predicted = linear.predicted_labels(logits, loss)
    np.testing.assert_allclose(p[np.arange(500), predicted], p.max(1))


AROUND_ZERO = [(0.01, 0), (-0.01, 1)]


@pytest.mark.parametrize(
    ("loss", "logit", "expected"),
    [
        *[("squared_error", 0.51, 0), ("squared_error", 0.49, 1)],
        *[("brier", *case) for case in AROUND_ZERO],
        *[("absolute", *case) for case in AROUND_ZERO],
        *[("log_loss", *case) for case in AROUND_ZERO],
    ],
)
def test_a_pair_has_its_threshold_at_half_the_target_or_a_logit_of_0(
    loss, logit, expected
):
    assert linear.predicted_labels(np.array([[logit]]), loss) == [expected]


@pytest.mark.parametrize(
    ("logits", "loss", "accuracy"),
    [
        ([0.6, 0.4, 0.4, 0.6], "squared_error", 1),
        ([0.6, 0.4, 0.4, 0.6], "log_loss", 0.5),
        ([-1, -1, -1, 1], "log_loss", 0.75),
    ],
)
def test_the_accuracy_of_a_pair_in_jax_depends_on_the_threshold(logits, loss, accuracy):
    predicted = linear.predicted_labels(jnp.float32(logits)[:, None], loss)
    assert (predicted == jnp.array([0, 1, 1, 0])).mean() == accuracy


def test_the_accuracy_of_several_classes_in_jax_equals_scikit_learn():
    logits = RANDOM.normal(size=(60, 4)).astype(np.float32)
    labels = RANDOM.integers(4, size=60)
    predicted = linear.predicted_labels(jnp.float32(logits), "log_loss")
    expected = sk.accuracy_score(labels, logits.argmax(1))
    assert (predicted == labels).mean() == pytest.approx(expected)
