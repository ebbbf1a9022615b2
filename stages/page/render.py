"""Render the page as a self-contained HTML file, with every name escaped."""

import base64
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import msgspec
import numpy as np
from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, Template
from jinja2.bccache import Bucket
from numpy.typing import NDArray

from stages.evaluation.metrics import confusion_matrix, mcnemar
from stages.evaluation.model_file import TrainedModel, pixel_weights
from stages.evaluation.outputs import output_count
from stages.page import charts, pictures
from stages.page.pictures import data_uri
from stages.plumbing import runtime
from stages.plumbing.parameters import Section
from stages.plumbing.tensors import Decoding, Split, shorten

TWIN = Path(__file__).parents[1] / "model.js"  # optional: the model in JavaScript
MAX_EMBEDDED = 500_000  # bytes; larger models would make the page slow to open
MANY = 20  # with more classes, the confusion matrix is a picture; long lists scroll
WORST = 10  # number of most frequent confusions listed
BARS = 5  # probabilities, and distances, shown for an image if there are many classes
SIDE = 144  # of a square with a picture's area, in CSS pixels; 9rem in style.css
CRISP_SIDE = 96  # larger images are drawn smoothed
MAX_PIXELS = 2_000_000  # budget for all mean images, and for all pictures of weights
MAX_DIGITS = 4  # numbers of decimals to try for a share that rounds to 0 or 1

Floats = NDArray[np.floating]


class Predictions(NamedTuple):
    """What a model predicts for N images."""

    labels: NDArray[np.integer]  # (N,), indices into the K classes
    ranking: Floats  # (N,); for a pair of classes, higher favours the first class


class Results(NamedTuple):
    """What the page shows. Mappings by model have the keys `baseline` and `model`."""

    params: Mapping[str, Section]  # params.yaml, by section
    digests: Mapping[str, str]  # MD5 of the files behind the results, by path
    valid: Split  # N images and labels
    names: Sequence[str]  # (N,), of the files in the archive
    valid_in_train: NDArray[np.bool_]  # (N,), whether it is also a training image
    means: NDArray[np.float32]  # (K, H, W, C), the baseline
    distance: str  # from an image to a mean, l1 or l2
    distances: Floats  # (K,), from the first of the N images to the means
    trained: TrainedModel
    weights: NDArray[np.float32]  # (n, H, W, C), from `pixel_images`
    predictions: Mapping[str, Predictions]  # by model, for the N images
    p_predicted: Floats  # (N,), by the trained model, of its prediction
    metrics: Mapping[str, Mapping[str, Any]]  # by model, as in metrics/*.json
    prior_log_loss: float  # of always predicting the class shares of the training set
    history: list[dict[str, float]]  # a row per epoch, as in metrics/history.csv
    sensitivity: Mapping[str, float]  # empty if the model has no weights per pixel
    mistakes: NDArray[np.intp]  # indices of images to show, most confident first


def render(results: Results) -> str:
    """Return the page as HTML."""
    trained, (images, actual) = results.trained, results.valid
    count, means = len(trained.classes), results.means
    labels = {name: p.labels for name, p in results.predictions.items()}
    right = {name: predicted == actual for name, predicted in labels.items()}
    matrices = {n: confusion_matrix(actual, p, count) for n, p in labels.items()}
    new = ~results.valid_in_train
    arrays = [means, trained.mean, *trained.params.values()]
    pad, size = offers_pad(images, trained.decoding), sum(a.nbytes for a in arrays)
    to_try = os.path.exists(TWIN) and (pad or len(results.mistakes) > 0)
    small = size <= MAX_EMBEDDED
    twin = TWIN.read_text("utf-8") if to_try and small else ""
    rankings = {name: p.ranking for name, p in results.predictions.items()}
    p = results.p_predicted
    p_first = np.where(labels["model"] == 0, p, 1 - p)  # of a pair of classes
    difference = images[0] / 255 - means[0]
    derived = {
        "params": {
            f"{name}.{key}": v
            if isinstance(v, str)
            else msgspec.json.encode(v).decode()
            for name, section in msgspec.to_builtins(results.params).items()
            for key, v in section.items()
        },
        "picture_style": picture_style(*trained.image_shape[:2]),
        "share": format_share,
        "shorten": shorten,
        "many": count > MANY,
        "confusion": matrices,
        "cells": {
            n: {i: int(m.flat[i]) for i in np.flatnonzero(m).tolist()}
            for n, m in matrices.items()
        },
        "matrices": {n: data_uri(pictures.confusion(m)) for n, m in matrices.items()},
        "confusions": {name: confusions(m) for name, m in matrices.items()},
        "mcnemar": mcnemar(right["model"], right["baseline"]),
        "without_copies": {n: r[new].mean() for n, r in right.items() if new.any()},
        "charts": charts.epoch_charts(results.history),
        "pair_charts": count == 2
        and charts.pair_charts(rankings, p_first, actual == 0),
        "mean_uris": _plain(means),
        "example": _plain(images[:1]) + _signed([difference], limit=1),
        "weights": _signed(results.weights),
        "linear": is_linear(trained),
        # Not shrunk if they can be tried: the model needs all pixels.
        "wrong": _plain([images[i] for i in results.mistakes], whole=bool(twin)),
        "pad": pad,
        "too_large": to_try and not small and size,
        "max_embedded": MAX_EMBEDDED,
        "twin": twin,
        "embedded": twin and _embed(results),
    }
    return load_template("template.html.j2").render(results._asdict() | derived)


def pixel_images(trained: TrainedModel) -> NDArray[np.float32]:
    """Return the per-pixel weights as images (n, H, W, C); n is 0 if there are none.

    Each image belongs to a class or, if the model is not linear, to a hidden unit. In
    gray, a pair of classes has one image; in colour, it has two, the second negated.
    """
    shape = trained.image_shape
    name = pixel_weights(trained.params, shape)
    rows = trained.params[name] if name else np.empty((math.prod(shape), 0), np.float32)
    images = rows.reshape(math.prod(shape), -1).T.reshape(-1, *shape)
    pair = len(images) == 1 and is_linear(trained)
    return np.concatenate([images, -images]) if pair and shape[2] == 3 else images


def is_linear(trained: TrainedModel) -> bool:
    """Return whether all weights connect a pixel to an output."""
    shapes = [array.shape for array in trained.params.values() if array.ndim > 1]
    size = math.prod(trained.image_shape), output_count(len(trained.classes))
    return shapes == [size]


class CompiledTemplates(FileSystemBytecodeCache):
    """Compiled templates, kept beside JAX's compiled programs.

    Compiling them anew takes a fifth of the report's time.
    """

    def get_cache_key(self, name: str, filename: str | None = None) -> str:  # noqa: ARG002
        """Return a template's name: clones share its file, whatever their folder."""
        return name

    def get_source_checksum(self, source: str) -> str:
        """Return a digest of all that the compiled template depends on."""
        options = Path(__file__).read_text("utf-8")  # in `load_template`
        return super().get_source_checksum(jinja2.__version__ + options + source)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Write a template, unless the folder is missing, full or read-only."""
        with suppress(OSError):
            super().dump_bytecode(bucket)


def load_template(name: str, *folders: Path) -> Template:
    """Load a template from one of these folders or this one, which has style.css."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,  # a class name may hold HTML
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=CompiledTemplates(runtime.CACHE),
    )
    return environment.get_template(name)


def picture_style(height: int, width: int) -> str:
    """Return the variables that style.css needs to size pictures of images (H, W)."""
    stretch = f"--stretch: {width * pictures.scale(width, height, 1):.3f}"
    smooth = height * width > CRISP_SIDE**2
    return stretch + "; --rendering: auto" * smooth


def sharp_side(count: int) -> float:
    """Return the side, in pixels, of the square that limits each of `count` pictures.

    Twice the CSS size, for high-density screens, unless there are many pictures.
    """
    return min(2 * SIDE, math.sqrt(MAX_PIXELS / max(count, 1)))


def offers_pad(images: NDArray[np.uint8], decoding: Decoding) -> bool:
    """Return whether images (N, H, W, C) look drawn on a pad: light ink on black.

    They do if the files are gray and more than half of all pixels are 0.
    """
    return decoding.color is None and int(np.count_nonzero(images)) < images.size / 2


def confusions(matrix: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
    """Return the WORST most frequent confusions of a matrix (K, K).

    Each has the actual class, the predicted class, and the number of images confused
    and in the actual class.
    """
    wrong = matrix - np.diag(np.diag(matrix))
    most = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
    cells = np.transpose(np.unravel_index(most, wrong.shape)).tolist()
    return [(i, j, wrong[i, j], matrix[i].sum()) for i, j in cells if wrong[i, j]]


def format_share(share: float, digits: int, unit: int = 1) -> str:
    """Format a share, 0 to 1, times the unit, without rounding it to none or all.

    Adds digits where it would round to 0 or to the unit.
    """
    for decimals in range(digits, digits + MAX_DIGITS):
        text = f"{unit * share:.{decimals}f}"
        if share in (0, 1) or float(text) not in (0, unit):
            return text
    step = 10.0**-decimals
    return f"< {step:.{decimals}f}" if share < 0.5 else f"> {unit - step:.{decimals}f}"


def _embed(results: Results) -> dict[str, Any]:
    """Return what script.js needs to run both models.

    The expected outputs for two test images, one blank and one noise, let it check
    whether the model in JavaScript is up to date.
    """
    trained, shape = results.trained, results.trained.image_shape
    noise = 7919 * np.arange(math.prod(shape)).reshape(shape) % 256  # as in script.js
    tests = np.stack([0 * noise, noise]).astype(np.uint8)
    count = len(trained.classes)
    return {
        "classes": trained.classes,
        "shape": shape,
        "bars": BARS if count > MANY else count,
        "outputs": trained.outputs,
        "distance": results.distance,
        "means": _base64(results.means),
        "mean": _base64(trained.mean),
        "arrays": {
            name: {"shape": array.shape, "data": _base64(array)}
            for name, array in trained.params.items()
        },
        "expected": trained.logits(tests).tolist(),
    }


def _plain(images: Sequence[NDArray] | NDArray, whole: bool = False) -> list[str]:
    side = math.inf if whole else sharp_side(len(images))
    drawn = pictures.to_images(pictures.shrink(images, side))
    return list(map(data_uri, drawn))


def _signed(images: Sequence[NDArray] | NDArray, **limit: float) -> list[str]:
    drawn = pictures.shrink(images, sharp_side(len(images)))
    return list(map(data_uri, pictures.diverging(drawn, **limit)))


def _base64(array: NDArray) -> str:
    # Little-endian, as Float32Array reads it on common processors.
    return base64.b64encode(array.astype("<f4").tobytes()).decode()
