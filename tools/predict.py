"""Classify images with the trained model, one line each: path, class, score.

A model file is all it needs (docs/model-file.md). For a folder of class folders, the
metrics follow, on stderr with --json or --csv. The exit status is 1 if anything could
not be read, else 0.
"""

import argparse
import csv
import io
import json
import math
import os
import sys
import warnings
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.metrics import classification_metrics
from stages.evaluation.outputs import predicted_labels, probabilities
from stages.images.archive import MAX_MEMBER
from stages.images.decode import FORMAT_NAMES, decode
from stages.images.names import escape, normalize
from stages.plumbing import artifacts, runtime
from stages.plumbing.errors import UserError, one_line
from stages.plumbing.progress import progress
from tools.image_files import LeftOut, walk

runtime.pin()  # before stages/model.py may import JAX, which reads the environment

from stages.evaluation.model_file import BLOCK_PIXELS, TrainedModel  # noqa: E402

# Quote all text: by default, csv in Python 3.11 does not quote \r.
write_csv = csv.writer(sys.stdout, "unix", quoting=csv.QUOTE_NONNUMERIC).writerow

Block = list[tuple[str, NDArray[np.uint8]]]
"""Paths and images (H, W, C)."""


def find_images(paths: list[str], left_out: LeftOut) -> Iterator[str | Exception]:
    """Yield the paths of images, searching folders recursively, or errors instead."""
    for i, path in enumerate(paths):
        if path == "-" and path in paths[:i]:
            yield UserError("-: standard input is already read: give it once")
        elif os.path.isdir(path):
            found = walk(path, left_out)
            empty = f"there is no image in this folder: name one with {FORMAT_NAMES}"
            yield next(found, UserError(f"{escape(path)}: {empty} files"))
            yield from found
        else:
            yield path


def read_image(path: str, model: TrainedModel) -> NDArray[np.uint8]:
    """Decode a file as preprocess did: (H, W, C). Raises OSError and UserError."""
    with open(0 if path == "-" else path, "rb") as file:
        content = file.read(MAX_MEMBER + 1)
    shown = escape(path)
    if len(content) > MAX_MEMBER:
        raise UserError(f"{shown}: larger than {MAX_MEMBER >> 20} MiB: leave it out")
    image = decode(content, shown, **model.decoding._asdict())
    if image.shape != model.image_shape:
        shapes = image.shape, model.image_shape
        size, model_size = (f"{h} x {w}" for h, w, _ in shapes)
        problem = f"its size is {size}, but the model is for {model_size}"
        remedy = f"set data.size to {[*model.image_shape[:2]]}, or resize it"
        raise UserError(f"{shown}: {problem}: {remedy}")
    return image


def explain(path: str, error: Exception) -> str:
    """Explain on one line what cannot be read, and what to do."""
    if isinstance(error, OSError):
        shown = escape(error.filename or path) or "''"
        remedy = "correct the path or its permissions, or leave it out"
        return f"{shown}: {error.strerror}: {remedy}"
    text = one_line(error) or ""
    again = " (settings take effect once the model is trained again)"
    return text + again if ": set data." in text else text


def warn(text: str) -> None:
    """Print a line to stderr, clear of the progress bar."""
    from tqdm import tqdm  # deferred: importing it takes 30 ms

    tqdm.write(f"predict: {text}", sys.stderr)


class Evaluation:
    """Compare predictions with the names of the folders that hold the images."""

    def __init__(self, paths: list[str], classes: list[str]) -> None:
        """Take the paths given, and the model's classes."""
        self.folders = [os.path.join(path, "") for path in paths if os.path.isdir(path)]
        self.classes = {normalize(name): i for i, name in enumerate(classes)}
        self.rows = array("d")  # actual and predicted label, probability of the actual
        self.others, self.example = 0, ""  # images in no folder of a class

    def add(self, path: str, predicted: int, scores: list[float]) -> None:
        """Take an answer for an image in one of the folders."""
        top = next((top for top in self.folders if path.startswith(top)), None)
        if top is None:
            return
        for name in normalize(path.removeprefix(top)).split("/")[:-1]:
            if (label := self.classes.get(name)) is not None:
                self.rows.extend([label, predicted, scores[label]])
                return
        self.others, self.example = self.others + 1, self.example or path

    def __str__(self) -> str:
        """Return the metrics on three lines, empty unless most images have a class."""
        rows = np.array(self.rows).reshape(-1, 3)
        if len(rows) <= self.others:
            return ""
        actual, predicted = rows[:, :2].astype(int).T
        found = classification_metrics(
            actual, predicted, [*self.classes], p_actual=rows[:, 2]
        )
        # Of the classes that have images.
        recall = np.array([*found["recall"].values()])[np.unique(actual)].mean()
        left = f"; not in a class folder: {self.others}, for example "
        left = left + escape(self.example) if self.others else ""
        low, high = found["accuracy_low"], found["accuracy_high"]
        return (
            f"accuracy           {found['accuracy']:.4f} (95 % interval {low:.4f} to "
            f"{high:.4f}), on {len(rows):,} images{left}\n"
            f"balanced accuracy  {recall:.4f}\n"
            f"log loss           {found['log_loss']:.4f}"
        )


def answer(
    block: Block, model: TrainedModel, form: argparse.Namespace, evaluation: Evaluation
) -> None:
    """Print a line for each image: path, predicted class and score. Empty the block."""
    if not block:
        return
    logits = model.logits(np.stack([image for _, image in block]))
    labels = predicted_labels(logits, model.outputs)
    all_scores = probabilities(logits, model.outputs).tolist()
    for (path, _), label, scores in zip(block, labels, all_scores, strict=True):
        name, score = model.classes[label], scores[label]
        evaluation.add(path, label, scores)
        if form.csv:
            write_csv([path, name, score, *scores])
        elif form.json:
            by_class = dict(zip(model.classes, scores, strict=True))
            row = {"image": path, "class": name, "score": score, "scores": by_class}
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(escape(path), escape(name), f"{score:.6f}", sep="\t")
    sys.stdout.flush()  # readers need not wait, and warnings come after
    block.clear()


def main() -> None:
    """Print a line for each image, in order, and report what was left out."""
    parser = argparse.ArgumentParser("python -m tools.predict", description=__doc__)
    paths_help = f"{FORMAT_NAMES} file, or a folder of them; - is standard input"
    parser.add_argument("paths", nargs="+", metavar="IMAGE|FOLDER", help=paths_help)
    model_help = "the model file (default: %(default)s)"
    parser.add_argument("--model", default=artifacts.MODEL, help=model_help)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="a JSON object per line")
    group.add_argument("--csv", action="store_true", help="a table with a header")
    arguments = parser.parse_args()
    try:
        model = TrainedModel.load(arguments.model)
    except (OSError, UserError) as error:
        if arguments.model == artifacts.MODEL:
            raise
        # Replace the remedy: dvc repro would not rebuild a file from elsewhere.
        problem = explain(arguments.model, error).rpartition(": ")[0]
        raise UserError(f"{problem}: give --model another file") from None
    if arguments.json or arguments.csv:
        assert isinstance(sys.stdout, io.TextIOWrapper)
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if arguments.csv:  # prefixed, since a class may be named like a column
        scores = [f"score_{name}" for name in model.classes]
        write_csv(["image", "class", "score", *scores])
    block, size = Block(), min(256, BLOCK_PIXELS // math.prod(model.image_shape))
    left_out, failed = LeftOut(), False
    evaluation = Evaluation(arguments.paths, model.classes)
    images = find_images(arguments.paths, left_out)
    # On a terminal, the answers themselves show the progress.
    for found in images if os.isatty(1) else progress(images, "classify", "images"):
        try:
            if isinstance(found, Exception):
                raise found
            block.append((found, read_image(found, model)))
        except (OSError, UserError) as error:
            answer(block, model, arguments, evaluation)
            warn(explain(str(found), error))
            failed = True
        if len(block) >= size:
            answer(block, model, arguments, evaluation)
    answer(block, model, arguments, evaluation)
    for line in left_out:
        warn(f"left out, {escape(line)}")
    if metrics := str(evaluation):
        print(metrics, file=sys.stderr if arguments.json or arguments.csv else None)
    sys.exit(failed)


if __name__ == "__main__":
    runtime.explain_errors("predict")
    warnings.simplefilter("ignore")  # Pillow's; what it cannot read is an error
    main()
