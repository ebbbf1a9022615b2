"""Find the images in a folder, and what its sub-folders are: splits or classes."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from stages.images import names
from stages.images.archive import MAX_MEMBER
from stages.plumbing.errors import UserError

TRAINING = {"train", "training"}
VALIDATION = {"valid", "validation", "val", "test", "testing", "dev", "eval", "holdout"}
MAX_SHOWN = 8
"""Folders that an error names."""

# Reasons to leave a file out.
NO_CLASS = "not in the folder of a class"
OTHER_SPLIT = "in neither of the two splits"
LINK = "a link to a folder"
NO_FILE = "no plain file, or a broken link"
LARGE = f"larger than {MAX_MEMBER >> 20} MiB"


class LeftOut:
    """What is not packed: how many, and an example, by reason."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one more."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, example)


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
    folder: Path, chosen: Sequence[str] | None, left_out: LeftOut
) -> tuple[list[Image], Splits | None]:
    """Find the files in SPLIT/CLASS/… or CLASS/… that may be images.

    Folders around all of them, which tell nothing apart, are passed over. `chosen` are
    the folders of the two splits; empty if there are none; None to go by their names.
    Raises UserError if there may be more than two splits.
    """
    files = list(walk(folder, left_out))
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


def walk(folder: Path, left_out: LeftOut) -> Iterator[File]:
    """Yield the files below a folder that may be images, in natural order.

    Links to files are followed, links to folders are left out.
    """
    for parent, folders, files in os.walk(folder, onerror=_fail):
        inner = tuple(map(_plain, Path(parent).relative_to(folder).parts))
        for name in sorted(folders):
            path = os.path.join(parent, name)
            if reason := _why_pass_over(path):
                folders.remove(name)
                left_out.add(reason, path)
        folders.sort(key=names.natural_order)
        for name in sorted(files, key=names.natural_order):
            path = os.path.join(parent, name)
            if reason := _why_leave_out(path):
                left_out.add(reason, path)
            else:
                yield File(path, inner, _plain(name))


def _fail(error: OSError) -> NoReturn:
    raise error


def _plain(name: str) -> str:
    """Return a name as every system reads it."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", name).replace("\\", "_")


def _why_pass_over(folder: str) -> str | None:
    if names.is_hidden(os.path.basename(folder)):
        return names.HIDDEN
    return LINK if os.path.islink(folder) else None


def _why_leave_out(path: str) -> str | None:
    name = os.path.basename(path)
    if names.is_hidden(name):
        return names.HIDDEN
    if names.OTHER_FILE.search(name):
        return names.NO_IMAGE
    if not os.path.isfile(path):
        return NO_FILE
    return LARGE if os.path.getsize(path) > MAX_MEMBER else None


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
