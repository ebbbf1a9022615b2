"""What the names in an archive say: which split, which class, in which order."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
AMBIGUOUS = "can be read in two ways"


class Folder(NamedTuple):
    """What the images in a folder have in common."""

    split: int
    """0 for training images, 1 for validation images."""
    label: int
    """An index into data.classes."""
    inner: str
    """The path below the folder of the class; empty, or with a slash at its end."""


def find_folder(
    path: str, splits: Mapping[str, int], labels: Mapping[str, int]
) -> Folder | str:
    """Return what the folder [ROOT/]SPLIT/CLASS[/FOLDERS] is, or why to leave it out.

    `splits` and `labels` have the names of the folders as keys.
    """
    parts = path.split("/")
    if "" in parts or ".." in parts:
        return ODD_PATH
    if any(is_hidden(part) for part in parts):
        return HIDDEN
    root = 0 if parts[0] in splits else 1
    if len(parts) < root + 2 or parts[root] not in splits:
        return ELSEWHERE
    split, label, *inner = parts[root:]
    if label in splits or any(part in splits or part in labels for part in inner):
        return AMBIGUOUS
    if label not in labels:
        return ELSEWHERE
    return Folder(splits[split], labels[label], "".join(f"{part}/" for part in inner))


def is_hidden(name: str) -> bool:
    """Return whether a file or a folder is hidden, or added by macOS."""
    return name.startswith(".") or name == "__MACOSX"


def find_image(
    member: str, find_folder: Callable[[str], Folder | str]
) -> tuple[Folder, str] | str:
    """Return folder and name of an image, or the reason to leave the member out.

    Names are compared in Unicode's form NFC, and Windows' backslashes separate folders.
    Raises UserError if the name can be read in two ways.
    """
    path = normalize(member).replace("\\", "/").removeprefix("./")
    parent, slash, name = path.rpartition("/")
    folder = find_folder(parent) if slash else ELSEWHERE
    if folder == ODD_PATH or name in ("", ".."):
        return ODD_PATH
    if is_hidden(name):
        return HIDDEN
    if folder == AMBIGUOUS:
        raise UserError(
            f"{member}: {AMBIGUOUS}: "
            "keep one folder named as a split and one named as a class in its path"
        )
    if isinstance(folder, str):
        return folder
    return NO_IMAGE if OTHER_FILE.search(name) else (folder, name)


def normalize(name: str) -> str:
    """Return a name in Unicode's form NFC: macOS decomposes letters, Linux does not."""
    return unicodedata.normalize("NFC", name)


def natural_order(name: str) -> str:
    r"""Return a sort key that puts 2.png before 10.png: digits compare as numbers.

    A number's count of digits comes before it. Names that differ in leading zeros only
    are told apart at the end. No name holds \0.
    """

    def count_digits(number: re.Match[str]) -> str:
        digits = number[0].lstrip("0")
        return f"\0{chr(1 + len(digits))}{digits}"

    return f"{re.sub('[0-9]+', count_digits, name)}\0\0{name}"
