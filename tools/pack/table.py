"""Say what the images are, and what becomes of them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stages.images.names import natural_order
from tools.image_files import LeftOut
from tools.pack.params import inks_of, median_size
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
    images: Sequence[Packed], params: Mapping[str, Any], left_out: LeftOut
) -> Iterator[str]:
    """Yield lines that say what the images are, and what becomes of them."""
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
            yield f"hard to see on that: {len(faint)}, such as {faint[0]}"
    if count := sum(image.look.is_turned for image in images):
        yield f"turned as EXIF says: {count}"
    if (batch := params.get("train.batch_size")) is not None:
        yield f"training images: fewer than a batch, which is now {batch}"
    if (rate := params.get("train.learning_rate")) is not None:
        yield f"bright: the learning rate is lowered to {rate:g}"
    yield from _describe_copies(images)
    yield from describe_left_out(left_out)


def describe_left_out(left_out: LeftOut) -> Iterator[str]:
    """Yield lines that say what is not packed, and why."""
    common = left_out.counts.most_common(MAX_ROWS)
    for reason, count in common:
        yield f"left out: {count}, such as {left_out.examples[reason]}: {reason}"
    if rest := left_out.counts.total() - sum(count for _, count in common):
        yield f"left out: {rest}, for other reasons"


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
        yield f"classes with few training images: {len(few)}, such as {example}"


def _describe_copies(images: Sequence[Packed]) -> Iterator[str]:
    same = defaultdict(list)
    for image in images:
        same[image.look.digest].append(image)
    differences = {
        "copies of another image": "path",
        "copies in the other split": "split",
        "copies in another class": "label",
    }
    for what, difference in differences.items():
        paths = [
            list({getattr(copy, difference): copy.path for copy in copies}.values())
            for copies in same.values()
        ]
        if found := [group for group in paths if len(group) > 1]:
            count = sum(len(group) - 1 for group in found)
            yield f"{what}: {count}, such as {found[0][1]} of {found[0][0]}"
