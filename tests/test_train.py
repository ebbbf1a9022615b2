"""Training compared with plain float64 loops, scikit-learn and the notebook."""

from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from stages import train
from stages.evaluation import outputs
from stages.plumbing import devices
from stages.plumbing import artifacts, npz, parameters
from stages.plumbing.errors import UserError
from stages.plumbing.npz import Decoding, Split, Tensors
from stages.train import LOSSES, Params

ROOT = Path(__file__).parents[1]
RANDOM = np.random.default_rng(3)
CONFIG = parameters.Train(
    seed=0,
    loss="log_loss",
    learning_rate=0.5,
    schedule="constant",
    momentum=0.0,
    l2=0.0,
    batch_size=32,
    epochs=1,
    init_std=0.5,
)
DECODING = Decoding(size=None, grayscale=False, background=None)
Stage = Callable[..., dict[str, Any]]


def problem(classes: int, size: int = 32, noise: int = 40) -> Split:
    """Draw images (size, 3, 2) in which noise blurs one brighter pixel per class."""
    labels = (np.arange(size) % classes).astype(np.uint8)
    images = RANDOM.normal(90, noise, (size, 6)) + 90 * np.eye(classes, 6)[labels]
    return Split(np.clip(images, 0, 255).astype(np.uint8).reshape(size, 3, 2), labels)


def fit(
    data: Split, valid: Split | None = None, **changes: Any
) -> tuple[Params, Params, np.ndarray]:
    """Train on a problem: params before and after, and the history."""
    config = msgspec.structs.replace(CONFIG, **changes)
    classes = int(data.labels.max()) + 1
    shape = data.images[0].size, 1 if classes == 2 else classes
    before = train.init_params(config.seed, *shape, config.init_std)
    after, history = train.fit(before, data, valid or data, config)
    return before, after, history


def in_float64(data: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of pixels in [0, 1], and targets: 1 for the first class of a pair."""
    return data.images.reshape(len(data.images), -1) / 255, 1.0 - data.labels[:, None]


def gradient(params: Params, data: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of the log loss of a pair, in float64."""
    weights, bias = (np.asarray(array, float) for array in params)
    images, targets = in_float64(data)
    p = 1 / (1 + np.exp(-(images @ weights + bias)))
    slope = (p - targets) / len(images)
    return images.T @ slope, slope.sum(0)


def test_logits_are_of_pixels_in_0_to_1():
    images = RANDOM.integers(256, size=(4, 3, 2), dtype=np.uint8)
    weights = RANDOM.normal(size=(6, 3)).astype(np.float32)
    params = Params(weights, np.ones(3, np.float32))
    logits = train.predict(params, jnp.asarray(images))
    expected = images.reshape(4, 6) / 255 @ weights + 1
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_targets_are_one_hot_and_1_for_the_first_class_of_a_pair():
    labels = jnp.array([0, 1, 2, 1], jnp.uint8)
    one_hot = jax.nn.one_hot(labels, 3)
    assert one_hot.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert jax.nn.one_hot(labels % 2, 1).tolist() == [[1], [0], [1], [0]]
    most = jax.nn.one_hot(np.arange(256, dtype=np.uint8), 256)
    np.testing.assert_array_equal(most, np.eye(256))


@pytest.mark.parametrize("size", [1, 31, 32, 33])
def test_evaluation_in_padded_blocks_counts_every_image_once(monkeypatch, size):
    monkeypatch.setattr(devices, "BLOCK_BYTES", 6 * 8)
    data = problem(2, size)
    weights = RANDOM.normal(size=(6, 1)).astype(np.float32)
    params = Params(weights, np.zeros(1, np.float32))
    images, targets = in_float64(data)
    predictions = images @ weights
    loss = ((predictions - targets) ** 2).mean()
    accuracy = ((predictions > 0.5) == targets).mean()
    measured = train.evaluate(params, devices.Blocks(data), "squared_error")
    np.testing.assert_allclose(measured, [loss, accuracy], rtol=1e-5)


@pytest.mark.parametrize("batches", [1, 2, 4, 6])
def test_training_in_chunks_gives_the_same_bytes(monkeypatch, batches):
    """An epoch has 11 batches: a chunk of several is padded."""
    data = problem(3, 100)
    _, whole, history = fit(data, batch_size=9, epochs=3)
    monkeypatch.setattr(devices, "BATCHES_BYTES", batches * 9 * 6)
    _, chunked, chunked_history = fit(data, batch_size=9, epochs=3)
    assert chunked_history.tobytes() == history.tobytes()
    for array, chunked_array in zip(whole, chunked, strict=True):
        assert chunked_array.tobytes() == array.tobytes()


def test_a_split_too_large_to_stay_on_the_devices_is_evaluated_the_same(monkeypatch):
    data, valid = problem(3, 100), problem(3, 33)
    *_, kept = fit(data, valid, batch_size=8, epochs=3)
    monkeypatch.setattr(devices, "KEPT_BYTES", 6 * 33)
    *_, loaded_again = fit(data, valid, batch_size=8, epochs=3)
    np.testing.assert_array_equal(loaded_again, kept)


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
    """Heavy-ball momentum; l2 on the weights, not on the bias; a cosine down to 0."""
    data = problem(2)
    changes = {"epochs": epochs, "momentum": momentum, "l2": l2, "schedule": schedule}
    before, after, _ = fit(data, **changes)
    weights, bias = (np.asarray(array, float) for array in before)
    velocity: list[Any] = [0, 0]
    for step in range(epochs):
        grads = gradient(Params(weights, bias), data)
        velocity[0] = momentum * velocity[0] + grads[0] + l2 * weights
        velocity[1] = momentum * velocity[1] + grads[1]
        cosine = (1 + np.cos(np.pi * step / epochs)) / 2
        rate = 0.5 * (cosine if schedule == "cosine" else 1)
        weights, bias = weights - rate * velocity[0], bias - rate * velocity[1]
    np.testing.assert_allclose(after.weights, weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.bias, bias, rtol=1e-4, atol=1e-6)


def test_an_epoch_takes_every_image_once():
    """Steps too small to move the weights sum up to the gradient, in any order."""
    data, rate, batches = problem(2), 1e-3, 32 / 4
    before, after, _ = fit(data, batch_size=4, learning_rate=rate)
    weights_gradient, _ = gradient(before, data)
    total = (before.weights - after.weights) / rate
    np.testing.assert_allclose(total, batches * weights_gradient, rtol=0.05, atol=2e-3)


def test_an_incomplete_batch_is_left_out():
    """Of three images in batches of two, an epoch takes one step on two of them."""
    data = problem(2, 3)
    before, after, _ = fit(data, batch_size=2, learning_rate=1.0)
    batches = [
        Split(data.images[pair], data.labels[pair]) for pair in ([0, 1], [0, 2], [1, 2])
    ]
    step = before.weights - after.weights
    assert any(
        np.allclose(step, gradient(before, batch)[0], rtol=1e-3, atol=1e-6)
        for batch in batches
    )


@pytest.mark.parametrize(("loss", "classes"), [("squared_error", 2), ("log_loss", 3)])
def test_history_begins_untrained_and_ends_with_the_returned_model(loss, classes):
    data, valid = problem(classes), problem(classes, 24)
    before, after, history = fit(data, valid, loss=loss, epochs=3, learning_rate=0.05)
    assert history.shape == (4, 4)
    for params, row in ((before, history[0]), (after, history[-1])):
        weights, bias = (np.asarray(array, float) for array in params)
        for split, measured in zip((data, valid), row.reshape(2, 2), strict=True):
            images, targets = in_float64(split)
            logits = images @ weights + bias
            outputs = linear.outputs_of(loss, logits.shape[1])
            if classes == 2:
                correct = (logits > linear.threshold(outputs)) == targets
            else:
                correct = logits.argmax(1) == split.labels
            one_hot = jax.nn.one_hot(split.labels, logits.shape[1])
            losses = LOSSES[loss](jnp.asarray(logits), one_hot)
            expected = losses.mean(), correct.mean()
            np.testing.assert_allclose(measured, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["squared_error", "brier"])
def test_three_classes_are_learned(loss):
    data = problem(3, 300, noise=10)
    _, after, history = fit(
        data, loss=loss, epochs=100, momentum=0.9, learning_rate=0.1
    )
    assert after.weights.shape == (6, 3)
    assert history[-1, 0] < history[0, 0]
    assert history[-1, 1] > 0.95


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    data = problem(2)
    first, same, other = (
        fit(data, seed=seed, batch_size=8, epochs=3)[1] for seed in (5, 5, 6)
    )
    for array, same_array in zip(first, same, strict=True):
        assert np.asarray(array).tobytes() == np.asarray(same_array).tobytes()
    assert not np.array_equal(first.weights, other.weights)


def test_the_order_of_the_batches_depends_on_the_seed():
    """Two models that both begin at 0 part ways."""
    data = problem(2)
    first, other = (
        fit(data, seed=seed, init_std=0, batch_size=8, epochs=3)[1] for seed in (5, 6)
    )
    assert not np.array_equal(first.weights, other.weights)


def test_untrained_weights_are_normal_and_scaled_by_init_std():
    params = train.init_params(0, 10_000, 2, 3.0)
    assert float(params.weights.std()) == pytest.approx(3, rel=0.03)
    assert float(params.weights.mean()) == pytest.approx(0, abs=0.1)
    assert not any(jnp.any(array) for array in train.init_params(0, 784, 1, 0.0))


def test_long_training_converges_to_scikit_learns_logistic_regression():
    """C weighs the summed loss, l2 is relative to the mean loss: C = 1 / (l2 N)."""
    data, l2 = problem(2, 200), 0.01
    _, after, _ = fit(
        data, l2=l2, epochs=500, batch_size=200, momentum=0.9, learning_rate=1.0
    )
    images, targets = in_float64(data)
    best = LogisticRegression(C=1 / (l2 * 200), tol=1e-10, max_iter=10_000)
    best.fit(images, targets[:, 0])
    np.testing.assert_allclose(after.weights[:, 0], best.coef_[0], atol=1e-3)
    np.testing.assert_allclose(after.bias, best.intercept_, atol=1e-3)


# On the bundled archive.


@pytest.fixture(scope="module")
def mnist(built: Path) -> Tensors:
    """Load the tensors of the bundled archive."""
    with chdir(built):
        return tensors.load_tensors()


@pytest.fixture
def _threshold_of_the_notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a threshold of 0 for every loss; compiled programs know another one."""
    monkeypatch.setattr(linear, "threshold", lambda _: 0.0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("_threshold_of_the_notebook")
def test_the_notebooks_nudge_moves_the_loss_but_not_the_accuracy(mnist):
    """On the untrained model of key 42."""
    params = train.init_params(42, 784, 1, 1.0)
    result = train.sensitivity(params, mnist.train, "squared_error")
    accuracy = pytest.approx(0.4487738, abs=5e-8)
    assert result["pixel"] == 269
    assert result["accuracy_before"] == result["accuracy_after"] == accuracy
    assert result["loss_before"] == pytest.approx(59.81387, abs=1e-5)
    assert result["loss_after"] == pytest.approx(59.81413, abs=1e-5)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> parameters.Train:
    """Load the train section of the repository's params.yaml."""
    monkeypatch.chdir(ROOT)
    return parameters.load(parameters.Train)


@pytest.fixture
def run_stage(
    mnist: Tensors, config: parameters.Train, monkeypatch: pytest.MonkeyPatch
) -> Stage:
    """Return a function that runs the stage with changed params: its outputs."""

    def run(tensors: Tensors = mnist, **changes: Any) -> dict[str, Any]:
        changed = msgspec.structs.replace(config, **changes)
        outputs: dict[str, Any] = {}
        monkeypatch.setattr(parameters, "load", lambda _: changed)
        monkeypatch.setattr(npz, "load_tensors", lambda **_: tensors)
        monkeypatch.setattr(artifacts, "publish", outputs.update)
        train.main()
        return outputs

    return run


def test_the_default_parameters_clearly_beat_the_baseline(run_stage, config):
    outputs = run_stage()
    history = outputs[artifacts.HISTORY]
    assert outputs[artifacts.MODEL]["weights"].shape == (784, 1)
    assert len(history) == config.epochs + 1
    assert history[-1]["valid_accuracy"] >= 0.984
    assert history[-1]["valid_loss"] <= 0.048


def test_steps_that_are_too_large_are_told(run_stage, capsys):
    """Above 2/L, gradient descent rises; and L is at most max |x|^2 / 4 here."""
    run_stage(epochs=2)
    assert capsys.readouterr().out == ""
    run_stage(epochs=2, learning_rate=1e3, schedule="constant")
    told = "after 2 of 2 epochs, the training loss was above that of the untrained"
    assert capsys.readouterr().out == f"{told} model: lower train.learning_rate\n"


@pytest.mark.parametrize(
    ("loss", "rate"), [("squared_error", 0.01), ("brier", 0.2), ("absolute", 0.2)]
)
def test_every_loss_learns_at_the_rate_that_params_yaml_suggests(run_stage, loss, rate):
    outputs = run_stage(loss=loss, learning_rate=rate)
    assert outputs[artifacts.HISTORY][-1]["valid_accuracy"] >= 0.96


def test_the_nudged_model_is_untrained_but_not_all_zeros(run_stage, config):
    """It has the notebook's loss, seed and deviation, though training begins at 0."""
    outputs = run_stage(loss="squared_error", learning_rate=0.01, epochs=1)
    experiment = outputs[artifacts.SENSITIVITY]
    assert config.init_std == 0
    assert experiment["pixel"] == 269
    assert experiment["loss_before"] == pytest.approx(59.81387, abs=1e-5)


def test_the_model_says_how_to_use_it(run_stage):
    arrays = run_stage(epochs=1)[artifacts.MODEL]
    assert arrays["classes"].tolist() == ["3", "7"]
    assert arrays["outputs"] == "sigmoid"
    assert arrays["image_size"].tolist() == [28, 28]
    assert tensors.parse_decoding("", arrays["decoding"]) == DECODING


@pytest.mark.parametrize(
    "changes", [{"l2": 100.0}, {"loss": "squared_error", "learning_rate": 0.2}]
)
def test_a_diverging_training_names_both_parameters_that_can_be_too_large(
    run_stage, config, changes
):
    """With the default learning rate, `l2: 100` is what is too large."""
    changed = msgspec.structs.replace(config, **changes)
    expected = (
        f"train.learning_rate: 0.2 and train.l2: {changed.l2} make {changed.loss} "
        "diverge to NaN or infinity: lower one of them"
    )
    with pytest.raises(UserError) as error:
        run_stage(**changes)
    assert str(error.value) == expected


def test_absolute_is_refused_for_three_classes_before_training(
    run_stage, mnist, monkeypatch
):
    three = mnist._replace(classes=["3", "5", "7"])
    monkeypatch.setattr(train, "fit", None)
    with pytest.raises(UserError) as error:
        run_stage(loss="absolute", tensors=three)
    assert str(error.value) == (
        "train.loss: absolute learns pairs of classes only: take log_loss for 3 classes"
    )
