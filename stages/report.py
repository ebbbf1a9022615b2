"""Measure the linear model, compare it with the baseline, and show where both fail."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.model import linear, metrics
from stages.model.linear import Linear
from stages.page import pictures
from stages.page.charts import Curves
from stages.page.render import Predictions, Results, render
from stages.plumbing import artifacts, parameters, runtime
from stages.plumbing.errors import UserError

SECTIONS: list[type[parameters.Section]] = [
    parameters.Download,
    parameters.Data,
    parameters.Baseline,
    parameters.Train,
    parameters.Report,
]
INPUTS = [
    artifacts.TENSORS,
    artifacts.BASELINE,
    artifacts.LINEAR,
    artifacts.BASELINE_METRICS,
    artifacts.HISTORY,
    artifacts.SENSITIVITY,
    runtime.LOCK,
]
"""The files whose digests the page shows."""


def load_baseline(count: int) -> tuple[NDArray[np.float32], str, NDArray[np.float32]]:
    """Load the means, the distance, and the distances of `count` validation images.

    Raises UserError if the file is damaged or from other images.
    """
    dtypes = {"means": "float32", "distance": "str", "valid_distances": "float32"}
    arrays = artifacts.load_arrays(artifacts.BASELINE, dtypes)
    means, distance, to_means = arrays.values()
    if means.ndim != 3 or to_means.shape != (count, len(means)):
        raise artifacts.damaged(artifacts.BASELINE, "its arrays do not fit the images")
    return means, str(distance), to_means


def predict_baseline(to_means: NDArray[np.float32]) -> Predictions:
    """Predict the class with the least of the distances (N, K), as baseline.py does."""
    return Predictions(to_means.argmin(1), to_means, to_means[:, 1] - to_means[:, 0])


def predict_linear(images: NDArray[np.uint8], model: Linear) -> Predictions:
    """Predict the class, the probabilities and the logits of images (N, H, W)."""
    logits = linear.logits(images, model.weights, model.bias)
    return Predictions(
        linear.predicted_labels(logits, model.outputs),
        linear.probabilities(logits, model.outputs),
        logits[:, 0],
    )


def prediction_rows(
    actual: NDArray, predicted: NDArray, scores: NDArray, classes: list[str]
) -> list[dict[str, Any]]:
    """Return one row per validation image: index, both classes, probability (N,)."""
    return [
        {
            "split": "valid",
            "index": i,
            "actual": classes[a],
            "predicted": classes[p],
            "score": score,
        }
        for i, (a, p, score) in enumerate(zip(actual, predicted, scores, strict=True))
    ]


def most_confident_mistakes(
    actual: NDArray, predicted: NDArray, scores: NDArray, count: int
) -> NDArray[np.intp]:
    """Return the indices of at most `count` mistakes, the most confident first."""
    wrong = np.flatnonzero(actual != predicted)
    return wrong[np.argsort(-scores[wrong], kind="stable")][:count]


def pair_curves(actual: NDArray, predictions: Mapping[str, Predictions]) -> Curves:
    """Compute the ROC curve of each model, and the calibration of the linear one."""
    positive = actual == 0
    probability, hits, totals = metrics.calibration(
        predictions["linear"].scores[:, 0], positive
    )
    intervals = [
        metrics.wilson(int(hit), int(total))
        for hit, total in zip(hits, totals, strict=True)
    ]
    return Curves(
        {name: metrics.roc(p.ranking, positive) for name, p in predictions.items()},
        np.column_stack([probability, hits / totals, intervals]),
    )


def digest(path: str) -> str:
    """Return the MD5 of a file, as dvc.lock has it."""
    with open(path, "rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return md5.hexdigest()


def galleries(results: Results) -> dict[str, bytes]:
    """Draw the pictures for `dvc plots`, by path."""
    rows = results.mistakes
    names = pictures.drawable_names(results.classes)
    by_class = dict(zip(results.classes, names, strict=True))
    means = pictures.grayscale(results.means)
    weights = pictures.diverging(results.weights)
    wrong = pictures.grayscale(results.valid.images[[row["index"] for row in rows]])
    pair = len(weights) == 1
    outputs = [f"{names[0]} red, {names[1]} blue"] if pair else names
    mistakes = [
        f"{r['index']}: {by_class[r['actual']]} predicted as {by_class[r['predicted']]}"
        for r in rows
    ]
    return {
        "metrics/means.png": pictures.gallery(
            means, [f"mean: {name}" for name in names], columns=5
        ),
        "metrics/weights.png": pictures.gallery(
            weights, [f"weights: {name}" for name in outputs], columns=5
        ),
        "metrics/mistakes.png": pictures.gallery(wrong, mistakes, columns=8),
    }


def main() -> None:
    """Write the linear model's metrics and predictions, the galleries and the page."""
    params: dict[str, Any] = {
        section.__name__.lower(): parameters.load(section) for section in SECTIONS
    }
    _, valid, classes, valid_in_train, decoding = artifacts.load_tensors()
    means, distance, to_means = load_baseline(len(valid.images))
    model = Linear.load(artifacts.LINEAR)
    expected = (classes, means.shape[1:], decoding)
    if (model.classes, model.image_size, model.decoding) != expected:
        raise UserError(
            f"{artifacts.LINEAR} was trained on other images: run dvc repro"
        )

    actual = valid.labels
    pair = len(classes) == 2  # of classes, which alone has ROC curves
    predictions = {
        "baseline": predict_baseline(to_means),
        "linear": predict_linear(valid.images, model),
    }
    correct = {name: p.labels == actual for name, p in predictions.items()}
    predicted, probabilities, ranking = predictions["linear"]
    confidence = probabilities[np.arange(len(actual)), predicted]
    rows = prediction_rows(actual, predicted, confidence, classes)
    mistakes = most_confident_mistakes(
        actual, predicted, confidence, params["report"].mistakes
    )
    measured = metrics.classification_metrics(
        actual, predicted, classes, ranking if pair else None, probabilities
    )
    results = Results(
        params=params,
        digests={path: digest(path) for path in INPUTS},
        classes=classes,
        valid=valid,
        means=means,
        distance=distance,
        weights=model.weights.T.reshape(-1, *model.image_size),
        bias=model.bias,
        outputs=model.outputs,
        decoding=model.decoding,
        predictions=predictions,
        metrics={
            "baseline": artifacts.load_json(artifacts.BASELINE_METRICS),
            "linear": measured,
        },
        confusion={
            name: metrics.confusion_matrix(actual, p.labels, len(classes))
            for name, p in predictions.items()
        },
        mcnemar=metrics.mcnemar(correct["linear"], correct["baseline"]),
        copies=int(valid_in_train.sum()),
        accuracy_without_copies={
            name: float(right[~valid_in_train].mean())
            for name, right in correct.items()
            if not valid_in_train.all()
        },
        curves=pair_curves(actual, predictions) if pair else None,
        history=artifacts.load_csv(artifacts.HISTORY),
        sensitivity=artifacts.load_json(artifacts.SENSITIVITY),
        mistakes=[rows[i] for i in mistakes],
    )

    artifacts.publish(
        {
            artifacts.LINEAR_METRICS: measured,
            artifacts.PREDICTIONS: rows,
            **galleries(results),
            artifacts.REPORT: render(results),
        }
    )
