"""Say what the images are, and what becomes of them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stages.images.names import natural_order
from tools.image_files import LeftOut
from tools.pack.params import inks_of, median_size, value_at
from tools.pack.place import SPLITS, Packed

FEW = 10
"""A class of fewer training images is named."""
FAINT = 32
"""Ink so close to the gray level under it can hardly be seen."""
MAX_ROWS = 20
"""Of the table of classes."""
MAX_NAME = 40
"""Characters of a class's name in the table."""


def describe(
    images: Sequence[Packed],
    params: Mapping[str, Any],
    current: Any,
    left_out: LeftOut,
) -> Iterator[str]:
    """Yield lines that say what the images are, and what becomes of them.

    `params` are the values to come by dotted key, `current` is all of params.yaml.
    """
    yield from _describe_classes(images)
    size = params["data.size"]
    sizes = Counter(image.look.size for image in images)
    found = _times(min(sizes, key=math.prod))
    if len(sizes) > 1:
        found += f" to {_times(max(sizes, key=math.prod))}, median "
        found += _times(median_size(sizes))
    yield f"height x width: {found}, {f'resized to {_times(size)}' if size else 'kept'}"
    if count := sum(not image.look.is_gray for image in images):
        yield f"in colour or with a palette: {count}, converted to gray"
    if inks := inks_of(images):
        ground = params["data.background"]
        yield f"with transparent pixels: {len(inks)}, laid over gray level {ground}"
        faint = [
            image.path
            for image in images
            if image.look.is_transparent
            and not abs(image.look.ink - ground) > FAINT  # or NaN
        ]
        if faint:
            yield f"hard to see on that: {len(faint)}, for example {faint[0]}"
    if count := sum(image.look.is_turned for image in images):
        yield f"turned as EXIF says: {count}"
    trained = {"train.batch_size": "batches of", "train.learning_rate": "learning rate"}
    said = []
    for key, name in trained.items():
        said.append(f"{name} {params[key]:g}")
        if params[key] != (old := value_at(current, key)):
            said[-1] += f" instead of {old}"
    yield f"training: {', '.join(said)}"
    yield from _describe_copies(images)
    yield from describe_left_out(left_out)


def describe_left_out(left_out: LeftOut) -> Iterator[str]:
    """Yield lines that say what is not packed, and why."""
    for reason, count, example in left_out:
        yield f"left out: {count}, for example {example}: {reason}"


def _times(size: Sequence[float]) -> str:
    return " x ".join(f"{side:g}" for side in size)


def _describe_classes(images: Sequence[Packed]) -> Iterator[str]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for image in images:
        counts[image.label][image.split] += 1
    shown = sorted(counts, key=natural_order)
    if len(shown) > MAX_ROWS:
        shown = sorted(counts, key=lambda name: (counts[name][0], natural_order(name)))
    width = max(len(name[:MAX_NAME]) for name in [*shown, "class", "all 256"])
    yield f"{'class':{width}}  {SPLITS[0]:>8} {SPLITS[1]:>8}"
    for name in shown[:MAX_ROWS]:
        train, valid = counts[name]
        yield f"{name[:MAX_NAME]:{width}}  {train:8,} {valid:8,}"
    if len(shown) > MAX_ROWS:
        yield f"and {len(shown) - MAX_ROWS} classes that have more"
    train, valid = np.sum([*counts.values()], axis=0)
    yield f"{f'all {len(counts)}':{width}}  {train:8,} {valid:8,}"
    few = sorted((train, name) for name, (train, _) in counts.items() if train < FEW)
    if few:
        count, name = few[0]
        example = f"{name[:MAX_NAME]} with {count}"
        yield f"classes with few training images: {len(few)}, for example {example}"


def _describe_copies(images: Sequence[Packed]) -> Iterator[str]:
    same = defaultdict(list)
    for image in images:
        same[image.look.digest].append(image)
    copies = [group for group in same.values() if len(group) > 1]
    if copies:
        count = sum(len(group) - 1 for group in copies)
        first, second, *_ = copies[0]
        yield f"copies: {count}, for example {second.path} of {first.path}"
    both = [group for group in copies if len({copy.split for copy in group}) > 1]
    if both:
        count = sum(copy.split for group in both for copy in group)
        train, valid = (
            next(i for i in both[0] if i.split == split) for split in (0, 1)
        )
        yield (
            f"validation images among the training images: {count}, for example "
            f"{valid.path} is {train.path}"
        )
    paths = [{copy.label: copy.path for copy in group} for group in copies]
    if several := [list(group.values()) for group in paths if len(group) > 1]:
        first_path, second_path, *_ = several[0]
        yield (
            f"images of several classes: {len(several)}, for example {second_path} is "
            f"{first_path}"
        )
