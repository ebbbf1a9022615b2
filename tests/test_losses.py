"""The losses and their gradients against float64 NumPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from stages.losses import LOSSES, correct

F32 = jnp.float32
RANDOM = np.random.default_rng(1)


def sigmoid(raw: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-raw))


def softmax(raw: np.ndarray) -> np.ndarray:
    return np.exp(raw) / np.exp(raw).sum(1, keepdims=True)


def cross_entropy(raw: np.ndarray, targets: np.ndarray) -> np.floating:
    p = sigmoid(raw) if raw.shape[1] == 1 else softmax(raw)
    rest = (1 - targets) * np.log(1 - p) if raw.shape[1] == 1 else 0
    return -(targets * np.log(p) + rest).sum(1).mean()


VALUES = {
    "squared_error": lambda raw, targets: ((raw - targets) ** 2).mean(),
    "brier": lambda raw, targets: ((sigmoid(raw) - targets) ** 2).mean(),
    "absolute": lambda raw, targets: np.abs(sigmoid(raw) - targets).mean(),
    "log_loss": cross_entropy,
}
# What one row's loss changes by with its raw predictions.
SLOPES = {
    "squared_error": lambda raw, targets: 2 * (raw - targets) / raw.shape[1],
    "brier": lambda raw, t: 2 * (sigmoid(raw) - t) * sigmoid(raw) * (1 - sigmoid(raw)) / raw.shape[1],
    "absolute": lambda raw, t: np.sign(sigmoid(raw) - t) * sigmoid(raw) * (1 - sigmoid(raw)) / raw.shape[1],
    "log_loss": lambda raw, targets: (sigmoid(raw) if raw.shape[1] == 1 else softmax(raw)) - targets,
}


def problem(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (40, 12), targets, weights and bias, float64 but exact in float32."""
    images = RANDOM.integers(256, size=(40, 12)) / 256
    labels = RANDOM.integers(max(outputs, 2), size=40)
    targets = (labels[:, None] == np.arange(outputs)).astype(float)
    weights, bias = (RANDOM.normal(size=size).astype(np.float32).astype(float) for size in [(12, outputs), (outputs,)])
    return images, targets, weights, bias


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_values_equal_float64(loss, outputs):
    images, targets, weights, bias = problem(outputs)
    raw = images @ weights + bias
    assert LOSSES[loss](F32(raw), F32(targets)).mean() == pytest.approx(VALUES[loss](raw, targets), rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_a_linear_model_equal_their_closed_form(loss, outputs):
    images, targets, weights, bias = problem(outputs)
    gradient = jax.grad(lambda w, b: LOSSES[loss](F32(images) @ w + b, F32(targets)).mean(), argnums=(0, 1))(
        F32(weights), F32(bias)
    )
    slope = SLOPES[loss](images @ weights + bias, targets) / len(images)
    np.testing.assert_allclose(gradient[0], images.T @ slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient[1], slope.sum(0), rtol=1e-4, atol=1e-6)


def test_log_loss_and_brier_equal_scikit_learn():
    raw, targets = RANDOM.normal(size=(50, 1)), RANDOM.integers(2, size=(50, 1)).astype(float)
    p = sigmoid(raw[:, 0])
    assert LOSSES["log_loss"](F32(raw), F32(targets)).mean() == pytest.approx(sk.log_loss(targets[:, 0], p), rel=1e-5)
    assert LOSSES["brier"](F32(raw), F32(targets)).mean() == pytest.approx(
        sk.brier_score_loss(targets[:, 0], p), rel=1e-5
    )
    raw, labels = RANDOM.normal(size=(50, 3)), np.arange(50) % 3
    assert LOSSES["log_loss"](F32(raw), F32(np.eye(3)[labels])).mean() == pytest.approx(
        sk.log_loss(labels, softmax(raw)), rel=1e-5
    )


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", ["brier", "absolute", "log_loss"])
def test_losses_and_gradients_of_extreme_logits_are_finite(loss, outputs):
    raw, targets = jnp.full((2, outputs), F32([[1e30], [-1e30]])), jnp.eye(2, outputs)
    value, slope = jax.value_and_grad(lambda *each: LOSSES[loss](*each).mean())(raw, targets)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("raw", "threshold", "expected"),
    [([0.6, 0.4, 0.4, 0.6], 0.5, 1), ([0.6, 0.4, 0.4, 0.6], 0, 0.5), ([-1, -1, -1, 1], 0, 0.75)],
)
def test_accuracy_of_a_pair_is_cut_at_the_threshold(raw, threshold, expected):
    assert correct(F32(raw)[:, None], F32([[1], [0], [0], [1]]), threshold).mean() == expected


def test_accuracy_of_more_classes_is_the_share_of_largest_predictions_that_name_the_target():
    raw = RANDOM.normal(size=(60, 4)).astype(np.float32)
    labels = RANDOM.integers(4, size=60)
    expected = sk.accuracy_score(labels, raw.argmax(1))
    assert correct(F32(raw), F32(np.eye(4)[labels]), 0).mean() == pytest.approx(expected)
