"""Read the images of the chosen classes out of the archive into one file of tensors."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages import archive, images, parameters
from stages.artifacts import ARCHIVE, TENSORS, publish
from stages.running import Refusal

Place = tuple[str, str, str]
"""Split, class and file name: an archive holds SPLIT/CLASS/NAME, with or without a root folder."""


def place(member: str) -> Place | None:
    """The place of a member; None for one that lies elsewhere or is hidden."""
    parts = member.removeprefix("./").split("/")
    hidden = any(part.startswith(".") or part in ("", "__MACOSX") for part in parts)
    return None if hidden or len(parts) not in (3, 4) else (parts[-3], parts[-2], parts[-1])


def read_images(path: str, data: parameters.Data) -> dict[Place, NDArray[np.uint8]]:
    """The pixels (H, W) of every image of the chosen splits and classes.

    Raises Refusal, naming the member, for an image that cannot be used, that differs in size from the first
    one, or whose place is taken.
    """
    pixels: dict[Place, NDArray[np.uint8]] = {}
    first: tuple[str, tuple[int, ...]] | None = None

    def chosen(member: str) -> Place | None:
        where = place(member)
        return (
            where if where and where[0] in (data.splits.train, data.splits.valid) and where[1] in data.classes else None
        )

    members = archive.files(path, chosen)
    for member, where, content in tqdm(members, "preprocess", unit=" images", delay=1, disable=None):
        image = images.decode(content, member, data.size, grayscale=data.grayscale)
        first = first or (member, image.shape)
        if image.shape != first[1]:
            sizes = [" x ".join(map(str, shape)) for shape in (image.shape, first[1])]
            msg = f"{member}: its size is {sizes[0]}, but {first[0]} has {sizes[1]}: set data.size to resize all"
            raise Refusal(msg)
        if where in pixels:
            msg = f"{member}: the archive holds {'/'.join(where)} twice: leave one out"
            raise Refusal(msg)
        pixels[where] = image
    return pixels


def stack(
    pixels: dict[Place, NDArray[np.uint8]], split: str, classes: tuple[str, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W) and labels (N,) of a split, sorted by class and then by name in natural order.

    Raises Refusal, naming the class, for one without images.
    """
    places = [where for where in pixels if where[0] == split]
    counts = Counter(label for _, label, _ in places)
    for name in classes:
        if not counts[name]:
            msg = f"class {name!r} has no images in {split}: look at data.classes and data.splits"
            raise Refusal(msg)
    print(f"{split}: " + ", ".join(f"{counts[name]} of {name}" for name in classes))
    index = {name: i for i, name in enumerate(classes)}
    places.sort(key=lambda where: (index[where[1]], images.natural(where[2])))
    return np.stack([pixels[where] for where in places]), np.array([index[where[1]] for where in places], np.uint8)


def main() -> None:
    """Write data/tensors.npz from data/archive."""
    data = parameters.load(parameters.Data)
    pixels = read_images(ARCHIVE, data)
    train_images, train_labels = stack(pixels, data.splits.train, data.classes)
    valid_images, valid_labels = stack(pixels, data.splits.valid, data.classes)
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
