"""Measure the model, compare it with the baseline, and show where both fail."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages import model
from stages.evaluation import metrics, outputs
from stages.evaluation.model_file import TrainedModel
from stages.page import pictures
from stages.page.render import Predictions, Results, is_linear, pixel_images, render
from stages.plumbing import artifacts, npz, parameters, runtime, tensors
from stages.plumbing.errors import UserError, damaged
from stages.plumbing.tensors import Split, shorten

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
"""Number of images at a time, since logits and probabilities (N, K) can be large."""

BLANK = Image.new("L", (1, 1), "white")
"""Placeholder for a model without weights per pixel."""

Floats = NDArray[np.float64]


class Probabilities(NamedTuple):
    """The two probabilities that the report needs for each of N images."""

    p_predicted: Floats
    """(N,), of the predicted class."""
    p_actual: Floats
    """(N,), of the actual class."""


def load_baseline(count: int) -> tuple[NDArray[np.float32], str, NDArray[np.float32]]:
    """Load the means, the distance, and `count` validation images' distances.

    The distances are memory-mapped. Raises UserError if the file is damaged or belongs
    to other images.
    """
    dtypes = {"means": "float32", "distance": "str", "valid_distances": "float32"}
    arrays = npz.load_arrays(artifacts.BASELINE, dtypes, ["valid_distances"])
    means, distance, to_means = arrays.values()
    if means.ndim != 4 or to_means.shape != (count, len(means)):
        raise damaged(artifacts.BASELINE, "its arrays do not fit the images")
    return means, str(distance), to_means


def predict_baseline(to_means: NDArray[np.float32]) -> Predictions:
    """Predict the class with the smallest distance (N, K), as baseline.py does."""
    # In blocks: NumPy copies unaligned arrays, such as one mapped from an npz file.
    starts = range(0, len(to_means), BLOCK)
    labels = np.concatenate([to_means[i : i + BLOCK].argmin(1) for i in starts])
    return Predictions(labels, to_means[:, 1] - to_means[:, 0])


def predict_trained(
    valid: Split, trained: TrainedModel
) -> tuple[Predictions, Probabilities]:
    """Predict the classes of N images, with a ranking and two probabilities."""
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
        p.p_predicted[block] = probabilities[rows, labels[block]]
        p.p_actual[block] = probabilities[rows, valid.labels[block]]
    return Predictions(labels, ranking), p


def prediction_rows(
    valid: Split,
    names: Sequence[str],
    predicted: NDArray[np.integer],
    p: Probabilities,
    classes: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of metrics/predictions.csv, one for each validation image."""
    for i, image in enumerate(valid.images):
        yield {
            "index": i,
            "name": names[i],
            # Lets tools.compare find the same image in another revision.
            "digest": tensors.digest_image(image),
            "actual": classes[valid.labels[i]],
            "predicted": classes[predicted[i]],
            # As text: `publish` would round small ones to 0.
            "p_predicted": f"{p.p_predicted[i]:.6g}",
            "p_actual": f"{p.p_actual[i]:.6g}",
        }


def most_confident_mistakes(
    actual: NDArray, predicted: NDArray, p_predicted: Floats, count: int
) -> NDArray[np.intp]:
    """Return the indices of at most `count` mistakes, the most confident first."""
    wrong = np.flatnonzero(actual != predicted)
    # A stable sort, so that ties come out the same on every machine.
    return wrong[np.argsort(-p_predicted[wrong], kind="stable")][:count]


def digest(path: str) -> str:
    """Return the MD5 of a file, as recorded in dvc.lock."""
    with open(path, "rb") as file:
        # DVC uses MD5; the flag allows it on systems that ban MD5 for security.
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return md5.hexdigest()


def galleries(results: Results) -> dict[str, bytes]:
    """Draw the pictures for `dvc plots`, by path."""
    trained, (images, actual) = results.trained, results.valid
    names = pictures.drawable_names(trained.classes)
    predicted = results.predictions["model"].labels
    weights = results.weights
    if not is_linear(trained):
        outputs = [f"unit {k}" for k in range(1, len(weights) + 1)]
    elif len(weights) == 1:
        outputs = [f"{names[0]} red, {names[1]} blue"]
    else:
        outputs = names
    files = [
        pictures.drawable(shorten(results.names[i], pictures.NAME_CHARACTERS))
        for i in results.mistakes
    ]
    means, weights, wrong = (
        pictures.shrink(drawn, pictures.SIDE)
        for drawn in (results.means, weights, (images[i] for i in results.mistakes))
    )
    return {
        "metrics/means.png": pictures.gallery(
            pictures.to_images(means), [f"mean: {name}" for name in names]
        ),
        "metrics/weights.png": pictures.gallery(
            pictures.diverging(weights),
            [f"weights: {name}" for name in outputs],
        )
        if len(weights)  # else a blank one: DVC fails if an output is missing
        else pictures.gallery([BLANK], ["no weights per pixel"]),
        "metrics/mistakes.png": pictures.gallery(
            pictures.to_images(wrong),
            [
                f"{i}: {names[actual[i]]} predicted as {names[predicted[i]]}\n{file}"
                for i, file in zip(results.mistakes, files, strict=True)
            ],
        ),
    }


def main() -> None:
    """Write the model's metrics and predictions, the galleries and the page."""
    # The fields of `model` are the arguments of init, so its section is made here.
    sections = [*SECTIONS, parameters.settings(model.init)]
    params: dict[str, Any] = {
        section.__name__.lower(): parameters.load(section) for section in sections
    }
    train, valid, classes, valid_in_train, decoding, names = tensors.load_tensors()
    means, distance, to_means = load_baseline(len(valid.images))
    trained = TrainedModel.load(artifacts.MODEL)
    # Stages run one by one can leave files that do not match.
    expected = (classes, means.shape[1:], decoding)
    if (trained.classes, trained.image_shape, trained.decoding) != expected:
        raise UserError(f"{artifacts.MODEL} was trained on other images: run dvc repro")

    predictions, p = predict_trained(valid, trained)
    measured = metrics.classification_metrics(
        valid.labels,
        predictions.labels,
        classes,
        predictions.ranking if len(classes) == 2 else None,  # AUC is for pairs
        p.p_actual,
    )
    results = Results(
        params=params,
        digests={path: digest(path) for path in INPUTS},  # to trace the page back
        valid=valid,
        names=names,
        valid_in_train=valid_in_train,
        means=means,
        distance=distance,
        distances=to_means[0],  # the page takes the first image as its example
        trained=trained,
        weights=pixel_images(trained),
        predictions={"baseline": predict_baseline(to_means), "model": predictions},
        p_predicted=p.p_predicted,
        metrics={
            "baseline": artifacts.load_json(artifacts.BASELINE_METRICS),
            "model": measured,
        },
        prior_log_loss=metrics.prior_log_loss(train.labels, valid.labels),
        history=artifacts.load_csv(artifacts.HISTORY),
        sensitivity=artifacts.load_json(artifacts.SENSITIVITY),
        mistakes=most_confident_mistakes(
            valid.labels, predictions.labels, p.p_predicted, params["report"].mistakes
        ),
    )
    artifacts.publish(
        {
            artifacts.MODEL_METRICS: measured,
            artifacts.PREDICTIONS: prediction_rows(
                valid, names, predictions.labels, p, classes
            ),
            **galleries(results),
            artifacts.REPORT: render(results),
        }
    )
