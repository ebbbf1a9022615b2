"""Read the images of the chosen classes out of the archive into one file of tensors."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.images import archive
from stages.images.decode import decode
from stages.plumbing import artifacts, parameters
from stages.plumbing.artifacts import Decoding, Split
from stages.plumbing.errors import UserError

# Reasons to leave a member of the archive out.
HIDDEN = "hidden"
ODD_PATH = "with an absolute path, or with .."
ELSEWHERE = "not in a folder of a chosen split and class"
NO_IMAGE = "no image, by the extension"
OTHER_FILE = re.compile(
    r"\.(csv|db|docx?|html?|ini|json|lnk|log|md|mat|npy|npz|pdf|pkl|py|tsv|txt|url"
    r"|xlsx?|xml|ya?ml)$",
    re.IGNORECASE,
)
MAX_FOLDERS_SHOWN = 8
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MAX_PIXELS = MEMORY // 3


class Example(NamedTuple):
    """An image that an archive holds as [ROOT/]SPLIT/CLASS/[FOLDERS/]NAME."""

    split: str
    """train or valid, whatever its folder is called."""
    label: int
    """An index into data.classes."""
    name: str
    """The path below the folder of the class."""


def find_example(
    member: str, splits: Mapping[str, str], labels: Mapping[str, int]
) -> Example | str:
    """Return what a member is, or the reason to leave it out.

    `splits` and `labels` have the names of the folders as keys. Names are compared in
    Unicode's form NFC, and Windows' backslashes separate folders. Raises UserError if
    the name can be read in two ways.
    """
    parts = normalize(member).replace("\\", "/").removeprefix("./").split("/")
    if "" in parts or ".." in parts:
        return ODD_PATH
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return HIDDEN
    *folders, name = parts
    root = 0 if folders and folders[0] in splits else 1
    if len(folders) < root + 2 or folders[root] not in splits:
        return ELSEWHERE
    split, label, *inner = folders[root:]
    if label in splits or any(part in splits or part in labels for part in inner):
        raise UserError(
            f"{member}: can be read in two ways: "
            "keep one folder named as a split and one named as a class in its path"
        )
    if label not in labels:
        return ELSEWHERE
    if OTHER_FILE.search(name):
        return NO_IMAGE
    return Example(splits[split], labels[label], "/".join([*inner, name]))


def normalize(name: str) -> str:
    """Return a name in Unicode's form NFC: macOS decomposes letters, Linux does not."""
    return unicodedata.normalize("NFC", name)


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key that puts 2.png before 10.png: digits compare as numbers."""
    runs = re.split(r"([0-9]+)", name)
    numbers = [run.lstrip("0") if i % 2 else run for i, run in enumerate(runs)]
    keys = [(len(run) if i % 2 else 0, run) for i, run in enumerate(numbers)]
    return keys, name


def find_examples(
    path: str, data: parameters.Data
) -> tuple[dict[str, Example], dict[str, list[str]]]:
    """Sort the members of an archive into examples, by name, and others, by reason.

    The examples have the order of the tensors, whatever order the archive has: by
    split, class, and name in natural order. Raises UserError, naming the member, for
    an image that the archive holds twice.
    """
    train, valid = normalize(data.splits.train), normalize(data.splits.valid)
    splits = {train: "train", valid: "valid"}
    labels = {normalize(name): label for label, name in enumerate(data.classes)}
    left_out: dict[str, list[str]] = {}

    def select(member: str) -> Example | None:
        example = find_example(member, splits, labels)
        if isinstance(example, Example):
            return example
        left_out.setdefault(example, []).append(member)
        return None

    found: dict[Example, str] = {}
    for member, example, _ in archive.read(path, select):
        if example in found:
            raise UserError(
                f"{member}: the archive holds {found[example]} twice: leave one out"
            )
        found[example] = member
    order = sorted(found, key=lambda e: (e.split, e.label, natural_order(e.name)))
    return {found[example]: example for example in order}, left_out


def check_counts(
    examples: Iterable[Example], left_out: dict[str, list[str]], data: parameters.Data
) -> None:
    """Print how many images each class has in each split, and what was left out.

    Raises UserError, naming the folders that were found, for a class without images.
    """
    labels: dict[str, list[int]] = {"train": [], "valid": []}
    for example in examples:
        labels[example.split].append(example.label)
    for split, folder in (("train", data.splits.train), ("valid", data.splits.valid)):
        counts = np.bincount(np.array(labels[split], int), minlength=len(data.classes))
        for name, count in zip(data.classes, counts, strict=True):
            if not count:
                raise UserError(
                    f"class {name!r} has no images in {folder}: look at data.classes "
                    f"and data.splits; {describe_folders(left_out)}"
                )
        named = zip(counts, data.classes, strict=True)
        print(f"{folder}: " + ", ".join(f"{count} of {name}" for count, name in named))
    for reason, members in left_out.items():
        print(f"left out, {reason}: {len(members)}, for example {members[0]}")


def describe_folders(left_out: dict[str, list[str]]) -> str:
    """Name some of the folders whose files were left out."""
    members = left_out.get(ELSEWHERE, []) + left_out.get(ODD_PATH, [])
    folders = sorted({member.rpartition("/")[0] or "." for member in members})
    if not folders:
        return "the archive has no other folders"
    shown = ", ".join(folders[:MAX_FOLDERS_SHOWN])
    more = len(folders) - MAX_FOLDERS_SHOWN
    return f"other folders are {shown}" + (f" and {more} more" if more > 0 else "")


def read_images(
    path: str, rows: dict[str, int], decoding: Decoding
) -> NDArray[np.uint8]:
    """Decode the members in `rows` into an array (N, H, W), each into its row.

    Raises UserError, naming the member, for an image that cannot be used or whose size
    differs from that of the first one, and for more images than fit into memory.
    """
    images = np.empty((0, 0, 0), np.uint8)
    first = ""
    progress = tqdm(
        archive.read(path, rows.get),
        "preprocess",
        len(rows),
        unit=" images",
        delay=1,
        disable=None,
    )
    for member, row, load in progress:
        image = decode(load(), member, **decoding._asdict())
        if not first:
            first = member
            check_memory(len(rows) * image.size)
            images = np.empty((len(rows), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            size, first_size = (
                f"{h} x {w}" for h, w in (image.shape, images.shape[1:])
            )
            raise UserError(
                f"{member}: its size is {size}, but {first} has {first_size}: "
                "set data.size to resize all"
            )
        images[row] = image
    return images


def check_memory(pixels: int) -> None:
    """Raise UserError if so many pixels, a byte each, leave too little memory."""
    if pixels > MAX_PIXELS:
        raise UserError(
            f"the images make {pixels >> 20} MiB, more than a third of the memory: "
            "take fewer classes (data.classes) or smaller images (data.size)"
        )


def read_splits(path: str, data: parameters.Data) -> tuple[Split, Split]:
    """Read the training and the validation images out of an archive."""
    examples, left_out = find_examples(path, data)
    check_counts(examples.values(), left_out, data)
    rows = {member: row for row, member in enumerate(examples)}
    images = read_images(
        path, rows, Decoding(data.size, data.grayscale, data.background)
    )
    labels = np.array([example.label for example in examples.values()], np.uint8)
    count = sum(example.split == "train" for example in examples.values())
    return Split(images[:count], labels[:count]), Split(images[count:], labels[count:])


def find_copies(
    images: NDArray[np.uint8], others: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Return which of the images (N, H, W) are among the others (M, H, W): (N,)."""

    def digest(image: NDArray[np.uint8]) -> bytes:
        return hashlib.blake2b(image.tobytes(), digest_size=16).digest()

    digests = {digest(image) for image in others}
    return np.array([digest(image) in digests for image in images])


def main() -> None:
    """Write data/tensors.npz from data/archive."""
    data = parameters.load(parameters.Data)
    train, valid = read_splits(artifacts.ARCHIVE, data)
    valid_in_train = find_copies(valid.images, train.images)
    if count := int(valid_in_train.sum()):
        print(f"{count} of {data.splits.valid} occur in {data.splits.train}, too")
    tensors = {
        "train_images": train.images,
        "train_labels": train.labels,
        "valid_images": valid.images,
        "valid_labels": valid.labels,
        "valid_in_train": valid_in_train.astype(np.uint8),
        "classes": np.array(data.classes),
        "decoding": artifacts.format_decoding(
            Decoding(data.size, data.grayscale, data.background)
        ),
    }
    artifacts.publish({artifacts.TENSORS: tensors})
