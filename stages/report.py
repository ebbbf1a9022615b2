"""Measure the linear model, and show what both models are, how good they are and where they fail."""

import base64
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray

from stages import artifacts, linear, metrics, parameters, pictures
from stages.artifacts import publish

TEMPLATE = "stages/report.html.j2"


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
    chosen, trained = parameters.load(parameters.Report), parameters.load(parameters.Train)
    tensors = artifacts.load_tensors()
    classes = tensors.classes.tolist()
    means = artifacts.load_arrays(artifacts.BASELINE, {"means": "float32"})["means"]
    model = artifacts.load_arrays(artifacts.LINEAR, {"weights": "float32", "bias": "float32"})
    history = artifacts.load_csv(artifacts.HISTORY)

    raw = linear.raw_predictions(tensors.valid_images, **model)
    probabilities = linear.probabilities(raw, trained.loss)
    predicted = linear.predicted_classes(raw, trained.loss)
    scores = probabilities[np.arange(len(predicted)), predicted]
    rows = prediction_rows(tensors.valid_labels, predicted, scores, classes)
    measures = metrics.measures(
        tensors.valid_labels, predicted, classes, raw[:, 0] if raw.shape[1] == 1 else None, probabilities
    )
    mistakes = most_confident_mistakes(tensors.valid_labels, predicted, scores, chosen.mistakes)
    shape = tensors.valid_images.shape[1:]
    images = {
        "means": pictures.gallery(list(means), [f"mean {name}" for name in classes], 5),
        "weights": pictures.gallery(
            list(model["weights"].T.reshape(-1, *shape)), [f"weights of {name}" for name in classes], 5, diverging=True
        ),
        "mistakes": pictures.gallery(
            list(tensors.valid_images[mistakes] / 255),
            [f"{rows[i]['index']}: {rows[i]['actual']} taken for {rows[i]['predicted']}" for i in mistakes],
            8,
        ),
        "history": pictures.history(history),
    }
    page = Environment(
        loader=FileSystemLoader("."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template(TEMPLATE)
    publish(
        {
            artifacts.LINEAR_METRICS: measures,
            artifacts.PREDICTIONS: rows,
            **{f"metrics/{name}.png": picture for name, picture in images.items()},
            artifacts.REPORT: page.render(
                classes=classes,
                models={"baseline": artifacts.load_json(artifacts.BASELINE_METRICS), "linear": measures},
                images={name: base64.b64encode(picture).decode() for name, picture in images.items()},
                mistakes=[rows[i] for i in mistakes],
                sensitivity=artifacts.load_json(artifacts.SENSITIVITY),
                loss=trained.loss,
            ),
        }
    )


if __name__ == "__main__":
    main()
