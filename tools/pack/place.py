"""Assign each image its class, its split and its name in the archive."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from stages.images.names import normalize
from stages.plumbing.errors import UserError
from tools.image_files import LeftOut
from tools.pack.labels import match, rank, shorten, suggest
from tools.pack.look import Image

ONE_SPLIT = "of a class with images for one split only"
SIZE_OR_DATE = re.compile(r"\d+ ?[x×] ?\d+\b.*|\d+ ?px|(19|20)\d\d([-_. ]?\d\d){0,2}")


class Layout(NamedTuple):
    """What the folders of images stand for; they count from 0, the outermost."""

    root: int  # the first that not all images share
    splits: tuple[str, ...]  # two names of folders there; empty if they are no splits
    label: int  # the class, unless images are labelled
    reason: str  # why the splits count as splits


def plain_name(name: str) -> str:
    """Return a name that every system reads alike."""
    return normalize(os.fsencode(name).decode("utf-8", "replace")).replace("\\", "_")


def name_members(top: str, images: Iterable[Image]) -> list[Image]:
    """Name images by their paths below a folder.

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
    return named


def find_layout(
    folder: str,
    images: Sequence[Image],
    chosen: Sequence[str] | None,
    level: int | None,
) -> Layout:
    """Return what folders stand for: splits if their names say so, else classes.

    `chosen` names the splits, and `level` counts the folders down to the class, from 1,
    unless None. Raises UserError if it is ambiguous, or `chosen` is impossible.
    """
    parents = {os.path.dirname(image.member) for image in images}
    common = os.path.commonpath(parents or [""])
    if common in parents:  # a class
        common = os.path.dirname(common)
    root = common.count("/") + 1 if common else 0
    inner = defaultdict(set)
    for parent in parents:
        outer, *below = parent.split("/")[root:] or [""]
        inner[outer].add(below[0] if below else "")
    inner.pop("", None)  # images beside the folders
    names = sorted(inner)

    def layout(splits: Sequence[str], reason: str) -> Layout:
        label = level - 1 if level else root + bool(splits)
        return Layout(root, (*splits,), label, reason)

    if chosen:
        chosen = [*map(plain_name, chosen)]
        if len({*chosen}) < 2 or not inner.keys() >= {*chosen}:
            raise UserError(
                f"--splits: {' and '.join(chosen)} are not two folders with images: "
                f"choose from {shorten(names)}"
            )
        return layout(chosen, "as --splits says")
    if level == root + 1 or len(names) < 2:
        return layout([], "")
    ranked = sorted(names, key=rank)
    ranks = [*map(rank, ranked)]
    is_clear = level or any(image.label for image in images)
    flat = [name for name in ranked[:2] if inner[name] == {""} and not is_clear]
    if ranks in ([1, 2], [1, 3], [1, 2, 3]) and len(flat) < 2:
        for name in flat:
            (other,) = {*ranked[:2]} - {name}
            raise UserError(
                f"{name} has no class folders: pack {other} alone, as FOLDER="
                f"{os.path.join(folder, common, other)}"
            )
        kept = [f"; {name} is left out, for a final test" for name in ranked[2:]]
        return layout(ranked[:2], "".join(["judging by their names", *kept]))
    counts = Counter(chain.from_iterable(inner.values()))
    del counts[""]
    repeated = [name for name, count in counts.items() if 2 * count > len(names)]
    if is_clear or not (
        all(ranks)
        or (counts and (any(ranks) or are_sizes_or_dates(names)))
        or (len(repeated) > 1 and not are_sizes_or_dates(repeated))
    ):
        return layout([], "")
    message = f"{shorten(names)} may be splits or classes: use --level {root + 1} "
    message += "if they are the classes"
    if counts:
        message += f", --level {root + 2} if {shorten(sorted(counts))} are, "
        message += "or --splits TRAIN VALID to name two splits, or pack one alone"
    raise UserError(message + suggest(folder, [image.member for image in images]))


def are_sizes_or_dates(names: Sequence[str]) -> bool:
    """Return whether most names are sizes or dates, such as 16x16 or 2024-12-31."""
    return 2 * sum(bool(SIZE_OR_DATE.fullmatch(name)) for name in names) > len(names)


def place(
    images: Sequence[Image],
    layout: Layout,
    share: float,
    group: re.Pattern[str] | None,
    left_out: LeftOut,
) -> tuple[list[Image], list[str]]:
    """Return the images in archive order, and the names of the two split folders.

    Without splits, a `share` of each class is for validation, and images whose path has
    the same match for `group` stay together. Leaves out images without a class, and
    those of a class without images for both splits.
    """
    root, splits, level, _ = layout
    groups = [match(group, image.member) if group else "" for image in images]
    if group and not any(groups):
        path = images[0].member if images else "CLASS/1.png"
        raise UserError(f"--group {group.pattern}: no path matches, for example {path}")
    found, keys = [], []
    for image, key in zip(images, groups, strict=True):
        *folders, name = image.member.split("/")
        outer = folders[root] if splits and len(folders) > root else ""
        label = image.label or "".join(folders[level : level + 1])
        if outer and outer not in splits:
            left_out.add(f"in {outer}, neither training nor validation", image.path)
        elif not label or (splits and not outer):
            left_out.add("not in a class folder", image.path)
        else:
            used = {*[root] * len(splits), *[level] * (not image.label)}
            inner = [f for i, f in enumerate(folders) if i >= root and i not in used]
            keys.append(hashlib.sha256(key.encode()).digest() if key else image.digest)
            split = splits.index(outer) if outer else 0
            member = "/".join([*inner, name])
            found.append(image._replace(label=label, split=split, member=member))
    if not splits:
        split_of = split_by_content(found, keys, share)
        found = [i._replace(split=s) for i, s in zip(found, split_of, strict=True)]
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
            left_out.add(ONE_SPLIT, image.path)
            continue
        below, name = os.path.split(image.member)
        if reserved.intersection(below.split("/")):  # preprocess would confuse them
            below = below.replace("/", "_")
            while below in reserved:
                below += "_"
        stem, suffix = os.path.splitext(name)
        folder = os.path.join(names[image.split], image.label, below)
        count = 1
        while (member := os.path.join(folder, name)) in placed:
            count += 1
            name = f"{stem}-{count}{suffix}"
        placed[member] = image._replace(member=member)
    return [placed[member] for member in sorted(placed)], names


def split_by_content(
    images: Sequence[Image], keys: Sequence[bytes], share: float
) -> list[int]:
    """Return the split of each image: 1, for validation, for a `share` of each class.

    Images with the same key, and copies, form a unit, which stays together. In the
    order of their keys, which are digests, each unit goes to validation if that brings
    the shares of its classes closer to `share`. So in a class of single images, adding
    one moves at most one other. Finally, if a class lacks a split, one of its units
    moves there, where possible.
    """
    parent = {key: key for key in keys}

    def find(key: bytes) -> bytes:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    first = dict[bytes, bytes]()
    for image, key in zip(images, keys, strict=True):
        low, high = sorted([find(key), find(first.setdefault(image.digest, key))])
        parent[high] = low
    units: dict[bytes, list[str]] = defaultdict(list)
    for image, key in zip(images, keys, strict=True):
        units[find(key)].append(image.label)
    sizes, valid = Counter(image.label for image in images), Counter[str]()
    wanted = {name: min(max(share * n, 1), n - 1) for name, n in sizes.items()}
    of_class: dict[str, list[bytes]] = {name: [] for name in sorted(sizes)}
    splits = dict[bytes, int]()
    for key in sorted(units):
        before = after = 0.0
        counts = Counter(units[key])
        for label, count in counts.items():
            of_class[label].append(key)
            before += abs(valid[label] - wanted[label])
            after += abs(valid[label] + count - wanted[label])
        splits[key] = int(after < before)
        if splits[key]:
            valid.update(counts)
    for own in of_class.values():
        held = {splits[key] for key in own}
        movable = [
            key
            for key in own
            if len(held) == 1
            # Each of its classes keeps another unit in its split.
            and all(
                any(splits[k] == splits[key] for k in of_class[label] if k != key)
                for label in {*units[key]}
            )
        ]
        if movable:  # the unit closest to the bound between the splits
            splits[movable[-1 if held == {1} else 0]] ^= 1
    return [splits[find(key)] for key in keys]
