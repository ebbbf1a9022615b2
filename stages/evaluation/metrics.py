"""Classification metrics: the content of metrics/*.json, and the report's curves."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for two-sided 95 % intervals."""

Labels = NDArray[np.integer]
Floats = NDArray[np.floating]


def confusion_matrix(
    actual: Labels, predicted: Labels, count: int
) -> NDArray[np.int64]:
    """Count how often each actual class (row) was predicted as each class (column)."""
    # Number the cells row by row and count them; uint8 labels would overflow.
    cells = actual.astype(np.int64) * count + predicted
    return np.bincount(cells, minlength=count * count).reshape(count, count)


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return a proportion's 95 % interval, without continuity correction (Wilson 1927).

    Unlike the normal approximation, it holds near 0 and 1, too.
    """
    p, z2 = correct / total, Z95**2 / total
    centre = p + z2 / 2
    half = Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total))
    low, high = (centre - half) / (1 + z2), (centre + half) / (1 + z2)
    # At the ends, the formula gives exactly 0 and 1, but floats only come close.
    return low if correct else 0.0, high if correct < total else 1.0


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve of scores (N,).

    This is how often a positive scores above a negative, with ties counting half. It is
    computed from ranks (Mann-Whitney U).
    """
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Tied scores share their mean rank.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]
    n = int(positive.sum())
    u = ranks[positive].sum() - n * (n + 1) / 2
    return float(u / (n * (len(scores) - n)))


def log_loss(p_actual: Floats) -> float:
    """Return the mean negative log of the actual classes' probabilities (N,).

    Probabilities are clipped at 2.2e-16, as scikit-learn does.
    """
    return float(-np.log(np.clip(p_actual, np.finfo(np.float64).eps, 1)).mean())


def prior_log_loss(train: Labels, valid: Labels) -> float:
    """Return the log loss of always predicting the class shares of a training set.

    Takes the labels of the training set and of the images to predict. A model with a
    higher log loss is worse than guessing.
    """
    shares = np.bincount(train, minlength=int(valid.max()) + 1) / len(train)
    return log_loss(shares[valid])


def classification_metrics(
    actual: Labels,
    predicted: Labels,
    classes: list[str],
    scores: Floats | None = None,
    p_actual: Floats | None = None,
) -> dict[str, Any]:
    """Return the content of metrics/*.json for labels (N,).

    `scores` (N,), higher for the first class of a pair, add the AUC; `p_actual` (N,),
    the probabilities of the actual classes, add the log loss. Precision and F1 of a
    class never predicted are 0.
    """
    matrix = confusion_matrix(actual, predicted, len(classes))
    hits, total = np.diag(matrix), int(matrix.sum())
    predicted_counts, actual_counts = matrix.sum(0), matrix.sum(1)
    # max(…, 1) avoids 0 / 0 for a class without images or predictions.
    recall = hits / np.maximum(actual_counts, 1)
    by_class = {
        "precision": hits / np.maximum(predicted_counts, 1),
        "recall": recall,
        "f1": 2 * hits / np.maximum(predicted_counts + actual_counts, 1),
    }
    low, high = wilson(int(hits.sum()), total)
    result: dict[str, Any] = {
        "accuracy": hits.sum() / total,
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": recall.mean(),
    }
    if p_actual is not None:
        result["log_loss"] = log_loss(p_actual)
    if scores is not None:
        result["auc"] = auc(scores, actual == 0)
    for name, values in by_class.items():
        result[name] = dict(zip(classes, values.tolist(), strict=True))
    return result


def mcnemar(
    right: NDArray[np.bool_], other_right: NDArray[np.bool_]
) -> tuple[int, int, float]:
    """Test whether two classifiers differ significantly on the same images (N,).

    Returns how many images only the first gets right, how many only the second, and
    the two-sided exact p-value. If the classifiers are equally good, each of these
    images is the toss of a fair coin (McNemar 1947, exact binomial form).
    """
    first = int((right & ~other_right).sum())
    second = int((other_right & ~right).sum())
    n, term, tail = first + second, 1, 0
    for k in range(min(first, second) + 1):  # integers keep p exact to the last bit
        tail += term
        term = term * (n - k) // (k + 1)
    return first, second, min(1.0, 2 * tail / 2**n)


def roc(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the ROC curve of scores (N,) from (0, 0) to (1, 1) (Fawcett 2006).

    Returns the false and true positive rates (M,), with a point for each threshold
    between two distinct scores.
    """
    # Negated, since the curve goes from the highest threshold to the lowest.
    values, index = np.unique(-scores, return_inverse=True)
    hits = np.bincount(index, positive, len(values))
    misses = np.bincount(index, minlength=len(values)) - hits
    false, true = (
        np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
        for counts in (misses, hits)
    )
    return false, true


def calibration(
    probabilities: Floats, positive: NDArray[np.bool_], bins: int = 10
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return a reliability diagram (Murphy and Winkler 1977) of probabilities (N,).

    For each non-empty one of `bins` equal-width bins, returns the mean probability of
    the positive class, the number of positives, and the number of images.
    """
    # Without the outer edges, 0 and 1 fall into the first and the last bin.
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)
    total = np.bincount(index, minlength=bins)
    filled = total > 0
    sums = np.bincount(index, probabilities, bins)[filled]
    hits = np.bincount(index[positive], minlength=bins)[filled]
    return sums / total[filled], hits, total[filled]
