"""The report's page: one HTML file with all that it shows, from a template that escapes every name."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray

from stages import artifacts, charts, metrics, pictures

TEMPLATE = "stages/report.html.j2"
INPUTS = [
    artifacts.TENSORS, artifacts.BASELINE, artifacts.LINEAR, artifacts.BASELINE_METRICS,
    artifacts.HISTORY, artifacts.SENSITIVITY, "requirements.txt",
]  # fmt: skip
EMBEDDED = 500_000
"""Models of more bytes are not embedded in the page: there is nothing to try, but it stays quick to open."""


class Answers(NamedTuple):
    """What a model says of N validation images."""

    predicted: NDArray[np.integer]
    """Classes, as indices (N,)."""
    scores: NDArray[np.float64]
    """Distances or probabilities (N, K)."""
    ranking: NDArray[np.float64]
    """For a pair: the higher, the more it is the first class (N,)."""


def render(
    chosen: Mapping[str, msgspec.Struct],
    tensors: artifacts.Tensors,
    means: NDArray[np.float32],
    model: Mapping[str, NDArray[np.float32]],
    history: list[dict[str, float]],
    answers: Mapping[str, Answers],
    measures: Mapping[str, Any],
    mistakes: list[dict[str, Any]],
) -> str:
    """The page for the parameters, data, models and results of a run; `mistakes` are rows of predictions.csv."""
    images, actual, classes = tensors.valid_images, tensors.valid_labels, tensors.classes.tolist()
    baseline, linear = answers["baseline"], answers["linear"]
    parameters = {
        f"{name}.{key}": value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, section in chosen.items()
        for key, value in msgspec.structs.asdict(section).items()
    }
    rankings = {name: each.ranking for name, each in answers.items()}
    weights = model["weights"].T.reshape(-1, *means.shape[1:])
    arrays = {"means": means, **model}
    jinja = Environment(loader=FileSystemLoader("."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return jinja.get_template(TEMPLATE).render(
        classes=classes,
        shape=means.shape[1:],
        parameters=parameters,
        measures={"linear": measures, "baseline": artifacts.load_json(artifacts.BASELINE_METRICS)},
        confusion={n: metrics.confusion_matrix(actual, a.predicted, len(classes)).tolist() for n, a in answers.items()},
        mcnemar=metrics.mcnemar(linear.predicted == actual, baseline.predicted == actual),
        pair=charts.pair(actual == 0, rankings, linear.scores[:, 0]) if len(classes) == 2 else [],
        epochs=charts.epochs(history),
        untrained=history[0],
        means=[pictures.gray(mean) for mean in means],
        weights=[pictures.diverging(each, float(np.abs(weights).max())) for each in weights],
        example=[pictures.gray(images[0]), pictures.gray(means[0]), pictures.diverging(images[0] / 255 - means[0], 1)],
        distances=baseline.scores[0],
        sensitivity=artifacts.load_json(artifacts.SENSITIVITY),
        mistakes=[
            {**row, "picture": pictures.gray(images[i := row["index"]]), "baseline": classes[baseline.predicted[i]]}
            for row in mistakes
        ],
        model={name: base64.b64encode(each.astype("<f4").tobytes()).decode() for name, each in arrays.items()},
        embedded=sum(each.nbytes for each in arrays.values()) <= EMBEDDED,
        digests={path: hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest() for path in INPUTS},
    )
