"""Probabilities and labels, also for extreme logits."""

import warnings
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax  # type: ignore[import-untyped]

from stages.evaluation.outputs import outputs_of, predicted_labels, probabilities
from stages.plumbing.errors import UserError
from stages.train import LOSSES

EXTREME = [-1e300, -1e4, -746.0, -1.0, -1e-300, 0.0, 1e-300, 1.0, 746.0, 1e4, 1e300]
RANDOM = np.random.default_rng(0)
PAIR = RANDOM.normal(scale=20, size=(200, 1))
SEVERAL = RANDOM.normal(scale=20, size=(200, 4))
MEANINGS = [("sigmoid", 1), ("target", 1)]
MEANINGS += [("softmax", 3), ("one_versus_rest", 3), ("target", 3)]


@pytest.mark.parametrize(
    ("logits", "meaning", "expected"),
    [
        (PAIR, "sigmoid", np.hstack([expit(PAIR), expit(-PAIR)])),
        (SEVERAL, "softmax", softmax(SEVERAL, axis=1)),
        (
            SEVERAL,
            "one_versus_rest",  # the sigmoids, scaled to a sum of 1
            expit(SEVERAL) / expit(SEVERAL).sum(1, keepdims=True),
        ),
        (  # a target is the probability itself, clipped
            np.array([[-0.5], [0], [0.25], [1], [3]]),
            "target",
            [[0, 1], [0, 1], [0.25, 0.75], [1, 0], [1, 0]],
        ),
        (
            np.array([[3, 0.5, -1], [0.25, 0.25, 0.5]]),
            "target",
            [[2 / 3, 1 / 3, 0], [0.25, 0.25, 0.5]],
        ),
    ],
)
def test_probabilities_are_what_the_outputs_mean(logits, meaning, expected):
    p = probabilities(logits, meaning)
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
    assert outputs_of(loss, 1) == pair
    if several:
        assert outputs_of(loss, 3) == several
    else:
        with pytest.raises(UserError, match="use log_loss for 3 classes"):
            outputs_of(loss, 3)


@pytest.mark.parametrize(("meaning", "count"), MEANINGS)
def test_extreme_logits_give_probabilities_that_sum_to_1_without_warnings(
    meaning, count
):
    logits = np.array(list(product(EXTREME, repeat=count)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = probabilities(logits, meaning)
    assert p.shape == (len(logits), max(count, 2))
    assert ((p >= 0) & (p <= 1)).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize(("meaning", "count"), MEANINGS)
def test_the_predicted_label_is_the_most_probable_one_in_numpy_and_jax(meaning, count):
    logits = RANDOM.uniform(-0.5, 1.5, size=(500, count))
    p = probabilities(logits, meaning)
    predicted = predicted_labels(logits, meaning)
    np.testing.assert_allclose(p[np.arange(500), predicted], p.max(1))
    by_jax = predicted_labels(jnp.float32(logits), meaning)
    np.testing.assert_array_equal(by_jax, predicted)
