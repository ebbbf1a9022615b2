"""Find out what the folders of images are: splits or classes."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from stages.plumbing.errors import UserError
from tools.image_files import LeftOut
from tools.pack.look import Look

TRAINING = {"train", "training"}
VALIDATION = {"valid", "validation", "val", "test", "testing", "dev", "eval", "holdout"}
MAX_SHOWN = 8
"""Folders that an error names."""

# Reasons to leave an image out.
NO_CLASS = "not in the folder of a class"
OTHER_SPLIT = "in neither of the two splits"


class File(NamedTuple):
    """An image file and the folders around it, below the outer one."""

    path: str
    look: Look
    folders: tuple[str, ...]
    """In Unicode's form NFC, as the name."""
    name: str


class Image(NamedTuple):
    """An image file, and what its folders say of it."""

    path: str
    look: Look
    split_folder: str | None
    label: str
    """The name of its class."""
    inner: tuple[str, ...]
    """The folders below that of the class."""
    name: str


class Splits(NamedTuple):
    """The folders of the training and of the validation images."""

    folders: tuple[str, str]
    reason: str
    """How they are known for splits."""


def name_folders(folder: str, looks: Iterable[tuple[str, Look]]) -> list[File]:
    """Return image files with the names of the folders around them, below a folder.

    Raises UserError for folders that other systems would read as one.
    """
    files = []
    paths: dict[tuple[str, ...], str] = {}
    for path, look in looks:
        *folders, name = os.path.relpath(path, folder).split("/")
        plain, parent = tuple(map(plain_name, folders)), os.path.dirname(path)
        if any("\\" in name or "\ufffd" in plain_name(name) for name in folders):
            raise UserError(
                f"{parent!a} has a backslash in its name, or is no UTF-8: rename it"
            )
        if paths.setdefault(plain, parent) != parent:
            raise UserError(
                f"{parent!a} and {paths[plain]!a} are one name in other code points: "
                "rename one, or move its files into the other"
            )
        files.append(File(path, look, plain, plain_name(name)))
    return files


def plain_name(name: str) -> str:
    """Return a name as every system reads it."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", name).replace("\\", "_")


def arrange(
    files: Sequence[File], chosen: Sequence[str] | None, left_out: LeftOut
) -> tuple[list[Image], Splits | None]:
    """Return the images in SPLIT/CLASS/… or CLASS/…, and the splits if there are any.

    Folders around all of them, which tell nothing apart, are passed over. `chosen` are
    the folders of the two splits; empty if there are none; None to find them. Raises
    UserError as `find_splits` does.
    """
    while files and all(len(file.folders) > 1 for file in files):
        if len({file.folders[0] for file in files}) > 1:
            break
        files = [file._replace(folders=file.folders[1:]) for file in files]
    splits = find_splits([file.folders for file in files], chosen)
    images = []
    for path, look, folders, name in files:
        split = None
        if splits and folders:
            split, folders = folders[0], folders[1:]
        if splits and split and split not in splits.folders:
            left_out.add(OTHER_SPLIT, path)
        elif not folders:
            left_out.add(NO_CLASS, path)
        else:
            images.append(Image(path, look, split, folders[0], folders[1:], name))
    return images, splits


def find_splits(
    folders: Iterable[tuple[str, ...]], chosen: Sequence[str] | None
) -> Splits | None:
    """Return which outer folders of images are splits, or None if they are classes.

    Two are splits if one is called as training and the other as validation is, or if
    both hold the same folders, two at least. Raises UserError if it cannot be told, and
    if one that is chosen has no images.
    """
    inner: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for outer, *below in filter(None, folders):
        inner[outer].add(below[0] if below else "")
        counts[outer] += 1
    if chosen:
        train, valid = map(plain_name, chosen)
        if train == valid:
            raise UserError(f"--splits: {train} cannot be both: name two folders")
        for name in (train, valid):
            if name not in inner:
                raise UserError(
                    f"--splits: {name} has no images: the folders are {_some(inner)}"
                )
        return Splits((train, valid), "--splits says so")
    with_folders = [name for name in inner if inner[name] != {""}]
    if chosen is not None or len(inner) < 2 or not with_folders:
        return None
    train, valid, *more = sorted(inner, key=lambda n: (_rank(n), -counts[n], n))
    if not more and len(with_folders) == 2:
        if (_rank(train), _rank(valid)) == (-1, 1):
            return Splits((train, valid), "so their names say")
        if inner[train] == inner[valid] and len(inner[train] - {""}) > 1:
            reason = "they hold the same folders; --no-splits takes them for classes"
            return Splits((train, valid), reason)
    first, *others = inner.values()
    alike = len(first) > 1 and all(other == first for other in others)
    if alike or any(map(_rank, inner)):
        raise UserError(
            f"{_some(inner)} may be splits or classes: name two splits with --splits "
            "TRAIN VALID, or say --no-splits if they are classes"
        )
    return None


def _rank(folder: str) -> int:
    """Return -1 for what is called training, 1 for validation, and 0 for the rest."""
    name = folder.lower()
    return (name in VALIDATION) - (name in TRAINING)


def _some(folders: Collection[str]) -> str:
    shown = sorted(folder or "." for folder in folders)
    more = len(shown) - MAX_SHOWN
    return ", ".join(shown[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
