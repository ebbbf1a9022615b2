"""Training compared with plain float64 loops, scikit-learn and the notebook."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from scipy.optimize import approx_fprime  # type: ignore[import-untyped]
from scipy.special import expit, softmax  # type: ignore[import-untyped]
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from stages import model, train
from stages.model import Params, forward
from stages.plumbing import artifacts, devices, parameters, tensors
from stages.plumbing.tensors import Split, Tensors
from stages.train import LOSSES
from tests.builders import refusal
from tests.conftest import ROOT

F32 = jnp.float32
RANDOM = np.random.default_rng(3)
CONFIG = parameters.Train(
    seed=0,
    subtract_mean=True,
    loss="log_loss",
    learning_rate=0.5,
    schedule="constant",
    momentum=0.0,
    l2=0.0,
    batch_size=32,
    epochs=1,
)
Stage = Callable[..., dict[str, Any]]


# The losses and their gradients: float64 NumPy and scikit-learn.


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    if logits.shape[1] == 1:
        return sk.log_loss(targets[:, 0], expit(logits[:, 0]), labels=[0, 1])
    labels = range(logits.shape[1])
    return sk.log_loss(targets.argmax(1), softmax(logits, axis=1), labels=labels)


VALUES = {
    "squared_error": lambda logits, targets: ((logits - targets) ** 2).mean(),
    "brier": lambda logits, targets: ((expit(logits) - targets) ** 2).mean(),
    "absolute": lambda logits, targets: np.abs(expit(logits) - targets).mean(),
    "log_loss": cross_entropy,
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_equal_scikit_learn_and_finite_differences(loss, count):
    images = RANDOM.integers(256, size=(40, 12)) / 256
    labels = RANDOM.integers(max(count, 2), size=40)
    targets = (labels[:, None] == np.arange(count)).astype(float)
    numbers = RANDOM.normal(size=13 * count).astype(np.float32)

    def mean_loss(numbers: jax.Array) -> jax.Array:
        weights, bias = numbers[count:].reshape(12, count), numbers[:count]
        logits = forward({"weights": weights, "bias": bias}, F32(images))
        return LOSSES[loss](logits, F32(targets)).mean()

    def loss_in_float64(numbers: np.ndarray) -> float:
        logits = images @ numbers[count:].reshape(12, count) + numbers[:count]
        return VALUES[loss](logits, targets)

    value, grad = jax.value_and_grad(mean_loss)(F32(numbers))
    assert value == pytest.approx(loss_in_float64(numbers.astype(float)), rel=1e-5)
    expected = approx_fprime(numbers.astype(float), loss_in_float64, 1e-7)
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("loss", ["brier", "absolute", "log_loss"])
def test_losses_and_gradients_of_extreme_logits_are_finite(loss, count):
    logits = jnp.full((2, count), F32([[1e30], [-1e30]]))

    def mean_loss(logits: jax.Array) -> jax.Array:
        return LOSSES[loss](logits, jnp.eye(2, count)).mean()

    value, grads = jax.value_and_grad(mean_loss)(logits)
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


# Training on problems small enough for a plain loop.


def problem(classes: int, size: int = 32, noise: int = 40) -> Split:
    """Draw images (size, 3, 2, 1) in which noise blurs one brighter pixel per class."""
    labels = (np.arange(size) % classes).astype(np.uint8)
    images = RANDOM.normal(90, noise, (size, 6)) + 90 * np.eye(classes, 6)[labels]
    return Split(
        np.clip(images, 0, 255).astype(np.uint8).reshape(size, 3, 2, 1), labels
    )


def fit(
    data: Split,
    valid: Split | None = None,
    init_std: float = 0.5,
    mean: Any = 0,
    **changes: Any,
) -> tuple[Params, Params, np.ndarray]:
    """Train on a problem: params before and after, and the history."""
    config = msgspec.structs.replace(CONFIG, **changes)
    classes = int(data.labels.max()) + 1
    key, count = jax.random.key(config.seed), 1 if classes == 2 else classes
    before = model.init(key, data.images.shape[1:], count, init_std)
    after, history = train.fit(before, data, valid or data, config, mean)
    return before, after, history


def in_float64(data: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of pixels in [0, 1], and targets: 1 for the first class of a pair."""
    return data.images.reshape(len(data.images), -1) / 255, 1.0 - data.labels[:, None]


def gradient(
    weights: Any, bias: Any, data: Split, mean: Any = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of the log loss of a pair, in float64."""
    images, targets = in_float64(data)
    images = images - np.ravel(mean)
    p = expit(images @ np.asarray(weights, float) + np.asarray(bias, float))
    slope = (p - targets) / len(images)
    return images.T @ slope, slope.sum(0)


@pytest.mark.parametrize("batches", [1, 2, 4, 6])
def test_more_images_than_fit_the_memory_at_a_time_give_the_same_bytes(
    monkeypatch, batches
):
    """An epoch has 11 batches: the last chunk of several is shorter."""
    data, valid = problem(3, 100), problem(3, 33)
    _, whole, history = fit(data, valid, batch_size=9, epochs=3)
    monkeypatch.setattr(devices, "BATCHES_BYTES", 6 * 9 * batches)
    monkeypatch.setattr(devices, "KEPT_BYTES", 0)
    _, chunked, chunked_history = fit(data, valid, batch_size=9, epochs=3)
    assert chunked_history.tobytes() == history.tobytes()
    for name, array in whole.items():
        assert chunked[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("epochs", "momentum", "l2", "schedule"),
    [
        (1, 0.9, 0.1, "constant"),
        (7, 0.0, 0.0, "constant"),
        (7, 0.9, 0.0, "constant"),
        (7, 0.0, 0.1, "constant"),
        (7, 0.0, 0.0, "cooldown"),
        (7, 0.9, 0.1, "cooldown"),
    ],
)
def test_training_equals_a_plain_loop_in_float64(epochs, momentum, l2, schedule):
    """Heavy-ball momentum, l2 on the weights only, and a linear cooldown."""
    data = problem(2)
    mean = data.images.mean(0) / 255
    shares = [1, 1, 1, 1, 1, 2 / 3, 1 / 3] if schedule == "cooldown" else [1] * epochs
    changes = {"epochs": epochs, "momentum": momentum, "l2": l2, "schedule": schedule}
    before, after, _ = fit(data, mean=np.float32(mean), **changes)
    weights, bias = (np.asarray(before[name], float) for name in ("weights", "bias"))
    velocity: list[Any] = [0, 0]
    for share in shares:
        grads = gradient(weights, bias, data, mean)
        velocity[0] = momentum * velocity[0] + grads[0] + l2 * weights
        velocity[1] = momentum * velocity[1] + grads[1]
        weights = weights - 0.5 * share * velocity[0]
        bias = bias - 0.5 * share * velocity[1]
    np.testing.assert_allclose(after["weights"], weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["bias"], bias, rtol=1e-4, atol=1e-6)


def test_an_epoch_takes_every_image_once():
    """Steps too small to move the weights sum up to the gradient, in any order."""
    data, rate, batches = problem(2), 1e-3, 32 / 4
    before, after, _ = fit(data, batch_size=4, learning_rate=rate)
    weights_gradient, _ = gradient(**before, data=data)
    total = (before["weights"] - after["weights"]) / rate
    np.testing.assert_allclose(total, batches * weights_gradient, rtol=0.05, atol=2e-3)


def test_an_incomplete_batch_is_left_out():
    """Of three images in batches of two, an epoch takes one step on two of them."""
    data = problem(2, 3)
    before, after, _ = fit(data, batch_size=2, learning_rate=1.0)
    pairs = ([0, 1], [0, 2], [1, 2])
    batches = [Split(data.images[pair], data.labels[pair]) for pair in pairs]
    step = before["weights"] - after["weights"]
    assert any(
        np.allclose(step, gradient(**before, data=b)[0], rtol=1e-3, atol=1e-6)
        for b in batches
    )


@pytest.mark.parametrize("size", [1, 31, 32, 33])
@pytest.mark.parametrize(("loss", "classes"), [("squared_error", 2), ("log_loss", 3)])
def test_history_begins_untrained_and_ends_with_the_returned_model(
    monkeypatch, loss, classes, size
):
    """And counts every image once, in blocks of three batches of 8."""
    monkeypatch.setattr(devices, "BLOCK_BYTES", 6 * 24)
    data, valid = problem(classes), problem(classes, size)
    changes: dict[str, Any] = {"loss": loss, "epochs": 3, "learning_rate": 0.05}
    before, after, history = fit(data, valid, batch_size=8, **changes)
    assert history.shape == (4, 4)
    for params, row in ((before, history[0]), (after, history[-1])):
        for split, measured in zip((data, valid), row.reshape(2, 2), strict=True):
            images, targets = in_float64(split)
            logits = images @ params["weights"] + params["bias"]
            if classes == 2:
                correct = (logits > 0.5) == targets
            else:
                targets = np.eye(3)[split.labels]
                correct = logits.argmax(1) == split.labels
            expected = VALUES[loss](np.asarray(logits), targets), correct.mean()
            np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_of_many_images_the_same_random_sample_is_measured_each_time(monkeypatch):
    """A model that stays the same has the same loss: within four standard errors."""
    monkeypatch.setattr(train, "SAMPLE", 100)
    data = problem(2, 400)
    _, after, history = fit(data, learning_rate=0.0, epochs=2)
    np.testing.assert_array_equal(history, history[[0, 0, 0]])
    loss, accuracy, *valid = history[0]
    assert valid == [loss, accuracy]  # of the same images
    images, targets = in_float64(data)
    p = expit(images @ after["weights"] + after["bias"])
    losses = -np.log(np.where(targets, p, 1 - p))
    assert 0 < abs(loss - losses.mean()) < 4 * losses.std() / 10
    assert 100 * accuracy == pytest.approx(round(100 * accuracy))


@pytest.mark.parametrize("init_std", [0.5, 0.0])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(init_std):
    """Models that begin at 0 part ways, too: the seed decides the batches."""
    data = problem(2)
    first, same, other = (
        fit(data, seed=seed, init_std=init_std, batch_size=8, epochs=3)[1]
        for seed in (5, 5, 6)
    )
    for name, array in first.items():
        assert array.tobytes() == same[name].tobytes()
    assert not np.array_equal(first["weights"], other["weights"])


def test_long_training_converges_to_scikit_learns_logistic_regression():
    """C weighs the summed loss, l2 is relative to the mean loss: C = 1 / (l2 N)."""
    data, l2 = problem(2, 200), 0.01
    changes: dict[str, Any] = {"epochs": 500, "batch_size": 200, "momentum": 0.9}
    _, after, _ = fit(data, l2=l2, learning_rate=1.0, **changes)
    images, targets = in_float64(data)
    best = LogisticRegression(C=1 / (l2 * 200), tol=1e-10, max_iter=10_000)
    best.fit(images, targets[:, 0])
    np.testing.assert_allclose(after["weights"][:, 0], best.coef_[0], atol=1e-3)
    np.testing.assert_allclose(after["bias"], best.intercept_, atol=1e-3)


# When to stop.


def rates_of(losses: Callable[[int], float], **changes: Any) -> tuple[list, list]:
    """Return the learning rates of a run whose loss after epoch i is losses(i)."""
    config = msgspec.structs.replace(CONFIG, learning_rate=1.0, epochs=60, **changes)
    seen, rates = [losses(0)], []
    for rate in train.learning_rates(config, seen, window=2):
        rates.append(rate)
        seen.append(losses(len(rates)))
    return rates, [*train.advice(seen, config, images=100 * CONFIG.batch_size)]


@pytest.mark.parametrize(
    ("losses", "constant", "advice"),
    [
        (
            lambda i: 0.98**i,
            40,
            "not converged: .* was still falling by 2 % per epoch: raise",
        ),
        (lambda i: 0.5 + 0.5**i, 14, None),  # it falls by about 9 / 2^i in two epochs
        (lambda _: 1.0, 4, None),
        (
            lambda i: 1.0 + i,
            4,
            "after 6 of 6 epochs, .* above .* untrained model: lower",
        ),
        (lambda _: np.nan, 4, None),
    ],
)
def test_the_learning_rate_goes_down_once_the_loss_stops_falling(
    losses, constant, advice
):
    """At the latest after two thirds of the epochs, and for half as many epochs."""
    rates, lines = rates_of(losses, schedule="cooldown")
    down = constant // 2
    linear = [1 - (i + 1) / (down + 1) for i in range(down)]
    np.testing.assert_allclose(rates, [1.0] * constant + linear)
    assert [bool(re.match(advice or "", line)) for line in lines] == [True] * bool(
        advice
    )
    rates, _ = rates_of(losses, schedule="constant")
    assert rates == [1.0] * (60 if constant == 40 else constant)


# On the bundled archive.


def test_the_notebooks_nudge_moves_the_loss_but_not_the_accuracy(mnist):
    """On the untrained model of key 42, whose outputs the notebook cuts at 0."""
    params = model.init(jax.random.key(42), (28, 28), 1)
    result = train.sensitivity(params, mnist.train, "squared_error")
    assert result["pixel"] == 269
    assert result["loss_before"] == pytest.approx(59.81387, abs=1e-5)
    assert result["loss_after"] == pytest.approx(59.81413, abs=1e-5)
    cut_at_0 = train.sensitivity(params, mnist.train, "brier")
    accuracy = pytest.approx(0.4487738, abs=5e-8)
    assert cut_at_0["accuracy_before"] == cut_at_0["accuracy_after"] == accuracy


@pytest.fixture
def run_stage(mnist: Tensors, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return a function that runs the stage with changed params: its outputs."""
    monkeypatch.chdir(ROOT)
    load = parameters.load

    def run(data: Tensors = mnist, **changes: Any) -> dict[str, Any]:
        def load_changed(section: type[parameters.Section]) -> parameters.Section:
            names = {*section.__struct_fields__} & {*changes}
            changed = {name: changes[name] for name in names}
            return msgspec.structs.replace(load(section), **changed)

        written: dict[str, Any] = {}
        monkeypatch.setattr(parameters, "load", load_changed)
        monkeypatch.setattr(tensors, "load_tensors", lambda **_: data)
        monkeypatch.setattr(artifacts, "publish", written.update)
        train.main()
        return written

    return run


def test_the_default_parameters_clearly_beat_the_baseline(built):
    history = artifacts.load_csv(str(built / artifacts.HISTORY))
    assert len(history) <= 21
    assert history[-1]["valid_accuracy"] >= 0.9838
    assert history[-1]["valid_loss"] <= 0.0470


def test_steps_that_are_too_large_are_reported(run_stage, capsys):
    """Above 2/L, gradient descent rises; and L is at most max |x|^2 / 4 here."""
    run_stage(epochs=20)
    assert capsys.readouterr().out == ""
    run_stage(epochs=2, learning_rate=1e3, schedule="constant")
    line = "after 2 of 2 epochs, the training loss was above that of the untrained"
    assert capsys.readouterr().out == f"{line} model: lower train.learning_rate\n"


@pytest.mark.parametrize(
    ("loss", "rate"), [("squared_error", 0.05), ("brier", 0.2), ("absolute", 0.2)]
)
def test_every_loss_learns_at_the_rate_that_params_yaml_suggests(run_stage, loss, rate):
    """The sensitivity test nudges the notebook's random model, not one of zeros."""
    written = run_stage(loss=loss, learning_rate=rate)
    assert written[artifacts.HISTORY][-1]["valid_accuracy"] >= 0.96
    nudged = written[artifacts.SENSITIVITY]
    assert nudged["pixel"] == 269
    assert nudged["loss_before"] != nudged["loss_after"]


def test_without_the_mean_the_notebooks_figures_stay(run_stage):
    """As docs/lesson.md shows them: its random model, untrained, and its nudge."""
    notebook = {"subtract_mean": False, "init_std": 1.0, "epochs": 1}
    written = run_stage(loss="brier", **notebook)
    row = written[artifacts.HISTORY][0]
    assert row["train_loss"] == pytest.approx(0.493380, abs=5e-7)
    assert row["train_accuracy"] == pytest.approx(0.4487738, abs=5e-8)
    assert not written[artifacts.MODEL]["mean"].any()
    written = run_stage(loss="squared_error", learning_rate=0.01, **notebook)
    nudged = written[artifacts.SENSITIVITY]
    assert nudged["loss_before"] == pytest.approx(59.81387, abs=1e-5)


@pytest.mark.parametrize(
    "changes", [{"l2": 100.0}, {"loss": "squared_error", "learning_rate": 0.4}]
)
def test_a_diverging_training_names_both_parameters_that_can_be_too_large(
    run_stage, changes
):
    """With the default learning rate, `l2: 100` is what is too large."""
    changed = {"loss": "log_loss", "learning_rate": 0.2, "l2": 5e-4} | changes
    assert refusal(run_stage, **changed) == (
        f"train.learning_rate: {changed['learning_rate']} and train.l2: "
        f"{changed['l2']} make "
        f"{changed['loss']} diverge to NaN or infinity: lower one of them"
    )


def test_absolute_is_refused_for_three_classes_before_training(
    run_stage, mnist, monkeypatch
):
    monkeypatch.setattr(train, "fit", None)
    three = mnist._replace(classes=["3", "5", "7"])
    line = refusal(run_stage, loss="absolute", data=three)
    assert line == (
        "train.loss: absolute learns pairs of classes only: use log_loss for 3 classes"
    )


# Other models.


def two_layers(params: Params, images: jax.Array) -> jax.Array:
    """Run a model with hidden units."""
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ params["first"] + 0.1)
    return hidden @ params["second"]


@pytest.mark.parametrize(
    ("first", "second", "stuck"),
    [
        (np.zeros((6, 4)), np.zeros((4, 1)), "first"),
        (np.ones((6, 4)), np.ones((4, 3)), "first"),
        (RANDOM.normal(size=(6, 4)), np.zeros((4, 1)), None),
        (np.zeros((6, 4)), RANDOM.normal(size=(4, 3)), None),
    ],
)
def test_hidden_units_that_would_stay_equal_are_refused(
    monkeypatch, first, second, stuck
):
    """Equal units that get different gradients part ways, as output units do."""
    monkeypatch.setattr(train, "forward", two_layers)

    def check() -> None:
        params = {"first": first, "second": second}
        train.check_symmetry(params, (3, 2), "log_loss")

    if stuck:
        line = f"all units of {stuck} start equal.*at random"
        assert re.search(line, refusal(check))
    else:
        check()


def test_a_model_without_weights_for_each_pixel_has_no_sensitivity_test():
    assert train.sensitivity({"kernel": np.ones((3, 3))}, problem(2), "brier") == {}


@pytest.mark.parametrize(
    ("params", "run", "problem"),
    [
        (
            {"w": np.ones((6, 1))},
            forward,
            "init has to return a dict of float32 arrays",
        ),
        (
            [F32(np.ones((6, 1)))],
            forward,
            "init has to return a dict of float32 arrays",
        ),
        ({"w": {"nested": F32(np.ones(1))}}, forward, "a dict of float32 arrays"),
        (
            {"w": F32(np.ones(1))},
            lambda _, x: x[:, 0, 0],
            r"shape \(2, 1\) for 2 images",
        ),
        ({"w": F32(np.ones(1))}, lambda _, x: x[:1, 0, :1], r"images, not \(1, 1\)"),
    ],
)
def test_a_model_of_the_wrong_form_is_refused_before_it_is_trained(
    monkeypatch, params, run, problem
):
    monkeypatch.setattr(train, "forward", run)
    line = refusal(train.check_model, params, (3, 2), 1)
    assert re.match(f"stages/model.py: .*{problem}", line)
