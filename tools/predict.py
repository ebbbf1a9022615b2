"""Classify images with the trained model: `python -m tools.predict IMAGE… | FOLDER…`.

The model's file says all that is needed (docs/model-file.md); params.yaml is not read.
"""

import argparse
import csv
import errno
import io
import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from stages.images.archive import MAX_MEMBER
from stages.images.decode import FORMAT_NAMES, decode
from stages.evaluation import outputs
from stages.evaluation.model_file import Linear
from stages.plumbing import artifacts, runtime
from stages.plumbing.errors import UserError, one_line
from stages.plumbing.progress import progress
from tools.image_files import LeftOut, escape, walk

COMMAND = "predict"
BLOCK = 256
"""Images that are in memory at the same time, or fewer if they are large."""
PIECE = 2**16
"""Bytes to read first: asking for the most there may be takes 10 µs a file."""
REMEDIES = {
    errno.ENOENT: "correct the path",
    errno.ENOTDIR: "correct the path",
    errno.EACCES: "get permission to read it (chmod)",
}


def explain(path: str, error: OSError) -> UserError:
    """Return the error to raise for a file or a folder that cannot be read."""
    remedy = REMEDIES.get(error.errno or 0, "leave it out")
    return UserError(
        f"{escape(path) or repr(path)}: {error.strerror or error}: {remedy}"
    )


def load_model(path: str) -> Linear:
    """Load a model; raise UserError if its file is missing, damaged or no model."""
    try:
        return Linear.load(path)
    except OSError as error:
        raise explain(path, error) from None
    except UserError:
        if path == artifacts.MODEL:
            raise
        # A file from elsewhere, for which `dvc repro` does nothing.
        if not os.path.exists(path):
            raise UserError(f"{path} is missing: correct the path") from None
        raise UserError(
            f"{path} is no model, or damaged: get it again, or name another model"
        ) from None


def find_images(paths: Sequence[str], left_out: LeftOut) -> Iterator[str | UserError]:
    """Yield the paths of images, those in folders and below included.

    What cannot be read is yielded as an error, in its place.
    """
    for i, path in enumerate(paths):
        if path == "-" and "-" in paths[:i]:
            yield UserError("-: standard input is already read: give it once")
        elif not os.path.isdir(path):
            yield path
        else:
            found = (
                explain(item.filename, item) if isinstance(item, OSError) else item
                for item in walk(path, left_out)
            )
            empty = UserError(
                f"{escape(path)}: there is no image in this folder: name one with "
                f"{FORMAT_NAMES} files"
            )
            yield next(found, empty)
            yield from found


def read_image(path: str, model: Linear, *, is_own: bool) -> NDArray[np.uint8]:
    """Decode an image file as preprocess did for the model: (H, W); `-` is stdin.

    Raises UserError for a file that cannot be read or decoded, or whose size differs
    from the model's. `is_own` says whether `dvc repro` would make the model anew.
    """
    shown = escape(path)
    try:
        with open(0 if path == "-" else path, "rb") as file:
            content = file.read(PIECE)
            if len(content) == PIECE:
                content += file.read(MAX_MEMBER + 1 - PIECE)
    except OSError as error:
        raise explain(path, error) from None
    if len(content) > MAX_MEMBER:
        raise UserError(f"{shown}: has over {MAX_MEMBER >> 20} MiB: leave it out")
    try:
        image = decode(content, shown, **model.decoding._asdict())
    except UserError as error:
        if ": set data." not in str(error).removeprefix(shown):
            raise
        done = "dvc repro has run" if is_own else "the model is trained again"
        raise UserError(f"{error} (a setting counts once {done})") from None
    if image.shape != model.image_size:
        size, model_size = (f"{h} x {w}" for h, w in (image.shape, model.image_size))
        wanted = list(model.image_size)
        remedy = f"resize it, or train the model with data.size: {wanted}"
        if is_own:
            remedy = f"set data.size in params.yaml to {wanted}, run dvc repro, and it "
            remedy += "is resized"
        raise UserError(
            f"{shown}: its size is {size}, but the model is for {model_size}: {remedy}"
        )
    return image


def read_images(
    found: Iterable[str | UserError], model: Linear, *, is_own: bool
) -> Iterator[tuple[str, NDArray[np.uint8]] | UserError]:
    """Yield path and image (H, W), or the error, of each path that was found."""
    for path in found:
        if isinstance(path, UserError):
            yield path
            continue
        try:
            image = read_image(path, model, is_own=is_own)
        except UserError as error:
            yield error
        else:
            yield path, image


def classify(
    images: NDArray[np.uint8], model: Linear
) -> Iterator[tuple[int, list[float]]]:
    """Yield the label of each image (N, H, W), and the probability of each class."""
    logits = linear.logits(images, model.weights, model.bias)
    labels = linear.predicted_labels(logits, model.outputs).tolist()
    scores = linear.probabilities(logits, model.outputs).tolist()
    yield from zip(labels, scores, strict=True)


def tsv_row(path: str, label: int, scores: list[float], classes: list[str]) -> str:
    """Return path, class and score, with tabs between them."""
    return f"{escape(path)}\t{escape(classes[label])}\t{scores[label]:.6f}"


def json_row(path: str, label: int, scores: list[float], classes: list[str]) -> str:
    """Return a JSON object. A byte that is no UTF-8 is a lone surrogate in the path."""
    row = {"image": path, "class": classes[label], "score": scores[label]}
    by_class = dict(zip(classes, scores, strict=True))
    return json.dumps({**row, "scores": by_class}, ensure_ascii=False)


def csv_row(path: str, label: int, scores: list[float], classes: list[str]) -> str:
    """Return the row of a CSV file for the header of `csv_header`."""
    return join_csv([path, classes[label], scores[label], *scores])


def csv_header(classes: list[str]) -> str:
    """Return the names of the columns: a class may be called image, class or score."""
    return join_csv(["image", "class", "score", *(f"score_{name}" for name in classes)])


def join_csv(fields: Iterable[str | float]) -> str:
    r"""Return a row of CSV (RFC 4180), without the end of its line.

    All texts are quoted: by itself, csv quotes no \r in Python 3.11.
    """
    row = io.StringIO()
    csv.writer(row, quoting=csv.QUOTE_NONNUMERIC, lineterminator="").writerow(fields)
    return row.getvalue()


def warn(text: str) -> None:
    """Print a line to stderr, after all that was printed to stdout."""
    print(end="", flush=True)
    line = f"{COMMAND}: {text}"
    if sys.stderr.isatty():
        from tqdm import tqdm  # here, since importing it takes 30 ms

        tqdm.write(line, file=sys.stderr)  # which first takes the progress away
    else:
        print(line, file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        f"python -m tools.{COMMAND}",
        description="Classify images with the trained model, a line for each.",
        epilog="The exit status is 1 if anything could not be read, else 0.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="IMAGE|FOLDER",
        help=f"{FORMAT_NAMES} file, or a folder of them; - is standard input",
    )
    model_help = "the model's file (default: %(default)s)"
    parser.add_argument(
        "--model", metavar="FILE", default=artifacts.MODEL, help=model_help
    )
    form = parser.add_mutually_exclusive_group()
    json_help = "print a JSON object per line, with a score for each class"
    form.add_argument("--json", action="store_true", help=json_help)
    csv_help = "print CSV with a header, and a column for each class's score"
    form.add_argument("--csv", action="store_true", help=csv_help)
    return parser.parse_args()


def main() -> None:
    """Print a line per image: its path, its class, and the probability of the class."""
    arguments = parse_arguments()
    model = load_model(arguments.model)
    row_of = tsv_row
    if arguments.json or arguments.csv:
        row_of = json_row if arguments.json else csv_row
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if arguments.csv:
        print(csv_header(model.classes))

    left_out = LeftOut()
    found: Iterable[str | UserError] = find_images(arguments.paths, left_out)
    if not os.isatty(1):  # where the answers show the progress, and it would mix in
        found = progress(found, "classify", "images")
    is_own = arguments.model == artifacts.MODEL
    outcomes = read_images(found, model, is_own=is_own)
    pixels = math.prod(model.image_size)
    size = min(BLOCK, max(linear.BLOCK_PIXELS // max(pixels, 1), 1))
    failed = False
    while block := list(islice(outcomes, size)):
        images = [item[1] for item in block if not isinstance(item, UserError)]
        answers = classify(np.stack(images), model) if images else iter(())
        for item in block:
            if isinstance(item, UserError):
                warn(one_line(item) or "")
                failed = True
            else:
                print(row_of(item[0], *next(answers), model.classes))
        print(end="", flush=True)  # so that a pipe's reader need not wait
    for reason, count, example in left_out:
        warn(f"left out, {reason}: {count}, for example {escape(example)}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    runtime.explain_errors(COMMAND)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    warnings.simplefilter("ignore")  # Pillow's: what cannot be read is an error
    main()
