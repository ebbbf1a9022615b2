"""Read the images of the chosen classes out of the archive into one file of tensors."""

import os
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages import archive, images, parameters
from stages.artifacts import ARCHIVE, TENSORS, publish
from stages.running import Refusal

Place = tuple[str, int, str]
"""Split, class and file name: an archive holds SPLIT/CLASS/NAME, with or without a root folder.

The split is train or valid, whatever its folder is called; the class is an index into data.classes.
"""

MAX_PIXELS = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 3
"""How many may be read: they are in memory twice while they are sorted, and need a third of it."""


def place(member: str, data: parameters.Data) -> Place | None:
    """The place of a member; None for one that is hidden or of no chosen split and class."""
    parts = member.removeprefix("./").split("/")
    hidden = any(part.startswith(".") or part in ("", "__MACOSX") for part in parts)
    if hidden or len(parts) not in (3, 4):
        return None
    split, label, name = parts[-3:]
    splits = {data.splits.train: "train", data.splits.valid: "valid"}
    return (splits[split], data.classes.index(label), name) if split in splits and label in data.classes else None


def read_images(path: str, data: parameters.Data) -> tuple[list[Place], NDArray[np.uint8]]:
    """The places and the pixels (N, H, W) of all images of the chosen splits and classes, as the archive has them.

    Raises Refusal, naming the member, for an image that cannot be used, that differs in size from the first
    one, or whose place is taken, and for more images than fit into memory.
    """
    places: dict[Place, None] = {}
    pixels = bytearray()
    first: tuple[str, tuple[int, ...]] | None = None
    members = archive.files(path, lambda member: place(member, data))
    for member, where, content in tqdm(members, "preprocess", unit=" images", delay=1, disable=None):
        image = images.decode(content, member, data.size, grayscale=data.grayscale)
        first = first or (member, image.shape)
        if image.shape != first[1]:
            sizes = [" x ".join(map(str, shape)) for shape in (image.shape, first[1])]
            msg = f"{member}: its size is {sizes[0]}, but {first[0]} has {sizes[1]}: set data.size to resize all"
            raise Refusal(msg)
        if where in places:
            msg = f"{member}: the archive holds {'/'.join(member.split('/')[-3:])} twice: leave one out"
            raise Refusal(msg)
        places[where] = None
        pixels += image.tobytes()
        if len(pixels) > MAX_PIXELS:
            msg = f"{member}: the images make {len(pixels) >> 20} MiB, more than a third of the memory: "
            raise Refusal(msg + "take fewer classes (data.classes) or smaller images (data.size)")
    shape = (len(places), *(first[1] if first else (0, 0)))
    return list(places), np.frombuffer(pixels, np.uint8).reshape(shape)


def stack(
    places: list[Place], pixels: NDArray[np.uint8], split: Literal["train", "valid"], data: parameters.Data
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W) and labels (N,) of a split, sorted by class and then by name in natural order.

    Raises Refusal, naming the class, for one without images.
    """
    folder = getattr(data.splits, split)
    order = [i for i, where in enumerate(places) if where[0] == split]
    order.sort(key=lambda i: (places[i][1], images.natural(places[i][2])))
    labels = np.array([places[i][1] for i in order], np.uint8)
    counts = np.bincount(labels, minlength=len(data.classes))
    for name, count in zip(data.classes, counts, strict=True):
        if not count:
            msg = f"class {name!r} has no images in {folder}: look at data.classes and data.splits"
            raise Refusal(msg)
    print(f"{folder}: " + ", ".join(f"{n} of {name}" for n, name in zip(counts, data.classes, strict=True)))
    return pixels[order], labels


def main() -> None:
    """Write data/tensors.npz from data/archive."""
    data = parameters.load(parameters.Data)
    places, pixels = read_images(ARCHIVE, data)
    train_images, train_labels = stack(places, pixels, "train", data)
    valid_images, valid_labels = stack(places, pixels, "valid", data)
    publish(
        {
            TENSORS: {
                "train_images": train_images,
                "train_labels": train_labels,
                "valid_images": valid_images,
                "valid_labels": valid_labels,
                "classes": np.array(data.classes),
            }
        }
    )


if __name__ == "__main__":
    main()
