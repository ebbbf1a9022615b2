"""Classify image files with the trained model: `python -m tools.predict IMAGE…`.

models/linear.npz says all that is needed; params.yaml is not read.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.images.decode import FORMAT_NAMES, decode
from stages.model import linear
from stages.model.linear import Linear
from stages.plumbing import artifacts, runtime
from stages.plumbing.errors import UserError


def read_images(paths: list[str], model: Linear) -> NDArray[np.uint8]:
    """Decode image files as preprocess did for the model: (N, H, W); `-` is stdin.

    Raises UserError for an image that cannot be decoded, or whose size differs from
    the model's.
    """
    images = []
    for path in paths:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        image = decode(content, path, **model.decoding._asdict())
        if image.shape != model.image_size:
            size, model_size = (
                f"{h} x {w}" for h, w in (image.shape, model.image_size)
            )
            raise UserError(
                f"{path}: its size is {size}, but the model is for {model_size}: set "
                f"data.size in params.yaml to {list(model.image_size)}, run dvc repro, "
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
    image_help = f"{FORMAT_NAMES} file; - is standard input"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=image_help)
    json_help = "print a JSON object per line, with a score for each class"
    parser.add_argument("--json", action="store_true", help=json_help)
    arguments = parser.parse_args()

    model = Linear.load(artifacts.LINEAR)
    images = read_images(arguments.images, model)
    logits = linear.logits(images, model.weights, model.bias)
    probabilities = linear.probabilities(logits, model.outputs)
    labels = linear.predicted_labels(logits, model.outputs)
    for path, scores, label in zip(
        arguments.images, probabilities.tolist(), labels, strict=True
    ):
        name, score = model.classes[label], scores[label]
        if arguments.json:
            by_class = dict(zip(model.classes, scores, strict=True))
            row = {"image": path, "class": name, "score": score, "scores": by_class}
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(f"{path}\t{name}\t{score:.6f}")


if __name__ == "__main__":
    runtime.explain_errors("predict")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    main()
