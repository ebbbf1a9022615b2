"""Measure the linear model, and show what both models are, how good they are and where they fail."""

import base64
import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray

from stages import artifacts, charts, linear, metrics, parameters, pictures
from stages.artifacts import publish

TEMPLATE = "stages/report.html.j2"
INPUTS = [
    artifacts.TENSORS, artifacts.BASELINE, artifacts.LINEAR, artifacts.BASELINE_METRICS,
    artifacts.HISTORY, artifacts.SENSITIVITY, "requirements.txt",
]  # fmt: skip
EMBEDDED = 500_000
"""The page holds at most so many bytes of models to try; what it shows without them stays below 1 MB."""

Floats = NDArray[np.float64]


def distances(images: NDArray[np.uint8], means: NDArray[np.float32], distance: Literal["l1", "l2"]) -> Floats:
    """The baseline's distances of images (N, H, W) to means (K, H, W), as stages/baseline.py has them: (N, K)."""
    differences = (images / 255 - mean for mean in means)
    if distance == "l1":
        return np.stack([np.abs(each).mean((1, 2)) for each in differences], 1)
    return np.sqrt(np.stack([(each**2).mean((1, 2)) for each in differences], 1))


def prediction_rows(actual: NDArray, predicted: NDArray, scores: NDArray, classes: list[str]) -> list[dict[str, Any]]:
    """A row for each validation image: its index in the tensors, its class, the predicted one and its probability."""
    return [
        {"split": "valid", "index": i, "actual": classes[a], "predicted": classes[p], "score": s}
        for i, (a, p, s) in enumerate(zip(actual, predicted, scores, strict=True))
    ]


def most_confident_mistakes(actual: NDArray, predicted: NDArray, scores: NDArray, count: int) -> NDArray[np.intp]:
    """The indices of at most `count` wrong predictions, the most confident first."""
    wrong = np.flatnonzero(actual != predicted)
    return wrong[np.argsort(-scores[wrong], kind="stable")][:count]


def main() -> None:
    """Write the linear model's metrics and predictions, the pictures and report.html."""
    sections: list[type[parameters.Section]] = [
        parameters.Download,
        parameters.Data,
        parameters.Baseline,
        parameters.Train,
        parameters.Report,
    ]
    chosen: dict[str, Any] = {section.__name__.lower(): parameters.load(section) for section in sections}
    loss = chosen["train"].loss
    tensors = artifacts.load_tensors()
    images, actual, classes = tensors.valid_images, tensors.valid_labels, tensors.classes.tolist()
    means = artifacts.load_arrays(artifacts.BASELINE, {"means": "float32"})["means"]
    model = artifacts.load_arrays(artifacts.LINEAR, {"weights": "float32", "bias": "float32"})
    history = artifacts.load_csv(artifacts.HISTORY)

    raw = linear.raw_predictions(images, **model)
    far = distances(images, means, chosen["baseline"].distance)
    probabilities = linear.probabilities(raw, loss)
    predicted = {"baseline": far.argmin(1), "linear": linear.predicted_classes(raw, loss)}
    scores = probabilities[np.arange(len(actual)), predicted["linear"]]
    rows = prediction_rows(actual, predicted["linear"], scores, classes)
    pair = len(classes) == 2
    measures = metrics.measures(actual, predicted["linear"], classes, raw[:, 0] if pair else None, probabilities)
    mistakes = most_confident_mistakes(actual, predicted["linear"], scores, chosen["report"].mistakes)
    weights = model["weights"].T.reshape(-1, *means.shape[1:])
    png = {
        "means": pictures.gallery(list(means), [f"mean {name}" for name in classes], 5),
        "weights": pictures.gallery(list(weights), [f"weights of {name}" for name in classes], 5, diverging=True),
        "mistakes": pictures.gallery(
            list(images[mistakes] / 255),
            [f"{i}: {rows[i]['actual']} taken for {rows[i]['predicted']}" for i in mistakes],
            8,
        ),
        "history": pictures.history(history),
    }
    arrays = {"means": means, **model}
    texts = {name: base64.b64encode(each.astype("<f4").tobytes()).decode() for name, each in arrays.items()}
    fits = sum(each.nbytes for each in arrays.values()) <= EMBEDDED
    jinja = Environment(loader=FileSystemLoader("."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = jinja.get_template(TEMPLATE).render(
        classes=classes,
        shape=means.shape[1:],
        parameters={
            f"{name}.{key}": value if isinstance(value, str) else msgspec.json.encode(value).decode()
            for name, section in chosen.items()
            for key, value in msgspec.structs.asdict(section).items()
        },
        measures={"linear": measures, "baseline": artifacts.load_json(artifacts.BASELINE_METRICS)},
        confusion={
            name: metrics.confusion_matrix(actual, each, len(classes)).tolist() for name, each in predicted.items()
        },
        mcnemar=metrics.mcnemar(predicted["linear"] == actual, predicted["baseline"] == actual),
        pair=charts.pair(actual == 0, {"baseline": far[:, 1] - far[:, 0], "linear": raw[:, 0]}, probabilities[:, 0])
        if pair
        else [],
        epochs=charts.epochs(history),
        untrained=history[0],
        means=[pictures.gray(mean) for mean in means],
        weights=[pictures.diverging(each, float(np.abs(weights).max())) for each in weights],
        example=[pictures.gray(images[0]), pictures.gray(means[0]), pictures.diverging(images[0] / 255 - means[0], 1)],
        distances=far[0],
        sensitivity=artifacts.load_json(artifacts.SENSITIVITY),
        mistakes=[
            {**rows[i], "picture": pictures.gray(images[i]), "baseline": classes[predicted["baseline"][i]]}
            for i in mistakes
        ],
        model={
            **texts,
            "classes": classes,
            "shape": means.shape[1:],
            "loss": loss,
            "distance": chosen["baseline"].distance,
        }
        if fits
        else None,
        digests={path: hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest() for path in INPUTS},
    )
    publish(
        {
            artifacts.LINEAR_METRICS: measures,
            artifacts.PREDICTIONS: rows,
            **{f"metrics/{name}.png": picture for name, picture in png.items()},
            artifacts.REPORT: page,
        }
    )


if __name__ == "__main__":
    main()
