"""The linear model's logits, probabilities and labels, also for extreme logits."""

import warnings
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax  # type: ignore[import-untyped]
from sklearn import metrics as sk

from stages.evaluation import outputs
from stages.evaluation.model_file import Linear
from stages.plumbing import artifacts, npz
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import Decoding
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


def test_a_pair_has_the_probability_sigmoid_of_the_logit():
    logits = RANDOM.normal(scale=20, size=(200, 1))
    expected = np.hstack([expit(logits), expit(-logits)])
    p = linear.probabilities(logits, "sigmoid")
    np.testing.assert_allclose(p, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("prediction", "first"), [(-0.5, 0), (0, 0), (0.25, 0.25), (1, 1), (3, 1)]
)
def test_a_predicted_target_is_the_probability_itself_clipped(prediction, first):
    p = linear.probabilities(np.array([[prediction]]), "target")
    np.testing.assert_allclose(p, [[first, 1 - first]], rtol=1e-12, atol=1e-300)


def test_softmax_equals_scipy():
    logits = RANDOM.normal(scale=20, size=(200, 4))
    p = linear.probabilities(logits, "softmax")
    np.testing.assert_allclose(p, softmax(logits, axis=1), rtol=1e-12)


def test_one_versus_rest_scales_the_sigmoids_to_a_sum_of_1():
    logits = RANDOM.normal(size=(200, 4))
    expected = expit(logits) / expit(logits).sum(1, keepdims=True)
    p = linear.probabilities(logits, "one_versus_rest")
    np.testing.assert_allclose(p, expected, rtol=1e-12)


def test_predicted_targets_of_several_classes_are_clipped_and_scaled_to_a_sum_of_1():
    predictions = np.array([[3, 0.5, -1], [0.25, 0.25, 0.5]])
    expected = [[2 / 3, 1 / 3, 0], [0.25, 0.25, 0.5]]
    p = linear.probabilities(predictions, "target")
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(
    ("loss", "pair", "several"),
    [
        ("squared_error", "target", "target"),
        ("brier", "sigmoid", "one_versus_rest"),
        ("absolute", "sigmoid", None),
        ("log_loss", "sigmoid", "softmax"),
    ],
)
def test_the_loss_decides_what_the_outputs_mean(loss, pair, several):
    assert loss in LOSSES
    assert linear.outputs_of(loss, 1) == pair
    if several:
        assert linear.outputs_of(loss, 3) == several
    else:
        with pytest.raises(UserError, match="take log_loss for 3 classes"):
            linear.outputs_of(loss, 3)


MEANINGS = [
    *[("sigmoid", 1), ("target", 1), ("softmax", 3), ("one_versus_rest", 3)],
    ("target", 3),
]


@pytest.mark.parametrize(("outputs", "count"), MEANINGS)
def test_extreme_logits_give_probabilities_that_sum_to_1_without_warnings(
    outputs, count
):
    logits = np.array(list(product(EXTREME, repeat=count)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = linear.probabilities(logits, outputs)
    assert p.shape == (len(logits), max(count, 2))
    assert ((p >= 0) & (p <= 1)).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize(("outputs", "count"), MEANINGS)
def test_the_predicted_label_is_the_most_probable_one(outputs, count):
    logits = RANDOM.uniform(-0.5, 1.5, size=(500, count))
    p = linear.probabilities(logits, outputs)
    predicted = linear.predicted_labels(logits, outputs)
    np.testing.assert_allclose(p[np.arange(500), predicted], p.max(1))


@pytest.mark.parametrize(
    ("loss", "logit", "expected"),
    [
        *[("squared_error", 0.51, 0), ("squared_error", 0.49, 1)],
        *[("brier", 0.01, 0), ("brier", -0.01, 1)],
        *[("absolute", 0.01, 0), ("absolute", -0.01, 1)],
        *[("log_loss", 0.01, 0), ("log_loss", -0.01, 1)],
    ],
)
def test_a_pair_has_its_threshold_at_half_the_target_or_a_logit_of_0(
    loss, logit, expected
):
    outputs = linear.outputs_of(loss, 1)
    assert linear.predicted_labels(np.array([[logit]]), outputs) == [expected]


@pytest.mark.parametrize(
    ("logits", "outputs", "accuracy"),
    [
        ([0.6, 0.4, 0.4, 0.6], "target", 1),
        ([0.6, 0.4, 0.4, 0.6], "sigmoid", 0.5),
        ([-1, -1, -1, 1], "sigmoid", 0.75),
    ],
)
def test_the_accuracy_of_a_pair_in_jax_depends_on_the_threshold(
    logits, outputs, accuracy
):
    predicted = linear.predicted_labels(jnp.float32(logits)[:, None], outputs)
    assert (predicted == jnp.array([0, 1, 1, 0])).mean() == accuracy


def test_the_accuracy_of_several_classes_in_jax_equals_scikit_learn():
    logits = RANDOM.normal(size=(60, 4)).astype(np.float32)
    labels = RANDOM.integers(4, size=60)
    predicted = linear.predicted_labels(jnp.float32(logits), "softmax")
    expected = sk.accuracy_score(labels, logits.argmax(1))
    assert (predicted == labels).mean() == pytest.approx(expected)


def model(classes: int, outputs: str) -> Linear:
    """Draw a model for images of 4 x 6."""
    count = 1 if classes == 2 else classes
    return Linear(
        RANDOM.normal(size=(24, count)).astype(np.float32),
        RANDOM.normal(size=count).astype(np.float32),
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
    written = model(count if count > 1 else 2, outputs)
    artifacts.publish({path: written.to_arrays()})
    read = Linear.load(path)
    np.testing.assert_array_equal(read.weights, written.weights)
    np.testing.assert_array_equal(read.bias, written.bias)
    assert read[2:] == written[2:]


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": np.array(["3"])},
        {"classes": np.array(["3", "5", "7"])},
        {"outputs": np.array("softmax")},
        {"outputs": np.array("log_loss")},
        {"image_size": np.array([4, 5])},
        {"image_size": np.array([24])},
        {"bias": np.zeros(2, np.float32)},
        {"decoding": tensors.format_decoding(Decoding((6, 4), False, None))},
        {"decoding": np.array("{}")},
        {"decoding": np.array("resized")},
    ],
)
def test_a_model_whose_arrays_do_not_fit_together_is_refused(path, changes):
    artifacts.publish({path: model(2, "sigmoid").to_arrays() | changes})
    with pytest.raises(UserError, match=r"models/model.npz is damaged \(.*run dvc re"):
        Linear.load(path)


def test_a_model_that_does_not_say_how_to_use_it_is_refused(path):
    """Earlier versions of the train stage wrote weights and bias only."""
    arrays = model(2, "sigmoid").to_arrays()
    artifacts.publish({path: {name: arrays[name] for name in ("weights", "bias")}})
    with pytest.raises(
        UserError, match=r"classes is not a file.*delete it and run dvc repro"
    ):
        Linear.load(path)
