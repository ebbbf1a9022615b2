"""What does the trained linear model say of an image file? `python -m stages.predict IMAGE…`, no pipeline stage."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages import artifacts, images, linear, parameters
from stages.running import Refusal


def read(paths: list[str], data: parameters.Data, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The images, uint8 (N, H, W), in the form that preprocess gives them; the path `-` is standard input.

    Raises Refusal for what images.decode refuses, and for an image that is not of the model's shape (H, W).
    """
    pixels = []
    for path in paths:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        image = images.decode(content, path, data.size, grayscale=data.grayscale)
        if image.shape != shape:
            sizes = [" x ".join(map(str, each)) for each in (image.shape, shape)]
            way_out = f"set data.size in {parameters.FILE} to {list(shape)}, and it is resized"
            msg = f"{path}: its size is {sizes[0]}, but the model is for {sizes[1]}: {way_out}"
            raise Refusal(msg)
        pixels.append(image)
    return np.stack(pixels)


def main() -> None:
    """Print a line for each image: its path, its class, and the probability of that class."""
    parser = argparse.ArgumentParser(prog="python -m stages.predict", description="Classify image files.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, BMP or PNM file; - is standard input")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line, with a score for each class")
    arguments = parser.parse_args()
    data, loss = parameters.load(parameters.Data), parameters.load(parameters.Train).loss
    means = artifacts.load_arrays(artifacts.BASELINE, {"means": "float32"})["means"]
    model = artifacts.load_arrays(artifacts.LINEAR, {"weights": "float32", "bias": "float32"})
    if len(means) != len(data.classes):
        msg = f"{parameters.FILE}: data.classes: {len(data.classes)}, but the models know {len(means)}: run dvc repro"
        raise Refusal(msg)
    raw = linear.raw_predictions(read(arguments.images, data, means.shape[1:]), **model)
    for path, scores, best in zip(
        arguments.images, linear.probabilities(raw, loss), linear.predicted_classes(raw, loss), strict=True
    ):
        name, score = data.classes[best], float(scores[best])
        if arguments.json:
            each = dict(zip(data.classes, scores.tolist(), strict=True))
            print(json.dumps({"image": path, "class": name, "score": score, "scores": each}, ensure_ascii=False))
        else:
            print(f"{path}\t{name}\t{score:.6f}")


if __name__ == "__main__":
    main()
