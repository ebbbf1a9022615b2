"""What params.yaml has to say of the images, and how to say it."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import yaml

from stages.images.names import natural_order
from stages.evaluation.model_file import outputs_of
from stages.plumbing import parameters
from stages.plumbing.errors import UserError
from hermetic.values import find, parse_yaml
from tools.pack.place import Packed

MAX_SIDE = 64
"""Of images that are resized, the longer side in pixels."""
MAX_KEPT_SIDE, MAX_KEPT_PIXELS = 512, 2**30
"""Images of one size are resized, too, if they are larger, or more in all."""


def choose_params(
    images: Sequence[Packed],
    folders: tuple[str, str],
    current: Any,
    size: Sequence[int] | None,
    background: int | None,
) -> dict[str, Any]:
    """Return what params.yaml has to say of the images, by dotted key.

    `current` is its content; `size` and `background` are None to choose them. Raises
    UserError if the loss cannot learn so many classes.
    """
    classes = sorted({image.label for image in images}, key=natural_order)
    listed = value_at(current, "data.classes")
    if isinstance(listed, list) and sorted(map(repr, listed)) == sorted(
        map(repr, classes)
    ):
        classes = listed  # in the order that somebody has chosen
    count = 1 if len(classes) == 2 else len(classes)
    outputs_of(value_at(current, "train.loss"), count)
    size = size or choose_size(Counter(image.look.size for image in images))
    if background is None:
        background = choose_background(inks_of(images))
    params: dict[str, Any] = {
        "data.classes": classes,
        "data.splits.train": folders[0],
        "data.splits.valid": folders[1],
        "data.size": size and list(size),
        "data.grayscale": not all(image.look.is_gray for image in images),
        "data.background": background,
    }
    height, width = size or images[0].look.size
    levels = [image.look.level_over(background) / 255 for image in images]
    momentum = value_at(current, "train.momentum")
    if not isinstance(momentum, int | float):
        momentum = 0
    bounds = {
        "train.batch_size": sum(image.split == 0 for image in images),
        "train.learning_rate": max_learning_rate(
            height * width, levels, len(classes), momentum
        ),
    }
    for key, bound in bounds.items():
        value = value_at(current, key)
        params[key] = min(value, bound) if isinstance(value, int | float) else bound
    return params


def choose_size(sizes: Counter[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the height and width to resize images to, or None to keep their size.

    None is for images of one size that is not too large. The others get their median
    height and width, shrunk to MAX_SIDE.
    """
    height, width = median_size(sizes)
    pixels = sizes.total() * height * width
    is_small = max(height, width) <= MAX_KEPT_SIDE and pixels <= MAX_KEPT_PIXELS
    if len(sizes) == 1 and is_small:
        return None
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def max_learning_rate(
    pixels: int, levels: Sequence[float], count: int, momentum: float
) -> float:
    """Return a learning rate at which bright images do not diverge, of one digit.

    `levels` (N,) are the mean gray levels of images of `count` classes, from 0 to 1.
    Gradient descent with momentum m needs a rate below 2 (1 + m) / L (Polyak 1964). The
    curvature L of the log loss is at most 1/4 of the largest eigenvalue of the mean of
    x xᵀ for a pair, 1/2 for more classes (Böhning 1992). The eigenvalue is at least
    `pixels` times the mean squared level, and hardly more on a bright background.
    """
    eigenvalue = pixels * float(np.mean(np.square(levels)))
    curvature = eigenvalue / (4 if count == 2 else 2)
    bound = 2 * (1 + momentum) / max(curvature, 1e-6)
    digit = 10.0 ** math.floor(math.log10(bound))
    return float(f"{math.floor(bound / digit) * digit:.0e}")


def median_size(sizes: Counter[tuple[int, int]]) -> tuple[float, float]:
    """Return the median height and the median width."""
    height, width = np.median(np.repeat([*sizes], [*sizes.values()], axis=0), axis=0)
    return float(height), float(width)


def choose_background(inks: Sequence[float]) -> int | None:
    """Return the gray level to lay transparent images over: far from their ink."""
    if not inks:
        return None
    visible = [ink for ink in inks if not math.isnan(ink)]
    return 255 if not visible or np.mean(visible) < 128 else 0


def inks_of(images: Iterable[Packed]) -> list[float]:
    """Return the gray level of the ink of every image with transparent pixels."""
    return [image.look.ink for image in images if image.look.is_transparent]


def value_at(params: Any, key: str) -> Any:
    """Return the value at a dotted key; an ellipsis if there is none."""
    try:
        return find(params, key)
    except KeyError:
        return ...


def edit_params(text: str, params: Mapping[str, Any]) -> str:
    """Return the text of params.yaml with other values where they differ.

    Raises UserError if a key is missing, or the value is written elsewhere.
    """
    changes = _differing(text, params)
    try:
        edited = replace_values(text, changes)
    except KeyError as error:
        raise UserError(
            f"{parameters.FILE}: {error.args[0]} is missing: add it, with any value"
        ) from None
    with suppress(yaml.YAMLError):  # garbled: two keys were one node
        changes = _differing(edited, params)
    if changes:
        raise UserError(
            f"{parameters.FILE} has anchors or merges: write these values in full: "
            f"{', '.join(changes)}"
        )
    return edited


def _differing(text: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that have another value, or none, in a YAML text."""
    current = parse_yaml(text)
    # By repr, since 1 equals true.
    return {
        key: value
        for key, value in params.items()
        if repr(value_at(current, key)) != repr(value)
    }


def replace_values(text: str, changes: Mapping[str, Any]) -> str:
    """Return a YAML text with other values at dotted keys.

    Comments and layout around them stay as they are. Raises KeyError for a key that is
    not there, and yaml.YAMLError for what is no YAML.
    """
    root = yaml.compose(text, yaml.SafeLoader)  # libyaml's marks count bytes
    edits = []
    for key, value in changes.items():
        node = _find(root, key)
        start, end = node.start_mark.index, _end(node)
        is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        # A flow value has to stand further to the right than the key of a block.
        edits.append((start, end, "  " * is_block + _format(value)))
    for start, end, value in sorted(edits, reverse=True):
        # An empty value has no space before it.
        space = " " if start == end and text[start - 1] == ":" else ""
        text = text[:start] + space + value + text[end:]
    return text


def _find(node: yaml.Node | None, key: str) -> yaml.Node:
    for step in key.split("."):
        inner = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in inner if name.value == step), None)
        if node is None:
            raise KeyError(key)
    assert node is not None
    return node


def _end(node: yaml.Node) -> int:
    """Return where a value ends; a block claims the comments after it, too."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _format(value: Any) -> str:
    """Return a value on one line, each string in quotes."""
    if isinstance(value, str):
        return yaml.safe_dump(
            value, default_style='"', allow_unicode=True, width=float("inf")
        ).strip()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_format, value))}]"
    return json.dumps(value)
