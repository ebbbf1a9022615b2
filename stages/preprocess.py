"""Read the images of the chosen classes out of the archive into one file of tensors."""

import os
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.images import archive
from stages.images.decode import decode
from stages.plumbing import artifacts, parameters
from stages.plumbing.artifacts import Split
from stages.plumbing.errors import UserError

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MAX_PIXELS = MEMORY // 3
"""Sorting holds the images in memory twice; a third is left for the rest."""


class Example(NamedTuple):
    """Where a member of the archive belongs: [ROOT/]SPLIT/CLASS/NAME."""

    split: str
    """train or valid, whatever its folder is called."""
    label: int
    """An index into data.classes."""
    name: str


def find_example(member: str, data: parameters.Data) -> Example | None:
    """Return where a member belongs; None if it is hidden or of no chosen class."""
    parts = member.removeprefix("./").split("/")
    hidden = any(part.startswith(".") or part in ("", "__MACOSX") for part in parts)
    if hidden or len(parts) not in (3, 4):
        return None
    folder, label, name = parts[-3:]
    splits = {data.splits.train: "train", data.splits.valid: "valid"}
    if folder not in splits or label not in data.classes:
        return None
    return Example(splits[folder], data.classes.index(label), name)


def read_images(
    path: str, data: parameters.Data
) -> tuple[list[Example], NDArray[np.uint8]]:
    """Read all images of the chosen splits and classes, in the archive's order.

    Returns where they belong, and their pixels (N, H, W). Raises UserError, naming the
    member, for an image that cannot be used, that differs in size from the first one
    or that the archive holds twice, and for more images than fit into memory.
    """
    examples: dict[Example, None] = {}
    pixels = bytearray()
    first, first_shape = "", (0, 0)
    members = archive.read(path, lambda member: find_example(member, data))
    progress = tqdm(members, "preprocess", unit=" images", delay=1, disable=None)
    for member, example, content in progress:
        image = decode(content, member, data.size, grayscale=data.grayscale)
        if not first:
            first, first_shape = member, image.shape
        if image.shape != first_shape:
            size, first_size = (f"{h} x {w}" for h, w in (image.shape, first_shape))
            raise UserError(
                f"{member}: its size is {size}, but {first} has {first_size}: "
                "set data.size to resize all"
            )
        if example in examples:
            name = "/".join(member.split("/")[-3:])
            raise UserError(f"{member}: the archive holds {name} twice: leave one out")
        examples[example] = None
        pixels += image.tobytes()
        if len(pixels) > MAX_PIXELS:
            raise UserError(
                f"{member}: the images make {len(pixels) >> 20} MiB, more than a third "
                "of the memory: take fewer classes (data.classes) or smaller images "
                "(data.size)"
            )
    images = np.frombuffer(pixels, np.uint8).reshape(len(examples), *first_shape)
    return list(examples), images


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key that puts 2.png before 10.png: digits compare as numbers."""
    runs = re.split(r"([0-9]+)", name)
    numbers = [run.lstrip("0") if i % 2 else run for i, run in enumerate(runs)]
    keys = [(len(run) if i % 2 else 0, run) for i, run in enumerate(numbers)]
    return keys, name


def sort_split(
    split: str,
    examples: list[Example],
    images: NDArray[np.uint8],
    data: parameters.Data,
) -> Split:
    """Select the images of a split, sorted by class and then by name.

    Raises UserError, naming the class, for one without images.
    """
    folder = getattr(data.splits, split)
    rows = [i for i, example in enumerate(examples) if example.split == split]
    rows.sort(key=lambda i: (examples[i].label, natural_order(examples[i].name)))
    labels = np.array([examples[i].label for i in rows], np.uint8)
    counts = np.bincount(labels, minlength=len(data.classes))
    for name, count in zip(data.classes, counts, strict=True):
        if not count:
            raise UserError(
                f"class {name!r} has no images in {folder}: "
                "look at data.classes and data.splits"
            )
    named = zip(counts, data.classes, strict=True)
    print(f"{folder}: " + ", ".join(f"{count} of {name}" for count, name in named))
    return Split(images[rows], labels)


def main() -> None:
    """Write data/tensors.npz from data/archive."""
    data = parameters.load(parameters.Data)
    examples, images = read_images(artifacts.ARCHIVE, data)
    train = sort_split("train", examples, images, data)
    valid = sort_split("valid", examples, images, data)
    tensors = {
        "train_images": train.images,
        "train_labels": train.labels,
        "valid_images": valid.images,
        "valid_labels": valid.labels,
        "classes": np.array(data.classes),
    }
    artifacts.publish({artifacts.TENSORS: tensors})
