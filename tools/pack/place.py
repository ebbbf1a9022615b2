"""Assign each image its class, its split and its name in the archive."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

from stages.images.names import normalize
from stages.plumbing.errors import UserError
from tools.image_files import LeftOut
from tools.pack.look import Image

TRAINING = ("train", "training")
VALIDATION = ("valid", "validation", "val", "test", "testing", "dev", "eval", "holdout")
RANKS = dict.fromkeys(TRAINING, -1) | dict.fromkeys(VALIDATION, 1)
Splits = tuple[str, str] | None  # the two folders; None if they are classes


def plain_name(name: str) -> str:
    """Return a name that every system reads alike."""
    return normalize(os.fsencode(name).decode("utf-8", "replace")).replace("\\", "_")


def name_members(top: str, images: Iterable[Image]) -> list[Image]:
    """Name images by their paths below the folder that holds all class folders.

    Raises UserError for folders that other systems would treat as the same.
    """
    named: list[Image] = []
    parents: dict[str, str] = {}
    for image in images:
        parent, path = os.path.dirname(image.path), os.path.relpath(image.path, top)
        named.append(image._replace(member=plain_name(path)))
        folder = os.path.dirname(named[-1].member)
        if "\\" in os.path.dirname(path) or "\ufffd" in folder:
            raise UserError(f"{parent!a} holds a backslash or is not UTF-8: rename it")
        if (other := parents.setdefault(folder, parent)) != parent:
            raise UserError(
                f"{parent!a} and {other!a} are one name in two Unicode forms: rename "
                "one, or move its files into the other"
            )
    common = os.path.commonpath(parents or [""])
    if common in parents:  # a class
        common = os.path.dirname(common)
    return [i._replace(member=i.member.removeprefix(f"{common}/")) for i in named]


def find_splits(
    members: Iterable[str], chosen: Sequence[str] | None
) -> tuple[Splits, str]:
    """Return which outer folders are splits, and why they count as splits.

    Two are splits if one has a name for training and the other one for validation, or
    if both hold the same folders, at least two. `chosen` overrides that; it is empty if
    they are classes. Raises UserError if it is ambiguous, or `chosen` is impossible.
    """
    inner: dict[str, Counter[str]] = defaultdict(Counter)
    for outer, *below in (member.split("/")[:-1] or [""] for member in members):
        inner[outer][below[0] if below else ""] += 1
    inner.pop("", None)  # images beside the folders
    names = sorted(inner)
    shown = ", ".join(names[:8]) + ", …" * (len(names) > 8)
    if chosen:
        train, valid = map(plain_name, chosen)
        if train == valid or not inner.keys() >= {train, valid}:
            raise UserError(
                f"--splits: {train} and {valid} are not two folders with images: "
                f"choose from {shown}"
            )
        return (train, valid), "as --splits says"
    nested = [name for name in names if inner[name].keys() != {""}]
    if chosen is not None or len(names) < 2 or not nested:
        return None, ""
    rank = {name: RANKS.get(name.lower(), 0) for name in names}
    train, valid, *_ = sorted(names, key=lambda n: (rank[n], -inner[n].total(), n))
    same = inner[train].keys()
    alike = len(same) > 1 and all(inner[name].keys() == same for name in names)
    if len(nested) == len(names) == 2:
        if (rank[train], rank[valid]) == (-1, 1):
            return (train, valid), "by their names"
        if alike and len(same - {""}) > 1:
            reason = "they hold the same folders; if they are classes, use --no-splits"
            return (train, valid), reason
    if alike or any(rank.values()):
        raise UserError(
            f"{shown} may be splits or classes: name two splits with --splits "
            "TRAIN VALID, or use --no-splits if they are classes"
        )
    return None, ""


def place(
    images: Iterable[Image], splits: Splits, share: float, left_out: LeftOut
) -> tuple[list[Image], list[str]]:
    """Return the images in archive order, and the names of the two split folders.

    Without `splits`, about a `share` of them is for validation. Leaves out images
    without a class, and those of a class without images for both splits.
    """
    found = []
    for image in images:
        *folders, name = image.member.split("/")
        outer = folders.pop(0) if splits and folders else None
        if splits and outer and outer not in splits:
            left_out.add("in neither of the two splits", image.path)
        elif not folders:
            left_out.add("not in the folder of a class", image.path)
        else:
            split = splits.index(outer) if splits else 0
            label, inner = folders[0], "/".join([*folders[1:], name])
            found.append(image._replace(label=label, split=split, member=inner))
    if not splits:
        split_of = split_by_content(found, share)
        found = [image._replace(split=split_of[image.digest]) for image in found]
    held = {(image.label, image.split) for image in found}
    classes = {label for label, split in held if (label, 1 - split) in held}
    names: list[str] = []
    for name in splits or ("train", "valid"):
        while name in classes or name in names:
            name += "_"
        names.append(name)
    reserved = classes.union(names)
    placed: dict[str, Image] = {}
    for image in found:
        if image.label not in classes:
            left_out.add("of a class without images for the other split", image.path)
            continue
        inner, name = os.path.split(image.member)
        if reserved.intersection(inner.split("/")):  # preprocess would confuse them
            inner = inner.replace("/", "_")
            while inner in reserved:
                inner += "_"
        stem, suffix = os.path.splitext(name)
        folder = os.path.join(names[image.split], image.label, inner)
        count = 1
        while (member := os.path.join(folder, name)) in placed:
            count += 1
            name = f"{stem}-{count}{suffix}"
        placed[member] = image._replace(member=member)
    return [placed[member] for member in sorted(placed)], names


def split_by_content(images: Sequence[Image], share: float) -> dict[bytes, int]:
    """Return the split of each digest: 1, for validation, for about a `share` of them.

    The digest alone decides, so copies stay together, and new images move no others.
    Only a class that would lack a split gets one image moved, found in no other class.
    """
    of_class = defaultdict(set)
    for image in images:
        of_class[image.label].add(image.digest)
    classes = Counter(chain.from_iterable(of_class.values()))
    splits = {d: int(int.from_bytes(d[:8], "big") < share * 2**64) for d in classes}
    for own in of_class.values():
        movable = sorted(digest for digest in own if classes[digest] == 1)
        held = {splits[digest] for digest in own}
        if len(held) == 1 and len(own) > 1 and movable:
            # The digest closest to the bound between the splits.
            splits[movable[-1 if held == {1} else 0]] ^= 1
    return splits
