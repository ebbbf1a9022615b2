"""Gradient descent against plain float64 loops and scikit-learn, and the notebook's numbers on its archive."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from stages import descent, devices, parameters, preprocess, train
from stages.descent import Params, Split, as_targets, evaluate, fit, predictions
from stages.linear import cut
from stages.losses import LOSSES

ROOT = Path(__file__).parents[1]
RANDOM = np.random.default_rng(3)
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.5, "momentum": 0.0, "l2": 0.0,
    "loss": "log_loss", "schedule": "constant", "batch_size": 32, "epochs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def mnist() -> tuple[np.ndarray, ...]:
    """Images and labels of the training set, then of the validation set, of the bundled archive."""
    data = parameters.Data(("3", "7"), parameters.Splits("train", "valid"), size=None, grayscale=False)
    images = preprocess.read_images(str(ROOT / "data/mnist_sample.tgz"), data)
    return *preprocess.stack(*images, "train", data), *preprocess.stack(*images, "valid", data)


def problem(count: int, size: int = 32, noise: int = 40) -> Split:
    """Images (size, 3, 2) with one pixel brighter for each class: it tells them apart, but for the noise."""
    labels = (np.arange(size) % count).astype(np.uint8)
    images = RANDOM.normal(90, noise, (size, 6)) + 90 * np.eye(count, 6)[labels]
    return Split(np.clip(images, 0, 255).astype(np.uint8).reshape(size, 3, 2), labels)


def trained(data: Split, key: int = 0, init_std: float = 0.5, valid: Split | None = None, **changes: Any):
    settings = {**SETTINGS, **changes}
    rates = {name: settings.pop(name) for name in train.RATES}
    count = int(data.labels.max()) + 1
    params = train.init_params(jax.random.key(key), data.images[0].size, 1 if count == 2 else count, init_std)
    return params, *fit(params, data, valid or data, jax.random.key(key + 1), rates, **settings)


def in_float64(data: Split) -> tuple[np.ndarray, np.ndarray]:
    """Rows of pixels from 0 to 1, and targets of 1 for the first class of a pair."""
    return data.images.reshape(len(data.images), -1) / 255, 1.0 - data.labels[:, None]


def gradient(weights: np.ndarray, bias: np.ndarray, data: Split) -> tuple[np.ndarray, np.ndarray]:
    """Of the log loss of a pair, in float64."""
    images, targets = in_float64(data)
    slope = (1 / (1 + np.exp(-(images @ weights + bias))) - targets) / len(images)
    return images.T @ slope, slope.sum(0)


@pytest.fixture
def _cut_at_zero(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the notebook does for every loss; what has been compiled knows another threshold."""
    monkeypatch.setattr(descent, "cut", lambda _: 0.0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("_cut_at_zero")
def test_the_notebooks_experiment_moves_the_loss_and_not_the_accuracy(mnist):
    """The untrained model of key 42, its raw predictions cut at 0 as the notebook does."""
    params = train.init_params(jax.random.key(42), 784, 1, 1.0)
    result = train.sensitivity(params, Split(*mnist[:2]), "squared_error")
    assert result["pixel"] == 269
    assert result["accuracy_before"] == result["accuracy_after"] == pytest.approx(0.4487738, abs=5e-8)
    assert result["loss_before"] == pytest.approx(59.81387, abs=1e-5)
    assert result["loss_after"] == pytest.approx(59.81413, abs=1e-5)


def test_predictions_are_of_pixels_from_0_to_1_and_targets_are_1_for_the_class():
    images = RANDOM.integers(256, size=(4, 3, 2), dtype=np.uint8)
    weights, bias = RANDOM.normal(size=(6, 3)).astype(np.float32), np.ones(3, np.float32)
    raw = predictions(Params(weights, bias), jnp.asarray(images))
    np.testing.assert_allclose(raw, images.reshape(4, 6) / 255 @ weights + 1, rtol=1e-5)
    labels = jnp.array([0, 1, 2, 1], jnp.uint8)
    assert as_targets(labels, 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert as_targets(labels % 2, 1).tolist() == [[1], [0], [1], [0]]


@pytest.mark.parametrize("size", [1, 31, 32, 33])
def test_a_split_is_evaluated_in_blocks_of_which_the_last_may_be_incomplete(monkeypatch, size):
    monkeypatch.setattr(devices, "BLOCK", 6 * 8)
    data, params = problem(2, size), Params(RANDOM.normal(size=(6, 1)).astype(np.float32), np.zeros(1, np.float32))
    images, targets = in_float64(data)
    errors = images @ params.weights - targets
    expected = [(errors**2).mean(), ((errors + targets > 0.5) == targets).mean()]
    np.testing.assert_allclose(evaluate(params, data, "squared_error"), expected, rtol=1e-5)


def test_training_on_more_than_fits_on_the_device_at_a_time_gives_the_same(monkeypatch):
    data = problem(3, 100)
    _, whole, history = trained(data, batch_size=8, epochs=3)
    monkeypatch.setattr(descent, "BLOCK", 5 * 8 * 6)
    _, parts, same = trained(data, batch_size=8, epochs=3)
    np.testing.assert_allclose(parts.weights, whole.weights, atol=1e-6)
    np.testing.assert_allclose(same, history, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "momentum", "l2", "schedule"),
    [
        (1, 0.9, 0.1, "constant"),
        (7, 0.0, 0.0, "constant"),
        (7, 0.9, 0.0, "constant"),
        (7, 0.0, 0.1, "constant"),
        (7, 0.0, 0.0, "cosine"),
        (7, 0.9, 0.1, "cosine"),
    ],
)
def test_training_equals_a_plain_loop_in_float64(epochs, momentum, l2, schedule):
    """Heavy-ball momentum; l2 draws on the weights and not on the bias; a cosine falls from the rate to 0."""
    data = problem(2)
    settings = {"momentum": momentum, "l2": l2, "schedule": schedule, "epochs": epochs}
    before, after, _ = trained(data, **settings)
    weights, bias = (np.asarray(array, float) for array in before)
    speed: list[Any] = [0, 0]
    for step in range(epochs):
        slopes = gradient(weights, bias, data)
        speed = [momentum * v + slope for v, slope in zip(speed, (slopes[0] + l2 * weights, slopes[1]), strict=True)]
        rate = 0.5 * ((1 + np.cos(np.pi * step / epochs)) / 2 if schedule == "cosine" else 1)
        weights, bias = weights - rate * speed[0], bias - rate * speed[1]
    np.testing.assert_allclose(after.weights, weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.bias, bias, rtol=1e-4, atol=1e-6)


def test_each_epoch_takes_every_image_once():
    """The sum of the gradients does not depend on the order while steps are so small that the weights stay."""
    data = problem(2)
    rate = 1e-3
    before, after, _ = trained(data, batch_size=4, learning_rate=rate)
    slope = gradient(np.asarray(before.weights, float), np.asarray(before.bias, float), data)[0]
    np.testing.assert_allclose((before.weights - after.weights) / rate, 32 / 4 * slope, rtol=0.05, atol=2e-3)


def test_an_incomplete_batch_is_left_out():
    """Of three images in batches of two, an epoch takes a step for two of them."""
    data = problem(2, 3)
    before, after, _ = trained(data, batch_size=2, learning_rate=1.0)
    start = np.asarray(before.weights, float), np.asarray(before.bias, float)
    steps = [gradient(*start, Split(*(array[pair] for array in data)))[0] for pair in ([0, 1], [0, 2], [1, 2])]
    assert any(np.allclose(before.weights - after.weights, step, rtol=1e-3, atol=1e-6) for step in steps)


@pytest.mark.parametrize(("loss", "count"), [("squared_error", 2), ("log_loss", 3)])
def test_history_begins_with_the_untrained_model_and_ends_with_the_returned_one(loss, count):
    data, valid = problem(count), problem(count, 24)
    before, after, history = trained(data, valid=valid, loss=loss, epochs=3, learning_rate=0.05)
    assert history.shape == (4, 4)
    for params, row in ((before, history[0]), (after, history[-1])):
        for split, measured in zip((data, valid), row.reshape(2, 2), strict=True):
            images, targets = in_float64(split)
            raw = images @ np.asarray(params.weights, float) + np.asarray(params.bias)
            right = (raw > cut(loss)) == targets if count == 2 else raw.argmax(1) == split.labels
            each = LOSSES[loss](jnp.asarray(raw), as_targets(jnp.asarray(split.labels), raw.shape[1]))
            expected = each.mean(), right.mean()
            np.testing.assert_allclose(measured, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["squared_error", "brier"])
def test_three_classes_are_learned(loss):
    _, after, history = trained(problem(3, 300, noise=10), loss=loss, epochs=500, momentum=0.9, learning_rate=0.1)
    assert after.weights.shape == (6, 3)
    assert history[-1, 0] < history[0, 0]
    assert history[-1, 1] > 0.95


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    data = problem(2)
    one, same, other = (trained(data, key, batch_size=8, epochs=3)[1] for key in (5, 5, 6))
    assert [np.asarray(array).tobytes() for array in one] == [np.asarray(array).tobytes() for array in same]
    assert not np.array_equal(one.weights, other.weights)


def test_the_order_of_the_batches_depends_on_the_seed():
    """Models that begin alike, at 0, part ways with another seed."""
    data = problem(2)
    one, other = (trained(data, key, init_std=0, batch_size=8, epochs=3)[1] for key in (5, 6))
    assert not np.array_equal(one.weights, other.weights)


def test_untrained_weights_are_normal_and_scaled_by_init_std():
    params = train.init_params(jax.random.key(0), 10_000, 2, 3.0)
    assert float(params.weights.std()) == pytest.approx(3, rel=0.03)
    assert float(params.weights.mean()) == pytest.approx(0, abs=0.1)
    assert not any(jnp.any(array) for array in train.init_params(jax.random.key(0), 784, 1, 0.0))


def test_long_training_comes_to_scikit_learns_logistic_regression():
    """C weighs the summed loss against half the squared weights; l2 the mean loss: C = 1 / (l2 N)."""
    data, l2 = problem(2, 200), 0.01
    _, after, _ = trained(data, l2=l2, epochs=4000, batch_size=200, momentum=0.9, learning_rate=1.0)
    images, targets = in_float64(data)
    best = LogisticRegression(C=1 / (l2 * 200), tol=1e-10, max_iter=10_000).fit(images, targets[:, 0])
    np.testing.assert_allclose(after.weights[:, 0], best.coef_[0], atol=1e-3)
    np.testing.assert_allclose(after.bias, best.intercept_, atol=1e-3)


def on_mnist(mnist: tuple[np.ndarray, ...], chosen: parameters.Train, **changes: Any) -> Any:
    """What the stage learns with the chosen parameters: the trained model, the history and the experiment."""
    return train.learn(Split(*mnist[:2]), Split(*mnist[2:]), 2, msgspec.structs.replace(chosen, **changes))


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> parameters.Train:
    """The train section of the repository's params.yaml."""
    monkeypatch.chdir(ROOT)
    return parameters.load(parameters.Train)


def test_the_default_parameters_beat_the_baseline_by_far(mnist, chosen):
    params, history, _ = on_mnist(mnist, chosen)
    assert params.weights.shape == (784, 1)
    assert len(history) == chosen.epochs + 1
    assert history[-1, 3] >= 0.984
    assert history[-1, 2] <= 0.048


@pytest.mark.parametrize(("loss", "rate"), [("squared_error", 0.01), ("brier", 0.2), ("absolute", 0.2)])
def test_every_loss_learns_at_the_rate_that_params_yaml_gives(mnist, chosen, loss, rate):
    assert on_mnist(mnist, chosen, loss=loss, learning_rate=rate)[1][-1, 3] >= 0.96


def test_the_experiment_is_made_on_an_untrained_model_that_is_not_all_zeros(mnist, chosen):
    """With the notebook's loss, seed and standard deviation, though training begins at 0."""
    nudge = on_mnist(mnist, chosen, loss="squared_error", learning_rate=0.01)[2]
    assert chosen.init_std == 0
    assert nudge["pixel"] == 269
    assert nudge["loss_before"] == pytest.approx(59.81387, abs=1e-5)
