"""Read the classes and splits of images from names or a table, or suggest how to."""

import csv
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from stages.images.names import is_hidden, normalize
from stages.plumbing.errors import UserError
from stages.plumbing.parameters import MAX_CLASSES
from tools.image_files import LeftOut
from tools.pack.look import Image

WORDS = {
    1: "train training",
    2: "valid validation val dev eval",
    3: "test testing holdout",
    4: "images masks labels annotations",  # parts of a data set, no splits
}
RANKS = {word: number for number, words in WORDS.items() for word in words.split()}

# Names of the columns of a table, the preferred ones first.
FILE = ["file", "filename", "path", "image", "image_name", "image_id", "name", "id"]
LABEL = ["label", "class", "target", "category"]
SPLIT = ["split", "is_valid"]
SPLITS = {1: "train", 2: "valid", 3: "test"}  # by rank
IS_VALID = {"true": "valid", "1": "valid", "false": "train", "0": "train"}
IS_VALID |= {"1.0": "valid", "0.0": "train"}  # as pandas writes them

PREFIX = r"([^/]*[^\W\d_])[-_. ]*\d+\.\w+\Z"  # without $, which make would expand
"""Finds the letters before the number in a file's name: cat in cat.12.jpg."""


class Row(NamedTuple):
    """A row of a table of labels."""

    file: str
    label: str
    split: str  # empty if the table has none


def rank(name: str) -> int:
    """Return the key in WORDS of the words in a folder's name; 0 if none or several."""
    found = {RANKS.get(word, 0) for word in re.split("[^a-z]", name.lower())} - {0}
    return found.pop() if len(found) == 1 else 0


def match(pattern: re.Pattern[str], path: str) -> str:
    """Return what the first group of a pattern matches, or all of it; "" if nothing."""
    found = pattern.search(path)
    return (found[min(pattern.groups, 1)] or "") if found else ""


def label_by_name(
    images: Sequence[Image], pattern: re.Pattern[str], left_out: LeftOut
) -> list[Image]:
    """Return the images with a class in their path: what the pattern matches."""
    rows = {i.member: Row(i.member, match(pattern, i.member), "") for i in images}
    return _label(images, rows, "with no match for --class-from", left_out)


def label_by_table(
    images: Sequence[Image], file: str, folder: str, left_out: LeftOut
) -> list[Image]:
    """Return the images to which a CSV file gives exactly one class.

    A row may name a file by the end of its path, without its extension, and with the
    folder that holds all images. A split becomes the outermost folder. Raises UserError
    if the table is unusable.
    """
    table, top = os.path.basename(file), os.path.basename(os.path.realpath(folder))
    members = defaultdict(list)
    for image in images:
        base = os.path.basename(image.member)
        for name in {base, os.path.splitext(base)[0]}:
            members[name].append(image.member)
    rows: dict[str, Row] = {}
    for row in read_table(file):
        base = os.path.basename(row.file)
        fits = [member for member in members[base] if _is_end(row.file, member, top)]
        exact = [m for m in fits if row.file in (m, os.path.splitext(m)[0])]
        member, *others = exact or fits or [""]
        if not member or others:
            which = "that fits several images" if others else "without an image"
            left_out.add(f"a row of {table} {which}", row.file)
        elif rows.setdefault(member, row)[1:] != row[1:]:
            rows[member] = Row(member, "", "")
    return _label(images, rows, f"without one class in {table}", left_out)


def _is_end(name: str, path: str, top: str) -> bool:
    """Return whether a name is the end of a path, or ends with it below `top`."""
    paths = [path, os.path.splitext(path)[0]]
    return any(
        f"/{p}".endswith(f"/{name}") or f"/{name}".endswith(f"/{top}/{p}")
        for p in paths
    )


def _label(
    images: Sequence[Image], rows: Mapping[str, Row], reason: str, left_out: LeftOut
) -> list[Image]:
    """Set the classes of images from rows by member; leave out images without one."""
    labelled = []
    for image in images:
        _, label, split = rows.get(image.member, Row("", "", ""))
        if not label:
            left_out.add(reason, image.path)
            continue
        if "/" in label or "\\" in label or is_hidden(label):
            raise UserError(f"{image.path}: {label!r} cannot name a folder: rename it")
        member = os.path.join(split, image.member)
        labelled.append(image._replace(label=label, member=member))
    return labelled


def read_header(file: str) -> tuple[str, list[str], list[str]]:
    """Return the delimiter and the columns of a CSV file: all, and those of a Row.

    Raises UserError if it lacks one for files or classes.
    """
    if stat.S_ISFIFO(os.stat(file).st_mode):
        raise UserError(f"{file} is a pipe, and is read twice: save it to a file")
    with open(file, encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
    delimiter = max(",;\t", key=first.count)
    cells = next(csv.reader([first], delimiter=delimiter), [])
    header = [cell.strip().lower() for cell in cells]
    columns = [
        next((name for name in names if name in header), "")
        for names in (FILE, LABEL, SPLIT)
    ]
    if not all(columns[:2]):
        raise UserError(
            f"{file} has the columns {', '.join(cells)}: rename the column "
            "of file names to file, and that of classes to label"
        )
    return delimiter, header, columns


def read_table(file: str) -> Iterator[Row]:
    """Yield the rows of a CSV file in UTF-8; raise UserError if it is unusable."""
    try:
        delimiter, header, (file_column, label_column, split_column) = read_header(file)
        with open(file, encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, header, restval="", delimiter=delimiter)
            next(table)
            splits = set()
            for row in table:
                if not any(row[column] for column in (file_column, label_column)):
                    continue
                path = normalize(row[file_column].strip()).replace("\\", "/")
                split = row.get(split_column, "").strip()
                if split_column == "is_valid":
                    split = IS_VALID.get(split.lower(), "")
                split = SPLITS.get(rank(split), "")
                splits.add(split)
                if split_column and not split:
                    is_flag = split_column == "is_valid"
                    words = "True or False" if is_flag else "train, valid or test"
                    raise UserError(
                        f"{file}: {path} has an unknown {split_column}: write {words}, "
                        "or rename the column"
                    )
                label = normalize(row[label_column].strip())
                yield Row(path.removeprefix("./"), label, split)
            if split_column and not ("train" in splits and len(splits) > 1):
                raise UserError(
                    f"{file}: {split_column} has only {' and '.join(sorted(splits))}: "
                    "name images for train and for valid or test, or rename the column"
                )
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8: {error}") from None


def suggest(folder: str, paths: Sequence[str]) -> str:
    """Return options that may find the classes, as the end of a message."""
    options, bases = "", {os.path.basename(path) for path in paths}
    known = bases | {os.path.splitext(base)[0] for base in bases}
    for place in (Path(folder), Path(folder).absolute().parent):
        for file in sorted(place.glob("*.csv")):
            with suppress(OSError, UserError, ValueError, csv.Error):
                name, label, _ = read_header(str(file))[2]
                rows = islice(read_table(str(file)), 100)
                if not any(os.path.basename(row.file) in known for row in rows):
                    continue
                options += (
                    f"; --labels {file} takes classes from {label}, files from {name}"
                )
    found = [match(re.compile(PREFIX), path) for path in paths]
    counts = {p: n for p, n in Counter(found).most_common() if p and n > 1}
    if 2 <= len(counts) <= MAX_CLASSES and 2 * sum(counts.values()) > len(paths):
        options += f"; --class-from '{PREFIX}' finds the classes {shorten([*counts])}"
    return options


def shorten(names: Sequence[str]) -> str:
    """Return the first names of a list."""
    return ", ".join(names[:8]) + ", …" * (len(names) > 8)
