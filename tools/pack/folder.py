"""Find the images in a folder, and what its sub-folders are: splits or classes."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from stages.plumbing.errors import UserError
from tools.image_files import LeftOut, walk

TRAINING = {"train", "training"}
VALIDATION = {"valid", "validation", "val", "test", "testing", "dev", "eval", "holdout"}
MAX_SHOWN = 8
"""Folders that an error names."""

# Reasons to leave a file out.
NO_CLASS = "not in the folder of a class"
OTHER_SPLIT = "in neither of the two splits"


class File(NamedTuple):
    """A file that may be an image."""

    path: str
    folders: tuple[str, ...]
    """Around it, below the outer folder. All names are in Unicode's form NFC."""
    name: str


class Image(NamedTuple):
    """A file that may be an image, and what its folders say of it."""

    path: str
    split: str | None
    label: str
    """The name of its class."""
    inner: tuple[str, ...]
    """The folders below that of the class."""
    name: str


class Splits(NamedTuple):
    """The folders of the training and of the validation images."""

    train: str
    valid: str
    reason: str
    """How they are known for splits."""


def find_images(
    folder: str, chosen: Sequence[str] | None, left_out: LeftOut
) -> tuple[list[Image], Splits | None]:
    """Find the files in SPLIT/CLASS/… or CLASS/… that may be images.

    Folders around all of them, which tell nothing apart, are passed over. `chosen` are
    the folders of the two splits; empty if there are none; None to go by their names.
    Raises UserError if there may be more than two splits.
    """
    files = []
    for found in walk(folder, left_out):
        if isinstance(found, OSError):
            left_out.add(found.strerror or "cannot be listed", found.filename)
        else:
            files.append(read_names(folder, found))
    while files and all(len(file.folders) > 1 for file in files):
        if len({file.folders[0] for file in files}) > 1:
            break
        files = [file._replace(folders=file.folders[1:]) for file in files]
    splits = find_splits(files, chosen)
    images = []
    for path, folders, name in files:
        split = None
        if splits and folders:
            split, folders = folders[0], folders[1:]
        if splits and split not in splits[:2]:
            left_out.add(OTHER_SPLIT, path)
        elif not folders:
            left_out.add(NO_CLASS, path)
        else:
            images.append(Image(path, split, folders[0], folders[1:], name))
    return images, splits


def read_names(folder: str, path: str) -> File:
    """Return a file with the names of the folders around it, below a folder."""
    *folders, name = map(_plain, os.path.relpath(path, folder).split("/"))
    return File(path, tuple(folders), name)


def _plain(name: str) -> str:
    """Return a name as every system reads it."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", name).replace("\\", "_")


def find_splits(files: Sequence[File], chosen: Sequence[str] | None) -> Splits | None:
    """Return which outer folders are splits, or None if they are classes.

    Two are splits if one of them is called so, or if both hold the same folders, two
    at least. Raises UserError if there are more of them, or not those chosen.
    """
    inner: dict[str, set[str]] = defaultdict(set)
    for file in files:
        outer, below, *_ = (*file.folders, "", "")
        inner[outer].add(below)
    if chosen:
        train, valid = map(_plain, chosen)
        for name in (train, valid):
            if name not in inner:
                raise UserError(
                    f"--splits: {name} has no images: the folders are {_some(inner)}"
                )
        return Splits(train, valid, "--splits says so")
    has_loose = any("" in folders for folders in inner.values())
    if chosen is not None or has_loose or len(inner) < 2:
        return None
    is_named = any(map(_rank, inner))
    first, *others = inner.values()
    if not is_named and (len(first) < 2 or any(other != first for other in others)):
        return None
    if len(inner) > 2:
        raise UserError(
            f"{_some(inner)} look like splits, and there can be two: name them with "
            "--splits TRAIN VALID, or say --no-splits if they are classes"
        )
    counts = Counter(file.folders[0] for file in files)
    train, valid = sorted(inner, key=lambda name: (_rank(name), -counts[name], name))
    by_folders = "they hold the same folders, and the larger is for training"
    return Splits(train, valid, "so their names say" if is_named else by_folders)


def _rank(folder: str) -> int:
    """Return -1 for what is called training, 1 for validation, and 0 for the rest."""
    name = folder.lower()
    return (name in VALIDATION) - (name in TRAINING)


def _some(folders: Collection[str]) -> str:
    shown = sorted(folder or "." for folder in folders)
    more = len(shown) - MAX_SHOWN
    return ", ".join(shown[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
