"""Classify image files with the trained model: `python -m tools.predict IMAGE…`."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.images.decode import decode
from stages.model import linear
from stages.plumbing import artifacts, parameters, runtime
from stages.plumbing.errors import UserError


def read_images(
    paths: list[str], data: parameters.Data, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Decode image files as preprocess does: (N, H, W); `-` is standard input.

    Raises UserError for an image that cannot be decoded, or whose shape differs from
    the model's.
    """
    images = []
    for path in paths:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        image = decode(content, path, data.size, grayscale=data.grayscale)
        if image.shape != shape:
            size, model_size = (f"{h} x {w}" for h, w in (image.shape, shape))
            raise UserError(
                f"{path}: its size is {size}, but the model is for {model_size}: "
                f"set data.size in {parameters.FILE} to {list(shape)}, "
                "and it is resized"
            )
        images.append(image)
    return np.stack(images)


def main() -> None:
    """Print a line per image: its path, its class, and the probability of the class."""
    parser = argparse.ArgumentParser(
        "python -m tools.predict",
        description="Classify image files with the trained model.",
    )
    image_help = "PNG, JPEG, BMP or PNM file; - is standard input"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=image_help)
    json_help = "print a JSON object per line, with a score for each class"
    parser.add_argument("--json", action="store_true", help=json_help)
    arguments = parser.parse_args()

    data = parameters.load(parameters.Data)
    loss = parameters.load(parameters.Train).loss
    means = artifacts.load_arrays(artifacts.BASELINE, {"means": "float32"})["means"]
    dtypes = {"weights": "float32", "bias": "float32"}
    model = artifacts.load_arrays(artifacts.LINEAR, dtypes)
    if len(means) != len(data.classes):
        raise UserError(
            f"{parameters.FILE}: data.classes: {len(data.classes)}, "
            f"but the models know {len(means)}: run dvc repro"
        )
    images = read_images(arguments.images, data, means.shape[1:])
    logits = linear.logits(images, **model)
    probabilities = linear.probabilities(logits, loss)
    labels = linear.predicted_labels(logits, loss)
    for path, scores, label in zip(
        arguments.images, probabilities.tolist(), labels, strict=True
    ):
        name, score = data.classes[label], scores[label]
        if arguments.json:
            by_class = dict(zip(data.classes, scores, strict=True))
            row = {"image": path, "class": name, "score": score, "scores": by_class}
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(f"{path}\t{name}\t{score:.6f}")


if __name__ == "__main__":
    runtime.explain_errors("predict")
    main()
