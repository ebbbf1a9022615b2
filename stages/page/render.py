"""Render the page: one HTML file that needs nothing else and escapes every name."""

import base64
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from jinja2 import Environment, FileSystemLoader, Template
from numpy.typing import NDArray
from PIL import Image

from stages.page import charts, pictures
from stages.plumbing.parameters import Section
from stages.plumbing.tensors import Decoding, Split

MAX_DIGITS = 4
"""Decimals of a share that would round to none or all."""
MAX_EMBEDDED = 500_000
"""Models of more bytes are not embedded: nothing to try, but the page opens fast."""
MANY = 20
"""Of more classes, the confusion matrix is a picture, and what is long is folded."""
WORST = 10
"""How many of many classes, the worst, and of the confusions are shown first."""
BARS = 5
"""How many probabilities and distances of many are shown for an image."""
SIDE = 144
"""CSS pixels: a picture has the area of a square of this side, 9rem in style.css."""
CRISP_SIDE = 96
"""Images of more than the area of a square of this side have no crisp pixels."""
MAX_PIXELS = 2_000_000
"""All pictures of the means have at most so many pixels, and so have all weights."""


class Predictions(NamedTuple):
    """What a model predicts for N images."""

    labels: NDArray[np.integer]
    """(N,), indices into the K classes."""
    ranking: NDArray[np.floating]
    """(N,); for a pair of classes, the higher, the more likely is the first."""


class Results(NamedTuple):
    """Everything that the page shows. Mappings by model have baseline and linear."""

    params: Mapping[str, Section]
    """By the name of the section."""
    digests: Mapping[str, str]
    """MD5 of the files that the results follow from, by path."""
    classes: list[str]
    """(K,)"""
    valid: Split
    """N images and labels."""
    means: NDArray[np.float32]
    """(K, H, W), the baseline."""
    distance: str
    """From an image to a mean, l1 or l2."""
    weights: NDArray[np.float32]
    """(C, H, W), of the linear model; C is 1 for a pair of classes, else K."""
    bias: NDArray[np.float32]
    """(C,), of the linear model."""
    outputs: str
    """What the C outputs mean, as in stages/model/linear.py."""
    decoding: Decoding
    """How image files become what the linear model takes."""
    predictions: Mapping[str, Predictions]
    """By model, for the N images."""
    distances: NDArray[np.floating]
    """(K,), from the first of the N images to the means."""
    metrics: Mapping[str, Mapping[str, Any]]
    """By model, as in metrics/*.json."""
    confusion: Mapping[str, NDArray[np.int64]]
    """By model, (K, K): rows are actual classes, columns predicted ones."""
    mcnemar: tuple[int, int, float]
    """Images that only linear gets right, that only baseline gets right, and p."""
    copies: int
    """How many of the N validation images are among the training images, too."""
    accuracy_without_copies: Mapping[str, float]
    """By model; empty if all of them are."""
    curves: charts.Curves | None
    """For a pair of classes."""
    history: list[dict[str, float]]
    """One row per epoch, as in metrics/history.csv."""
    sensitivity: Mapping[str, float]
    """As in metrics/sensitivity.json."""
    mistakes: list[dict[str, Any]]
    """Rows of metrics/predictions.csv, the most confident mistake first."""


def render(results: Results) -> str:
    """Return the page as HTML."""
    images, means, weights = results.valid.images, results.means, results.weights
    count, (height, width) = len(results.classes), means.shape[1:]
    arrays = {"means": means, "weights": weights, "bias": results.bias}
    embedded = sum(array.nbytes for array in arrays.values()) <= MAX_EMBEDDED
    many = count > MANY
    difference = images[0] / 255 - means[0]
    untrained, *epochs = results.history
    indices = [row["index"] for row in results.mistakes]
    # Whole where they can be tried: the models take all their pixels.
    side = math.inf if embedded else sharp_side(len(indices))
    wrong = pictures.shrink((images[i] for i in indices), side)
    mistakes = [
        {**row, "image": uri, "baseline": results.classes[label]}
        for row, uri, label in zip(
            results.mistakes,
            _uris(pictures.grayscale(wrong)),
            results.predictions["baseline"].labels[indices],
            strict=True,
        )
    ]
    template = load_template("template.html.j2")
    return template.render(
        classes=results.classes,
        shape=(height, width),
        picture_style=picture_style(height, width),
        many=many,
        shown=MANY,
        bars=BARS,
        pad=offers_pad(images, results.decoding),
        params=_flatten(results.params),
        digests=results.digests,
        share=format_share,
        metrics=results.metrics,
        copies=results.copies,
        without_copies=results.accuracy_without_copies,
        confusion={name: rows.tolist() for name, rows in results.confusion.items()},
        matrices={
            name: pictures.data_uri(pictures.confusion(rows))
            for name, rows in results.confusion.items()
            if many
        },
        confusions={name: confusions(m) for name, m in results.confusion.items()},
        worst=sorted(results.classes, key=results.metrics["linear"]["f1"].get)[:WORST],
        mcnemar=results.mcnemar,
        pair_charts=charts.pair_charts(results.curves) if results.curves else [],
        epoch_charts=charts.epoch_charts(results.history),
        untrained=untrained,
        worse=sum(row["train_loss"] > untrained["train_loss"] for row in epochs),
        sensitivity=results.sensitivity,
        means=_uris(pictures.grayscale(pictures.shrink(means, sharp_side(count)))),
        weights=_uris(
            pictures.diverging(pictures.shrink(weights, sharp_side(len(weights))))
        ),
        example=_uris(
            [
                *pictures.grayscale(pictures.shrink(images[:1], sharp_side(1))),
                *pictures.diverging(
                    pictures.shrink([difference], sharp_side(1)), limit=1
                ),
            ]
        ),
        distances=results.distances,
        mistakes=mistakes,
        model={
            "classes": results.classes,
            "shape": (height, width),
            "bars": BARS if many else count,
            "outputs": results.outputs,
            "distance": results.distance,
            "decoding": results.decoding._asdict(),
            **{name: _base64(array) for name, array in arrays.items() if embedded},
        },
        embedded=embedded,
        decoding=results.decoding,
    )


def load_template(name: str, *folders: Path) -> Template:
    """Load a template from one of these folders, or from that of style.css."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def picture_style(height: int, width: int) -> str:
    """Return the variables that style.css needs to size pictures of images (H, W)."""
    stretch = f"--stretch: {width * pictures.scale(width, height, 1):.3f}"
    smooth = height * width > CRISP_SIDE**2
    return stretch + "; --rendering: auto" * smooth


def sharp_side(count: int) -> float:
    """Return the side, in pixels, of a square as large as `count` pictures may be.

    Twice as many as CSS pixels, for sharp screens, unless there are many pictures.
    """
    return min(2 * SIDE, math.sqrt(MAX_PIXELS / max(count, 1)))


def offers_pad(images: NDArray[np.uint8], decoding: Decoding) -> bool:
    """Return whether images (N, H, W) look like a drawing on a pad: light ink on black.

    They do if the files are gray and more than half of all pixels are 0.
    """
    return not decoding.grayscale and int(np.count_nonzero(images)) < images.size / 2


def confusions(matrix: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
    """Return the WORST most frequent confusions of a matrix (K, K).

    Actual class, predicted class, how many images, and how many the actual class has.
    """
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    most = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
    pairs = zip(*(axis.tolist() for axis in np.divmod(most, len(matrix))), strict=True)
    return [
        (actual, predicted, int(matrix[actual, predicted]), int(matrix[actual].sum()))
        for actual, predicted in pairs
        if wrong[actual, predicted]
    ]


def format_share(share: float, digits: int, unit: int = 1) -> str:
    """Format a share of 0 to 1, times the unit: what is not all never reads as all.

    Nor as none: more digits are shown where these would round to 0 or to the unit.
    """
    for decimals in range(digits, digits + MAX_DIGITS):
        text = f"{unit * share:.{decimals}f}"
        if share in (0, 1) or float(text) not in (0, unit):
            return text
    bound = min(max(unit * share, 10.0**-decimals), unit - 10.0**-decimals)
    return f"{'<' if share < bound / unit else '>'} {bound:.{decimals}f}"


def _flatten(params: Mapping[str, Section]) -> dict[str, str]:
    """Return the values by dotted keys, as text."""
    return {
        f"{name}.{key}": value
        if isinstance(value, str)
        else msgspec.json.encode(value).decode()
        for name, section in params.items()
        for key, value in msgspec.structs.asdict(section).items()
    }


def _uris(images: Iterable[Image.Image]) -> list[str]:
    return [pictures.data_uri(image) for image in images]


def _base64(array: NDArray) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode()
