"""Choose parameters for the images; edit params.yaml."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML, CollectionNode, MappingNode

from stages.evaluation.outputs import output_count, outputs_of
from stages.images.decode import decode
from stages.images.names import escape, natural_order
from stages.plumbing.errors import UserError
from stages.plumbing.parameters import FILE, Train
from stages.plumbing.progress import progress
from stages.plumbing.tensors import Decoding
from tools.image_files import Read, read_file
from tools.pack.look import Image

MAX_SIDE = 64  # of images that are resized, in pixels
MAX_KEPT_SIDE, MAX_KEPT = 512, 2**30  # pixels: side and total to keep images as is
SAMPLE, SAMPLE_PIXELS = 500, 2**26  # limits of what is read to choose them
# The defaults of params.yaml, which an earlier `pack` may have changed.
BATCH_SIZE, MIN_EPOCHS = 64, 20
STEPS = 3000  # training usually converges in a third of them
MIN_CURVATURE = 1e-3  # of images that are almost all alike


def choose_params(
    images: Sequence[Image],
    listed: Any,
    train: Train,
    size: Any,
    background: Any,
    *,
    gray: bool,
    read: Read = read_file,
) -> dict[str, Any]:
    """Return the parameters that the images need, by dotted key.

    `listed` is the current data.classes; `size` and `background` are chosen if None.
    `gray` converts colour to gray. `read` reads the images.
    Raises UserError if the loss cannot learn that many classes.
    """
    classes = sorted({image.label for image in images}, key=natural_order)
    if isinstance(listed, list) and sorted(map(str, listed)) == sorted(classes):
        classes = [*map(str, listed)]  # keep the user's order
    outputs_of(train.loss, output_count(len(classes)))
    size = size or choose_size([image.size for image in images])
    inks = [image.ink for image in images if image.opacity < 1]
    if inks and background is None:  # contrasts with the ink
        visible = [ink for ink in inks if not math.isnan(ink)]
        background = 255 if np.mean(visible or [0]) < 128 else 0
    color = "gray" if any(not image.is_gray for image in images) else None
    if any(image.has_color for image in images) and not gray:
        color = "rgb"
    chosen = [image for image in images if image.split == 0]
    pixels = read_pixels(chosen, read, Decoding(size, color, background))
    return {
        "data.classes": classes,
        "data.size": size,
        "data.color": color,
        "data.background": background,
    } | choose_training(pixels, len(chosen), len(classes), train)


def read_pixels(
    images: Sequence[Image], read: Read, decoding: Decoding
) -> NDArray[np.float32]:
    """Decode some of the images as preprocess will: (N, H·W·C) in [0, 1]."""

    def pixels(image: Image) -> NDArray[np.uint8]:
        return decode(read(image.path), image.path, **decoding._asdict()).ravel()

    rows = [pixels(images[0])]
    count = min(len(images), SAMPLE, max(2, SAMPLE_PIXELS // rows[0].size))
    spread = np.linspace(0, len(images) - 1, count).astype(int)  # images of all classes
    rows = [pixels(images[i]) for i in progress(spread, "read pixels", "images", count)]
    return np.array(rows, np.float32) / np.float32(255)


def choose_training(
    pixels: NDArray[np.float32], images: int, classes: int, train: Train
) -> dict[str, Any]:
    """Return the parameters of `train` for this many training images, by dotted key.

    `pixels` (N, P) are those of a sample. The learning rate is 1 / 2L, to one
    digit, where L is the curvature of the loss. With momentum m, gradient descent
    converges below 2 (1 + m) / L (Polyak 1964), but minibatches fluctuate. L is the
    largest eigenvalue of the mean of x xᵀ over the pixels x, times at most 1/4 for the
    log loss of a pair, 1/2 for more classes (Böhning 1992), and 2 for the squared
    error. l2 is that of scikit-learn's LogisticRegression.
    """
    batch_size = min(BATCH_SIZE, images)
    x = pixels - pixels.mean(0) if train.subtract_mean else pixels
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # same eigenvalues but for zeros
    eigenvalue = float(np.linalg.eigvalsh(gram)[-1]) / len(x)
    second = 2 if train.loss == "squared_error" else 1 / 4 if classes == 2 else 1 / 2
    rate = 1 / (2 * max(eigenvalue * second, MIN_CURVATURE))
    return {
        "train.learning_rate": float(f"{rate:.0e}"),
        "train.l2": float(f"{1 / images:.1e}"),
        "train.batch_size": batch_size,
        "train.epochs": max(MIN_EPOCHS, math.ceil(STEPS / (images // batch_size))),
    }


def choose_size(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return the height and width to resize images to: the median, up to MAX_SIDE.

    Images of one size keep it, unless it is too large.
    """
    median = np.median(sizes, axis=0)
    pixels = len(sizes) * median.prod()
    if len({*sizes}) == 1 and median.max() <= MAX_KEPT_SIDE and pixels <= MAX_KEPT:
        return [*sizes[0]]
    return [max(1, round(side)) for side in median * min(1, MAX_SIDE / median.max())]


def edit_params(text: str, params: Mapping[str, Any]) -> str:
    """Return the text of params.yaml with new values at dotted keys.

    A round trip through ruamel.yaml would also drop comments, write null as an empty
    value, and change indents and line ends. Raises UserError if a key is missing or
    anchored.
    """
    yaml = YAML(typ="safe", pure=True)  # libyaml's marks count bytes
    root, edits = yaml.compose(text), []
    for key, value in params.items():
        name = node = root
        for step in key.split("."):
            inner = node.value if isinstance(node, MappingNode) else []
            name, node = next((p for p in inner if p[0].value == step), (None, None))
        if not node:
            raise UserError(f"{FILE}: {key} is missing: add it, with any value")
        # By repr, since 1 equals true.
        if repr(yaml.constructor.construct_object(node, deep=True)) == repr(value):
            continue
        if node.anchor:
            raise UserError(f"{FILE}: {key} has an anchor: write its value in full")
        start, end, space = node.start_mark.index, node.end_mark.index, ""
        if start == end:  # an empty value, with the mark of what comes next
            start = end = text.index(":", name.end_mark.index) + 1
            space = " "
        while isinstance(node, CollectionNode) and not node.flow_style:
            # A block claims the comments after it, too, and may be indented less.
            last = node.value[-1]
            node = last[1] if isinstance(last, tuple) else last
            end, space = node.end_mark.index, "  "
        new = escape(json.dumps(value, ensure_ascii=False))
        edits.append((start, end, space + new))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text
