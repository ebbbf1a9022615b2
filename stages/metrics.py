"""How good a classifier is: the measures that metrics/*.json hold."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: a 95 % interval lies between -Z95 and Z95."""

Labels = NDArray[np.integer]
Floats = NDArray[np.floating]


def confusion_matrix(actual: Labels, predicted: Labels, count: int) -> NDArray[np.int64]:
    """How often each actual class (row) was predicted as each class (column): (count, count)."""
    return np.bincount(actual.astype(np.int64) * count + predicted, minlength=count * count).reshape(count, count)


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927, without continuity correction)."""
    p, z2 = correct / total, Z95**2 / total
    centre, half = p + z2 / 2, Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total))
    return (centre - half) / (1 + z2), (centre + half) / (1 + z2)


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: how often a positive scores above a negative, a tie counting half.

    Scores and positive are (N,); computed from ranks (Mann-Whitney U).
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def log_loss(probabilities: Floats, actual: Labels) -> float:
    """The mean of -log of the probability (N, K) given to the actual class, probabilities cut off at 2.2e-16."""
    chosen = probabilities[np.arange(len(actual)), actual]
    return float(-np.log(np.clip(chosen, np.finfo(np.float64).eps, 1)).mean())


def measures(
    actual: Labels,
    predicted: Labels,
    classes: list[str],
    scores: Floats | None = None,
    probabilities: Floats | None = None,
) -> dict[str, Any]:
    """The content of metrics/*.json for labels (N,).

    With `scores` (N,), higher for the first class of a pair, it has the AUC; with `probabilities` (N, K) the
    log loss. Precision and F1 of a class that is never predicted are 0.
    """
    matrix = confusion_matrix(actual, predicted, len(classes))
    hits, total = np.diag(matrix), int(matrix.sum())
    precision, recall = (hits / np.maximum(matrix.sum(axis), 1) for axis in (0, 1))
    f1 = 2 * hits / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
    low, high = wilson(int(hits.sum()), total)
    result: dict[str, Any] = {
        "accuracy": hits.sum() / total,
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": recall.mean(),
    }
    if probabilities is not None:
        result["log_loss"] = log_loss(probabilities, actual)
    if scores is not None:
        result["auc"] = auc(scores, actual == 0)
    for name, values in {"precision": precision, "recall": recall, "f1": f1}.items():
        result[name] = dict(zip(classes, values.tolist(), strict=True))
    return result


def mcnemar(right: NDArray[np.bool_], other_right: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Whether two classifiers, each right or wrong about the same images (N,), differ by more than chance.

    How many images only the first gets right, how many only the second, and the two-sided exact p: chance alone
    would deal these images out like tosses of a coin (McNemar 1947; exact binomial form).
    """
    first, second = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    n, term, tail = first + second, 1, 0
    for k in range(min(first, second) + 1):  # whole numbers, so that p is exact to the last bit
        tail += term
        term = term * (n - k) // (k + 1)
    return first, second, min(1.0, 2 * tail / 2**n)


def roc(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The ROC curve of scores (N,): false and true positive rates (M,), from (0, 0) to (1, 1) (Fawcett 2006).

    A point for each threshold between two different scores, so M - 1 is the number of different scores.
    """
    values, place = np.unique(-scores, return_inverse=True)
    hits, total = (np.bincount(place, weights, len(values)) for weights in (positive, np.ones(len(scores))))
    false, true = (np.concatenate([[0.0], np.cumsum(each) / each.sum()]) for each in (total - hits, hits))
    return false, true


def calibration(
    probabilities: Floats, positive: NDArray[np.bool_], bins: int = 10
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """A reliability diagram (Murphy and Winkler 1977) of the probabilities (N,) given to the positive class.

    For each of `bins` equal bins that holds a probability: their mean, how many of them are positive, and
    how many they are.
    """
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)
    total = np.bincount(place, minlength=bins)
    filled = total > 0
    sums = np.bincount(place, probabilities, bins)[filled]
    return sums / total[filled], np.bincount(place[positive], minlength=bins)[filled], total[filled]
