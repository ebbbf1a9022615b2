"""Measure the linear model, compare it with the baseline, and show where both fail."""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.model import linear, metrics
from stages.page import pictures
from stages.page.charts import Curves
from stages.page.render import Predictions, Results, render
from stages.plumbing import artifacts, parameters, runtime

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


def distances(
    images: NDArray[np.uint8], means: NDArray[np.float32], distance: Literal["l1", "l2"]
) -> NDArray[np.float64]:
    """Measure the distance of images (N, H, W) to means (K, H, W): (N, K).

    As stages/baseline.py does, but in float64.
    """

    def apply(block: linear.Floats) -> linear.Floats:
        differences = (block - mean for mean in means)
        if distance == "l1":
            return np.stack([np.abs(d).mean((1, 2)) for d in differences], 1)
        return np.sqrt(np.stack([(d**2).mean((1, 2)) for d in differences], 1))

    return linear.in_blocks(apply, images)


def predict_baseline(
    images: NDArray[np.uint8], means: NDArray[np.float32], distance: Literal["l1", "l2"]
) -> Predictions:
    """Predict the class whose mean (K, H, W) is nearest to each image (N, H, W)."""
    to_means = distances(images, means, distance)
    return Predictions(to_means.argmin(1), to_means, to_means[:, 1] - to_means[:, 0])


def predict_linear(
    images: NDArray[np.uint8],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    loss: str,
) -> Predictions:
    """Predict with weights (H·W, C) and bias (C,) that were trained on `loss`."""
    logits = linear.logits(images, weights, bias)
    return Predictions(
        linear.predicted_labels(logits, loss),
        linear.probabilities(logits, loss),
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
    classes, rows = results.classes, results.mistakes
    means = pictures.grayscale(results.means)
    weights = pictures.diverging(results.weights)
    wrong = pictures.grayscale(results.valid.images[[row["index"] for row in rows]])
    pair = len(weights) == 1
    outputs = [f"{classes[0]} red, {classes[1]} blue"] if pair else classes
    mistakes = [
        f"{r['index']}: {r['actual']} predicted as {r['predicted']}" for r in rows
    ]
    return {
        "metrics/means.png": pictures.gallery(
            means, [f"mean: {name}" for name in classes], columns=5
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
    _, valid, classes = artifacts.load_tensors()
    means = artifacts.load_arrays(artifacts.BASELINE, {"means": "float32"})["means"]
    model = artifacts.load_arrays(
        artifacts.LINEAR, {"weights": "float32", "bias": "float32"}
    )

    actual = valid.labels
    pair = len(classes) == 2  # of classes, which alone has ROC curves
    predictions = {
        "baseline": predict_baseline(valid.images, means, params["baseline"].distance),
        "linear": predict_linear(valid.images, **model, loss=params["train"].loss),
    }
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
        weights=model["weights"].T.reshape(-1, *means.shape[1:]),
        bias=model["bias"],
        predictions=predictions,
        metrics={
            "baseline": artifacts.load_json(artifacts.BASELINE_METRICS),
            "linear": measured,
        },
        confusion={
            name: metrics.confusion_matrix(actual, p.labels, len(classes))
            for name, p in predictions.items()
        },
        mcnemar=metrics.mcnemar(
            predicted == actual, predictions["baseline"].labels == actual
        ),
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
