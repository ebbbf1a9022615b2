"""Measure the linear model, and show what both models are, how good they are and where they fail."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages import artifacts, linear, metrics, page, parameters, pictures

SECTIONS: list[type[parameters.Section]] = [
    parameters.Download, parameters.Data, parameters.Baseline, parameters.Train, parameters.Report,
]  # fmt: skip


def distances(
    images: NDArray[np.uint8], means: NDArray[np.float32], distance: Literal["l1", "l2"]
) -> NDArray[np.float64]:
    """The baseline's distances of images (N, H, W) to means (K, H, W), as stages/baseline.py has them: (N, K)."""

    def to_means(block: linear.Floats) -> linear.Floats:
        differences = (block - mean for mean in means)
        if distance == "l1":
            return np.stack([np.abs(each).mean((1, 2)) for each in differences], 1)
        return np.sqrt(np.stack([(each**2).mean((1, 2)) for each in differences], 1))

    return linear.by_blocks(to_means, images)


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
    chosen: dict[str, Any] = {section.__name__.lower(): parameters.load(section) for section in SECTIONS}
    tensors = artifacts.load_tensors()
    images, actual, classes = tensors.valid_images, tensors.valid_labels, tensors.classes.tolist()
    pair = len(classes) == 2
    means = artifacts.load_arrays(artifacts.BASELINE, {"means": "float32"})["means"]
    model = artifacts.load_arrays(artifacts.LINEAR, {"weights": "float32", "bias": "float32"})
    history = artifacts.load_csv(artifacts.HISTORY)

    far = distances(images, means, chosen["baseline"].distance)
    raw = linear.raw_predictions(images, **model)
    probabilities = linear.probabilities(raw, chosen["train"].loss)
    answers = {
        "baseline": page.Answers(far.argmin(1), far, far[:, 1] - far[:, 0]),
        "linear": page.Answers(linear.predicted_classes(raw, chosen["train"].loss), probabilities, raw[:, 0]),
    }
    predicted = answers["linear"].predicted
    scores = probabilities[np.arange(len(actual)), predicted]
    rows = prediction_rows(actual, predicted, scores, classes)
    mistakes = most_confident_mistakes(actual, predicted, scores, chosen["report"].mistakes)
    measures = metrics.measures(actual, predicted, classes, raw[:, 0] if pair else None, probabilities)
    weights = model["weights"].T.reshape(-1, *means.shape[1:])
    captions = [f"{i}: {rows[i]['actual']} taken for {rows[i]['predicted']}" for i in mistakes]
    artifacts.publish(
        {
            artifacts.LINEAR_METRICS: measures,
            artifacts.PREDICTIONS: rows,
            "metrics/means.png": pictures.gallery(means, [f"mean {name}" for name in classes], 5),
            "metrics/weights.png": pictures.gallery(
                weights, [f"weights of {name}" for name in classes], 5, diverging=True
            ),
            "metrics/mistakes.png": pictures.gallery(images[mistakes] / 255, captions, 8),
            "metrics/history.png": pictures.history(history),
            artifacts.REPORT: page.render(
                chosen, tensors, means, model, history, answers, measures, [rows[i] for i in mistakes]
            ),
        }
    )


if __name__ == "__main__":
    main()
