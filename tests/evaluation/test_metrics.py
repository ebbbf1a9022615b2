"""The metrics compared with scikit-learn, and the interval with SciPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier

from stages.evaluation import metrics
from stages.evaluation.metrics import classification_metrics


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw actual and predicted labels; a class may be missing in either."""
    count = draw(st.sampled_from([2, 10]))
    label = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(label, label), min_size=1, max_size=60))
    actual, predicted = np.array(pairs, np.uint8).T
    return actual, predicted.astype(np.int64), count


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores, often tied, of positives and negatives: at least one of both."""
    score = st.sampled_from([-2.5, 0.0, 1e-9, 1.0, 7.0]) | st.floats(-1e6, 1e6)
    pairs = st.lists(st.tuples(score, st.booleans()), min_size=2)
    both = pairs.filter(lambda pairs: len({positive for _, positive in pairs}) == 2)
    scores, positive = zip(*draw(both), strict=True)
    return np.array(scores), np.array(positive)


@given(labelled())
def test_the_confusion_matrix_has_a_row_per_actual_class(data):
    actual, predicted, count = data
    matrix = metrics.confusion_matrix(actual, predicted, count)
    expected = sk.confusion_matrix(actual, predicted, labels=range(count))
    np.testing.assert_array_equal(matrix, expected)


@given(labelled())
def test_precision_recall_and_f1_equal_scikit_learn_even_without_a_class(data):
    actual, predicted, count = data
    classes = [f"class {i}" for i in range(count)]
    result = classification_metrics(actual, predicted, classes)
    expected = sk.precision_recall_fscore_support(
        actual, predicted, labels=range(count), zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert list(result[name]) == classes
        assert list(result[name].values()) == pytest.approx(values.tolist())
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(actual, predicted))


@pytest.mark.parametrize("count", [2, 10])
def test_balanced_accuracy_and_log_loss_equal_scikit_learn(count):
    random = np.random.default_rng(count)
    labels = np.append(np.arange(count), random.integers(count, size=300))
    actual = labels.astype(np.uint8)
    probabilities = random.dirichlet(np.ones(count), len(actual))
    predicted = probabilities.argmax(1)
    classes = [str(i) for i in range(count)]
    p_actual = probabilities[np.arange(len(actual)), actual]
    result = classification_metrics(actual, predicted, classes, None, p_actual)
    balanced_accuracy = sk.balanced_accuracy_score(actual, predicted)
    log_loss = sk.log_loss(actual, probabilities, labels=range(count))
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy)
    assert result["log_loss"] == pytest.approx(log_loss)


def test_a_probability_of_zero_costs_what_it_costs_in_scikit_learn():
    expected = sk.log_loss([0, 1], [[0, 1], [0.5, 0.5]])
    assert metrics.log_loss(np.array([0, 0.5])) == pytest.approx(expected)


@given(labelled())
def test_the_prior_log_loss_equals_that_of_scikit_learns_dummy_classifier(data):
    valid, _, count = data
    train = np.append(np.arange(count), valid[: len(valid) // 2]).astype(np.uint8)
    dummy = DummyClassifier(strategy="prior").fit(train, train)
    expected = sk.log_loss(valid, dummy.predict_proba(valid), labels=range(count))
    assert metrics.prior_log_loss(train, valid) == pytest.approx(expected)


def test_the_prior_log_loss_of_ten_equal_classes_is_the_log_of_ten():
    train, valid = np.arange(50) % 10, np.array([3, 3, 9])
    assert metrics.prior_log_loss(train, valid) == pytest.approx(np.log(10))


@given(scored())
def test_auc_equals_scikit_learn_with_and_without_ties(data):
    scores, positive = data
    expected = sk.roc_auc_score(positive, scores)
    assert metrics.auc(scores, positive) == pytest.approx(expected)


def test_the_first_class_is_the_positive_one_of_the_auc():
    labels, scores = np.array([0, 0, 1]), np.array([0.9, 0.8, 0.1])
    assert classification_metrics(labels, labels, ["3", "7"], scores)["auc"] == 1


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_the_wilson_interval_equals_scipy(total, share):
    correct = round(share * total)
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    interval = metrics.wilson(correct, total)
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("count", "given", "absent"),
    [(2, "scores", "log_loss"), (2, "p_actual", "auc"), (3, "", "auc")],
)
def test_auc_and_log_loss_appear_only_with_what_they_need(count, given, absent):
    actual, classes = np.arange(count), list("abc")[:count]
    optional: dict[str, Any] = {
        "scores": np.zeros(count),
        "p_actual": np.full(count, 1 / count),
    }
    arguments = {given: optional[given]} if given else {}
    result = classification_metrics(actual, actual, classes, **arguments)
    assert absent not in result
    assert len(result) == 7 + bool(given)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_mcnemar_equals_a_binomial_test_of_images_only_one_model_gets_right(pairs):
    first, second = np.array(pairs).T
    gains, losses, p = metrics.mcnemar(first, second)
    assert (gains, losses) == ((first > second).sum(), (second > first).sum())
    assert p == pytest.approx(
        binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
    )


def test_mcnemar_of_many_images_is_quick_and_exact():
    first = np.arange(40_000) < 20_300
    assert metrics.mcnemar(first, ~first)[2] == pytest.approx(
        binomtest(20_300, 40_000).pvalue
    )


@given(scored())
def test_roc_equals_scikit_learn(data):
    scores, positive = data
    false, true, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(metrics.roc(scores, positive), (false, true))


probabilities = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.99, 1.0])


@given(st.lists(st.tuples(st.booleans(), probabilities), min_size=2))
def test_calibration_equals_scikit_learn(rows):
    positive, scores = (np.array(column) for column in zip(*rows, strict=True))
    share, mean = calibration_curve(positive, scores, n_bins=10)
    found, hits, total = metrics.calibration(scores, positive)
    np.testing.assert_allclose((found, hits / total), (mean, share))
    assert total.sum() == len(rows)
