"""Assign images to splits, and name them in the archive."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from tools.image_files import LeftOut
from tools.pack.folder import Image, Splits
from tools.pack.look import Look

SPLITS = ("train", "valid")
ONE_SPLIT = "of a class without images for the other split"


class Packed(NamedTuple):
    """An image and where it goes."""

    path: str
    member: str
    """Its name in the archive."""
    split: int
    """0 for training images, 1 for validation images."""
    label: str
    """The name of its class."""
    look: Look


def split_by_content(
    digests: Sequence[bytes], labels: Sequence[str], share: float
) -> dict[bytes, int]:
    """Return for each digest its split: 1, validation, for about so large a share.

    The digest alone decides, so copies stay together, and images that are added move no
    others. Only if a class would have none of a split, one of its images is moved,
    which no other class has.
    """
    splits = {
        digest: int(int.from_bytes(digest[:8], "big") < share * 2**64)
        for digest in digests
    }
    classes_of = defaultdict(set)
    for digest, label in zip(digests, labels, strict=True):
        classes_of[digest].add(label)
    own = defaultdict(list)
    for digest in sorted(splits):
        for label in classes_of[digest]:
            own[label].append(digest)
    for label in sorted(own):
        of_class = own[label]
        movable = [digest for digest in of_class if len(classes_of[digest]) == 1]
        held = {splits[digest] for digest in of_class}
        if len(held) == 1 and len(of_class) > 1 and movable:
            to = 1 - held.pop()
            # The digests closest to the share's bound.
            splits[movable[0 if to else -1]] = to
    return splits


def place(
    images: Sequence[Image], splits: Splits | None, share: float, left_out: LeftOut
) -> tuple[list[Packed], tuple[str, str]]:
    """Place images in the archive, sorted by name; return the folders of the splits.

    Images of a class without images for both splits are left out.
    """
    if splits:
        numbers = {folder: number for number, folder in enumerate(splits.folders)}
        split_of = [numbers[image.split_folder or ""] for image in images]
    else:
        digests = [image.look.digest for image in images]
        labels = [image.label for image in images]
        by_content = split_by_content(digests, labels, share)
        split_of = [by_content[digest] for digest in digests]
    held = defaultdict(set)
    for image, split in zip(images, split_of, strict=True):
        held[image.label].add(split)
    classes = {label for label in held if len(held[label]) == len(SPLITS)}
    folders = _other_names(splits.folders if splits else SPLITS, classes)
    reserved = classes.union(folders)
    placed: dict[str, Packed] = {}
    for image, split in zip(images, split_of, strict=True):
        if image.label not in classes:
            left_out.add(ONE_SPLIT, image.path)
            continue
        inner = image.inner
        if reserved.intersection(inner):  # preprocess would not know which is which
            inner = _other_names(["_".join(inner)], reserved)
        folder = "/".join([folders[split], image.label, *inner])
        stem, suffix = os.path.splitext(image.name)
        name, count = image.name, 1
        while (member := f"{folder}/{name}") in placed:
            count += 1
            name = f"{stem}-{count}{suffix}"
        placed[member] = Packed(image.path, member, split, image.label, image.look)
    ordered = [placed[member] for member in sorted(placed)]
    return ordered, (folders[0], folders[1])


def _other_names(names: Iterable[str], taken: Collection[str]) -> tuple[str, ...]:
    """Lengthen names until none of them is taken."""
    free: list[str] = []
    for name in names:
        while name in taken or name in free:
            name += "_"
        free.append(name)
    return tuple(free)
