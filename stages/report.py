"""Measure the linear model, compare it with the baseline, and show where both fail."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages import model
from stages.evaluation import metrics, outputs
from stages.evaluation.model_file import TrainedModel
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
    """The probabilities of N images that the report needs."""

    p_first: Floats
    """(N,), of the first class."""
    p_predicted: Floats
    """(N,), of the predicted class."""
    p_actual: Floats
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


def predict_trained(
    valid: Split, trained: TrainedModel
) -> tuple[Predictions, Probabilities]:
    """Predict the classes of N images, ranked by logit, and three probabilities."""
    count = len(valid.images)
    labels, ranking = np.empty(count, np.int64), np.empty(count)
    p = Probabilities(*np.empty((len(Probabilities._fields), count)))
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        logits = trained.logits(valid.images[block])
        probabilities = outputs.probabilities(logits, trained.outputs)
        rows = np.arange(len(logits))
        labels[block] = outputs.predicted_labels(logits, trained.outputs)
        ranking[block] = logits[:, 0]
        p.p_first[block] = probabilities[:, 0]
        p.p_predicted[block] = probabilities[rows, labels[block]]
        p.p_actual[block] = probabilities[rows, valid.labels[block]]
    return Predictions(labels, ranking), p


def prediction_rows(
    indices: Iterable[int],
    valid: Split,
    predicted: NDArray[np.integer],
    p: Probabilities,
    classes: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield a row of metrics/predictions.csv for each index of a validation image."""
    for i in indices:
        yield {
            "index": i,
            "digest": digest_image(valid.images[i]),
            "actual": classes[valid.labels[i]],
            "predicted": classes[predicted[i]],
            # As text, since six decimals would be too few for a small one.
            "p_predicted": f"{p.p_predicted[i]:.6g}",
            "p_actual": f"{p.p_actual[i]:.6g}",
        }


def digest_image(image: NDArray[np.uint8]) -> str:
    """Return a digest of the shape and the pixels of an image, the same anywhere."""
    content = f"{image.shape}".encode() + image.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def most_confident_mistakes(
    actual: NDArray, predicted: NDArray, p_predicted: Floats, count: int
) -> NDArray[np.intp]:
    """Return the indices of at most `count` mistakes, the most confident first."""
    wrong = np.flatnonzero(actual != predicted)
    return wrong[np.argsort(-p_predicted[wrong], kind="stable")][:count]


def pair_curves(
    actual: NDArray, predictions: Mapping[str, Predictions], p_first: Floats
) -> Curves:
    """Compute the ROC curve of each model, and the calibration of the linear one.

    `p_first` (N,) are its probabilities of the first class.
    """
    positive = actual == 0
    probability, hits, totals = metrics.calibration(p_first, positive)
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
    sections = [*SECTIONS, parameters.settings(model.init)]
    params: dict[str, Any] = {
        section.__name__.lower(): parameters.load(section) for section in sections
    }
    _, valid, classes, valid_in_train, decoding = tensors.load_tensors()
    means, distance, to_means = load_baseline(len(valid.images))
    trained = TrainedModel.load(artifacts.MODEL)
    expected = (classes, means.shape[1:], decoding)
    if (trained.classes, trained.image_size, trained.decoding) != expected:
        raise UserError(f"{artifacts.MODEL} was trained on other images: run dvc repro")

    actual = valid.labels
    pair = len(classes) == 2  # of classes, which alone has ROC curves
    by_linear, p = predict_trained(valid, trained)
    predictions = {"baseline": predict_baseline(to_means), "linear": by_linear}
    correct = {name: p.labels == actual for name, p in predictions.items()}
    mistakes = most_confident_mistakes(
        actual, by_linear.labels, p.p_predicted, params["report"].mistakes
    )
    columns = valid, by_linear.labels, p, classes
    measured = metrics.classification_metrics(
        actual,
        by_linear.labels,
        classes,
        by_linear.ranking if pair else None,
        p.p_actual,
    )
    results = Results(
        params=params,
        digests={path: digest(path) for path in INPUTS},
        classes=classes,
        valid=valid,
        means=means,
        distance=distance,
        weights=trained.params["weights"].T.reshape(-1, *trained.image_size),
        bias=trained.params["bias"],
        outputs=trained.outputs,
        decoding=trained.decoding,
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
        curves=pair_curves(actual, predictions, p.p_first) if pair else None,
        history=artifacts.load_csv(artifacts.HISTORY),
        sensitivity=artifacts.load_json(artifacts.SENSITIVITY),
        mistakes=[
            {**row, "p_predicted": float(row["p_predicted"])}
            for row in prediction_rows(mistakes.tolist(), *columns)
        ],
    )

    artifacts.publish(
        {
            artifacts.MODEL_METRICS: measured,
            artifacts.PREDICTIONS: prediction_rows(range(len(actual)), *columns),
            **galleries(results),
            artifacts.REPORT: render(results),
        }
    )
