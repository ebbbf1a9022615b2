"""The losses and their gradients, compared with float64 NumPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from stages.train import LOSSES

F32 = jnp.float32
RANDOM = np.random.default_rng(1)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.floating:
    if logits.shape[1] > 1:
        return -(targets * np.log(softmax(logits))).sum(1).mean()
    p = sigmoid(logits)
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()


VALUES = {
    "squared_error": lambda logits, targets: ((logits - targets) ** 2).mean(),
    "brier": lambda logits, targets: ((sigmoid(logits) - targets) ** 2).mean(),
    "absolute": lambda logits, targets: np.abs(sigmoid(logits) - targets).mean(),
    "log_loss": cross_entropy,
}


def squared_error_slope(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return 2 * (logits - targets) / logits.shape[1]


def brier_slope(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    p = sigmoid(logits)
    return 2 * (p - targets) * p * (1 - p) / logits.shape[1]


def absolute_slope(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    p = sigmoid(logits)
    return np.sign(p - targets) * p * (1 - p) / logits.shape[1]


def log_loss_slope(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (sigmoid(logits) if logits.shape[1] == 1 else softmax(logits)) - targets


# The derivative of one image's loss with respect to its logits.
SLOPES = {
    "squared_error": squared_error_slope,
    "brier": brier_slope,
    "absolute": absolute_slope,
    "log_loss": log_loss_slope,
}


def problem(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw images (40, 12), targets, weights, bias: float64, exact in float32."""
    images = RANDOM.integers(256, size=(40, 12)) / 256
    labels = RANDOM.integers(max(outputs, 2), size=40)
    targets = (labels[:, None] == np.arange(outputs)).astype(float)
    weights, bias = (
        RANDOM.normal(size=size).astype(np.float32).astype(float)
        for size in [(12, outputs), (outputs,)]
    )
    return images, targets, weights, bias


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_values_equal_float64(loss, outputs):
    images, targets, weights, bias = problem(outputs)
    logits = images @ weights + bias
    expected = VALUES[loss](logits, targets)
    value = LOSSES[loss](F32(logits), F32(targets)).mean()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_a_linear_model_equal_the_closed_form(loss, outputs):
    images, targets, weights, bias = problem(outputs)

    def mean_loss(weights: jax.Array, bias: jax.Array) -> jax.Array:
        return LOSSES[loss](F32(images) @ weights + bias, F32(targets)).mean()

    gradient = jax.grad(mean_loss, argnums=(0, 1))(F32(weights), F32(bias))
    slope = SLOPES[loss](images @ weights + bias, targets) / len(images)
    np.testing.assert_allclose(gradient[0], images.T @ slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient[1], slope.sum(0), rtol=1e-4, atol=1e-6)


def test_log_loss_and_brier_of_a_pair_equal_scikit_learn():
    logits = RANDOM.normal(size=(50, 1))
    targets = RANDOM.integers(2, size=(50, 1)).astype(float)
    pair = targets[:, 0], sigmoid(logits[:, 0])
    log_loss, brier = (
        LOSSES[loss](F32(logits), F32(targets)).mean() for loss in ("log_loss", "brier")
    )
    assert log_loss == pytest.approx(sk.log_loss(*pair), rel=1e-5)
    assert brier == pytest.approx(sk.brier_score_loss(*pair), rel=1e-5)


def test_log_loss_of_three_classes_equals_scikit_learn():
    logits, labels = RANDOM.normal(size=(50, 3)), np.arange(50) % 3
    value = LOSSES["log_loss"](F32(logits), F32(np.eye(3)[labels])).mean()
    assert value == pytest.approx(sk.log_loss(labels, softmax(logits)), rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", ["brier", "absolute", "log_loss"])
def test_losses_and_gradients_of_extreme_logits_are_finite(loss, outputs):
    logits = jnp.full((2, outputs), F32([[1e30], [-1e30]]))
    targets = jnp.eye(2, outputs)

    def mean_loss(logits: jax.Array) -> jax.Array:
        return LOSSES[loss](logits, targets).mean()

    value, slope = jax.value_and_grad(mean_loss)(logits)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
