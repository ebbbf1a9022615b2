"""Choose parameters for the images; edit params.yaml."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from ruamel.yaml import YAML, CollectionNode, MappingNode

from stages.evaluation.outputs import outputs_of
from stages.images.names import natural_order
from stages.plumbing.errors import UserError
from stages.plumbing.parameters import FILE, Train
from tools.image_files import escape
from tools.pack.look import Image

MAX_SIDE = 64  # of images that are resized, in pixels
MAX_KEPT_SIDE, MAX_KEPT = 512, 2**30  # pixels: side and total to keep images as is


def choose_params(
    images: Sequence[Image],
    listed: Any,
    train: Train,
    size: Any,
    background: Any,
    *,
    gray: bool,
) -> dict[str, Any]:
    """Return the parameters that the images need, by dotted key.

    `listed` is the current data.classes; `size` and `background` are chosen if None.
    `gray` converts colour to gray.
    Raises UserError if the loss cannot learn that many classes.
    """
    classes = sorted({image.label for image in images}, key=natural_order)
    if isinstance(listed, list) and sorted(map(str, listed)) == sorted(classes):
        classes = [*map(str, listed)]  # keep the user's order
    outputs_of(train.loss, 1 if len(classes) == 2 else len(classes))
    size = size or choose_size([image.size for image in images])
    inks = [image.ink for image in images if image.opacity < 1]
    if inks and background is None:  # contrasts with the ink
        visible = [ink for ink in inks if not math.isnan(ink)]
        background = 255 if np.mean(visible or [0]) < 128 else 0
    levels = [i.level + (1 - i.opacity) * (background or 0) for i in images]
    color = "gray" if any(not image.is_gray for image in images) else None
    if any(image.has_color for image in images) and not gray:
        color = "rgb"
    pixels = math.prod(size or images[0].size)
    bound = max_learning_rate(pixels, levels, len(classes), train.momentum)
    return {
        "data.classes": classes,
        "data.size": size,
        "data.color": color,
        "data.background": background,
        "train.batch_size": min(train.batch_size, sum(i.split == 0 for i in images)),
        "train.learning_rate": min(train.learning_rate, bound),
    }


def choose_size(sizes: Sequence[tuple[int, int]]) -> list[int] | None:
    """Return the height and width to resize images to: the median, up to MAX_SIDE.

    Return None to keep images of one size that is not too large.
    """
    median = np.median(sizes, axis=0)
    pixels = len(sizes) * median.prod()
    if len({*sizes}) == 1 and median.max() <= MAX_KEPT_SIDE and pixels <= MAX_KEPT:
        return None
    return [max(1, round(side)) for side in median * min(1, MAX_SIDE / median.max())]


def max_learning_rate(
    pixels: int, levels: ArrayLike, count: int, momentum: float
) -> float:
    """Return a learning rate, to one digit, low enough for bright images.

    `levels` (N,) are the mean gray levels, 0 to 255, of images of `count` classes.
    Gradient descent with momentum m needs a rate below 2 (1 + m) / L (Polyak 1964). The
    curvature L of the log loss is at most 1/4 of the largest eigenvalue of the mean of
    x xᵀ for a pair, 1/2 for more classes (Böhning 1992). The eigenvalue is at least
    `pixels` times the mean squared level, and hardly more on a bright background.
    """
    eigenvalue = pixels * float(np.mean(np.square(levels))) / 255**2
    curvature = eigenvalue / (4 if count == 2 else 2)
    bound = 2 * (1 + momentum) / max(curvature, 1e-6)
    digit = 10.0 ** math.floor(math.log10(bound))
    return float(f"{math.floor(bound / digit) * digit:.0e}")


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
