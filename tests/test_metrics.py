"""The measures against scikit-learn, and the interval against SciPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm  # type: ignore[import-untyped]
from sklearn import metrics as sk

from stages import metrics


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Actual and predicted labels; some classes may never occur or never be predicted."""
    count = draw(st.sampled_from([2, 10]))
    label = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(label, label), min_size=1, max_size=60))
    actual, predicted = np.array(pairs, np.uint8).T
    return actual, predicted.astype(np.int64), count


@given(labelled())
def test_confusion_matrix_has_a_row_for_each_actual_class(data):
    actual, predicted, count = data
    expected = sk.confusion_matrix(actual, predicted, labels=range(count))
    np.testing.assert_array_equal(metrics.confusion_matrix(actual, predicted, count), expected)


@given(labelled())
def test_precision_recall_and_f1_equal_scikit_learn_also_where_a_class_is_missing(data):
    actual, predicted, count = data
    classes = [f"class {i}" for i in range(count)]
    result = metrics.measures(actual, predicted, classes)
    expected = sk.precision_recall_fscore_support(actual, predicted, labels=range(count), zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert list(result[name]) == classes
        assert list(result[name].values()) == pytest.approx(values.tolist())
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(actual, predicted))


@pytest.mark.parametrize("count", [2, 10])
def test_balanced_accuracy_and_log_loss_equal_scikit_learn(count):
    random = np.random.default_rng(count)
    actual = np.append(np.arange(count), random.integers(count, size=300)).astype(np.uint8)
    probabilities = random.dirichlet(np.ones(count), len(actual))
    predicted = probabilities.argmax(1)
    result = metrics.measures(actual, predicted, [str(i) for i in range(count)], None, probabilities)
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(actual, predicted))
    assert result["log_loss"] == pytest.approx(sk.log_loss(actual, probabilities, labels=range(count)))


def test_a_probability_of_zero_costs_no_more_than_scikit_learn_says():
    actual, probabilities = np.array([0, 1]), np.array([[0.0, 1.0], [0.5, 0.5]])
    assert metrics.log_loss(probabilities, actual) == pytest.approx(sk.log_loss(actual, probabilities))


@given(
    st.lists(st.tuples(st.sampled_from([-2.5, 0.0, 1e-9, 1.0, 7.0]) | st.floats(-1e6, 1e6), st.booleans()), min_size=2)
    .map(lambda pairs: ([score for score, _ in pairs], [positive for _, positive in pairs]))
    .filter(lambda lists: len(set(lists[1])) == 2)
)
def test_auc_equals_scikit_learn_with_ties_and_without(lists):
    scores, positive = np.array(lists[0]), np.array(lists[1])
    assert metrics.auc(scores, positive) == pytest.approx(sk.roc_auc_score(positive, scores))


@pytest.mark.parametrize(("scores", "expected"), [([2, 1, 0, 0], 1), ([0, 0, 1, 2], 0), ([5, 5, 5, 5], 0.5)])
def test_auc_of_perfect_reversed_and_constant_scores(scores, expected):
    assert metrics.auc(np.array(scores, float), np.array([True, True, False, False])) == expected


def test_the_first_class_is_the_positive_one_of_the_auc():
    result = metrics.measures(np.array([0, 0, 1]), np.array([0, 0, 1]), ["3", "7"], np.array([0.9, 0.8, 0.1]))
    assert result["auc"] == 1


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (1, 3), (926 + 1013, 2038), (7, 1_000_000)])
def test_wilson_interval_equals_scipy(correct, total):
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_bounds_solve_the_score_equation_around_the_proportion(proportion):
    """The bounds p are where |share - p| is 1.96 standard errors of p (Wilson 1927)."""
    correct, total = proportion
    low, high = metrics.wilson(correct, total)
    assert -1e-12 <= low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= high <= 1 + 1e-12
    for p in (low, high):
        assert (correct / total - p) ** 2 == pytest.approx(norm.ppf(0.975) ** 2 * p * (1 - p) / total, abs=1e-9)


@pytest.mark.parametrize(
    ("count", "given", "absent"), [(2, "scores", "log_loss"), (2, "probabilities", "auc"), (3, "", "auc")]
)
def test_auc_and_log_loss_appear_only_with_what_they_need(count, given, absent):
    actual = np.arange(count)
    more: dict[str, Any] = {"scores": np.zeros(count), "probabilities": np.full((count, count), 1 / count)}
    result = metrics.measures(actual, actual, list("abc")[:count], **{k: v for k, v in more.items() if k == given})
    assert absent not in result
    assert len(result) == 7 + bool(given)
