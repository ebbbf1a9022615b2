"""Measure the linear model, compare it with the baseline, and show where both fail."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.evaluation import metrics, model_file, outputs
from stages.evaluation.model_file import Linear
from stages.page import pictures
from stages.page.charts import Curves
from stages.page.render import Predictions, Results, render
from stages.plumbing import artifacts, npz, parameters, runtime, tensors
from stages.plumbing.errors import UserError, damaged
from stages.plumbing.tensors import Split

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
    artifacts.MODEL,
    artifacts.BASELINE_METRICS,
    artifacts.HISTORY,
    artifacts.SENSITIVITY,
    runtime.LOCK,
]
"""The files whose digests the page shows."""
BLOCK = 4096
"""Images whose logits and probabilities of all K classes are in memory at a time."""

Floats = NDArray[np.float64]


class Probabilities(NamedTuple):
    """What is kept of the probabilities (N, K) of N images."""

    first: Floats
    """(N,), of the first class."""
    predicted: Floats
    """(N,), of the predicted class."""
    actual: Floats
    """(N,), of the actual class."""


def load_baseline(count: int) -> tuple[NDArray[np.float32], str, NDArray[np.float32]]:
    """Load the means, the distance, and the distances of `count` validation images.

    The distances are memory-mapped. Raises UserError if the file is damaged or from
    other images.
    """
    dtypes = {"means": "float32", "distance": "str", "valid_distances": "float32"}
    arrays = npz.load_arrays(artifacts.BASELINE, dtypes, ["valid_distances"])
    means, distance, to_means = arrays.values()
    if means.ndim != 3 or to_means.shape != (count, len(means)):
        raise damaged(artifacts.BASELINE, "its arrays do not fit the images")
    return means, str(distance), to_means


def predict_baseline(to_means: NDArray[np.float32]) -> Predictions:
    """Predict the class with the least of the distances (N, K), as baseline.py does."""
    # In blocks: NumPy copies an unaligned array, as one mapped from an npz file can be.
    starts = range(0, len(to_means), BLOCK)
    labels = np.concatenate([to_means[i : i + BLOCK].argmin(1) for i in starts])
    return Predictions(labels, to_means[:, 1] - to_means[:, 0])


def predict_linear(valid: Split, model: Linear) -> tuple[Predictions, Probabilities]:
    """Predict the classes of N images, ranked by logit, and three probabilities."""
    count = len(valid.images)
    labels, ranking = np.empty(count, np.int64), np.empty(count)
    kept = Probabilities(*np.empty((len(Probabilities._fields), count)))
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        logits = model_file.logits(valid.images[block], model.weights, model.bias)
        probabilities = outputs.probabilities(logits, model.outputs)
        rows = np.arange(len(logits))
        labels[block] = outputs.predicted_labels(logits, model.outputs)
        ranking[block] = logits[:, 0]
        kept.first[block] = probabilities[:, 0]
        kept.predicted[block] = probabilities[rows, labels[block]]
        kept.actual[block] = probabilities[rows, valid.labels[block]]
    return Predictions(labels, ranking), kept


def prediction_rows(
    indices: Iterable[int],
    actual: NDArray,
    predicted: NDArray,
    scores: NDArray,
    classes: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each index: both classes of the validation image, its score."""
    for i in indices:
        yield {
            "split": "valid",
            "index": i,
            "actual": classes[actual[i]],
            "predicted": classes[predicted[i]],
            "score": scores[i],
        }


def most_confident_mistakes(
    actual: NDArray, predicted: NDArray, scores: NDArray, count: int
) -> NDArray[np.intp]:
    """Return the indices of at most `count` mistakes, the most confident first."""
    wrong = np.flatnonzero(actual != predicted)
    return wrong[np.argsort(-scores[wrong], kind="stable")][:count]


def pair_curves(
    actual: NDArray, predictions: Mapping[str, Predictions], first: Floats
) -> Curves:
    """Compute the ROC curve of each model, and the calibration of the linear one.

    `first` (N,) are its probabilities of the first class.
    """
    positive = actual == 0
    probability, hits, totals = metrics.calibration(first, positive)
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
    means = pictures.shrink(results.means, pictures.SIDE)
    weights = pictures.shrink(results.weights, pictures.SIDE)
    images = (results.valid.images[row["index"]] for row in rows)
    wrong = pictures.shrink(images, pictures.SIDE)
    pair = len(weights) == 1
    outputs = [f"{names[0]} red, {names[1]} blue"] if pair else names
    mistakes = [
        f"{r['index']}: {by_class[r['actual']]} predicted as {by_class[r['predicted']]}"
        for r in rows
    ]
    return {
        "metrics/means.png": pictures.gallery(
            pictures.grayscale(means), [f"mean: {name}" for name in names], columns=5
        ),
        "metrics/weights.png": pictures.gallery(
            pictures.diverging(weights),
            [f"weights: {name}" for name in outputs],
            columns=5,
        ),
        "metrics/mistakes.png": pictures.gallery(
            pictures.grayscale(wrong), mistakes, columns=8
        ),
    }


def main() -> None:
    """Write the linear model's metrics and predictions, the galleries and the page."""
    params: dict[str, Any] = {
        section.__name__.lower(): parameters.load(section) for section in SECTIONS
    }
    _, valid, classes, valid_in_train, decoding = tensors.load_tensors()
    means, distance, to_means = load_baseline(len(valid.images))
    model = Linear.load(artifacts.MODEL)
    expected = (classes, means.shape[1:], decoding)
    if (model.classes, model.image_size, model.decoding) != expected:
        raise UserError(f"{artifacts.MODEL} was trained on other images: run dvc repro")

    actual = valid.labels
    pair = len(classes) == 2  # of classes, which alone has ROC curves
    by_linear, probabilities = predict_linear(valid, model)
    predictions = {"baseline": predict_baseline(to_means), "linear": by_linear}
    correct = {name: p.labels == actual for name, p in predictions.items()}
    columns = actual, by_linear.labels, probabilities.predicted
    mistakes = most_confident_mistakes(*columns, params["report"].mistakes)
    measured = metrics.classification_metrics(
        actual,
        by_linear.labels,
        classes,
        by_linear.ranking if pair else None,
        probabilities.actual,
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
        distances=to_means[0],
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
        curves=pair_curves(actual, predictions, probabilities.first) if pair else None,
        history=artifacts.load_csv(artifacts.HISTORY),
        sensitivity=artifacts.load_json(artifacts.SENSITIVITY),
        mistakes=list(prediction_rows(mistakes.tolist(), *columns, classes)),
    )

    artifacts.publish(
        {
            artifacts.MODEL_METRICS: measured,
            artifacts.PREDICTIONS: prediction_rows(
                range(len(actual)), *columns, classes
            ),
            **galleries(results),
            artifacts.REPORT: render(results),
        }
    )
