"""Results of random images and models, for the tests of the page."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from stages import report
from stages.baseline import distances
from stages.evaluation.metrics import classification_metrics, prior_log_loss
from stages.evaluation.model_file import TrainedModel
from stages.page.render import Results, pixel_images
from stages.plumbing import parameters
from stages.plumbing.tensors import Decoding, Split

PLAIN = Decoding(size=None, color=None, background=None)


def random_params(classes: Sequence[str], shape: tuple[int, ...]) -> dict[str, Any]:
    """Draw a linear model for images less their mean."""
    outputs, pixels = 1 if len(classes) == 2 else len(classes), math.prod(shape)
    random = np.random.default_rng(1)
    weights = random.normal(0, 4 / np.sqrt(pixels), (pixels, outputs)).astype("f4")
    return {"weights": weights, "bias": weights[0]}


def build_results(
    classes: Sequence[str] = ("a", "b"),
    shape: tuple[int, ...] = (9, 9, 1),
    outputs: str = "sigmoid",
    distance: Literal["l1", "l2"] = "l1",
    *,
    params: dict[str, Any] | None = None,
    decoding: Decoding = PLAIN,
    images: np.ndarray | None = None,
    mistakes: int = 24,
    **changes: Any,
) -> Results:
    """Compute what the report would of 60 random images, or of `images`."""
    random = np.random.default_rng(0)
    if images is None:
        images = random.integers(0, 256, (60, *shape), np.uint8)
    valid = Split(images, (np.arange(len(images)) % len(classes)).astype(np.uint8))
    means = random.random((len(classes), *shape), np.float32)
    params = params or random_params(classes, shape)
    mean = random.random(shape, np.float32)
    trained = TrainedModel(params, mean, [*classes], outputs, decoding)
    to_means = distances(images, means, distance)
    by_model, p = report.predict_trained(valid, trained)
    predictions = {"baseline": report.predict_baseline(to_means), "model": by_model}
    pair = len(classes) == 2
    epoch = {f"{s}_{m}": 0.5 for s in ("train", "valid") for m in ("loss", "accuracy")}
    moments = ("loss_before", "loss_after", "accuracy_before", "accuracy_after")
    results = Results(
        params={
            "baseline": parameters.Baseline(distance),
            "data": parameters.Data(
                tuple(classes), parameters.Splits("a", "b"), None, None, None
            ),
            "train": parameters.Train(1, True, "brier", 1, "constant", 0, 0, 1, 1),
        },
        digests={"data/tensors.npz": "0" * 32},
        valid=valid,
        names=[f"valid/{label}/<{i}>.png" for i, label in enumerate(valid.labels)],
        valid_in_train=np.zeros(len(images), bool),
        means=means,
        distance=distance,
        distances=to_means[0],
        trained=trained,
        weights=pixel_images(trained),
        predictions=predictions,
        p_predicted=p.p_predicted,
        metrics={
            name: classification_metrics(
                valid.labels,
                q.labels,
                [*classes],
                q.ranking if pair else None,
                p.p_actual if name == "model" else None,
            )
            for name, q in predictions.items()
        },
        prior_log_loss=prior_log_loss(valid.labels, valid.labels),
        history=[{"epoch": 0, **epoch}, {"epoch": 1, **epoch}],
        sensitivity={"pixel": 3, **dict.fromkeys(moments, 0.5)},
        mistakes=report.most_confident_mistakes(
            valid.labels, by_model.labels, p.p_predicted, mistakes
        ),
    )
    return results._replace(**changes)
