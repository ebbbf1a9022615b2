"""Derive split, class and sort order of images from their names in an archive."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stages.plumbing.errors import UserError

# Reasons to skip a member of the archive.
HIDDEN = "hidden"
ODD_PATH = "with an absolute path, or with .."
ELSEWHERE = "not in a folder of a chosen split and class"
NO_IMAGE = "not an image by its extension"
OTHER_FILES = {
    NO_IMAGE: "aae csv db doc docx htm html ini json lnk log m4a mat md mp3 npy npz "
    "pkl py thm tsv txt url wav xls xlsx xml xmp yaml yml",
    "a drawing: export it as PNG": "ai emf eps svg svgz wmf",
    "a document: export its pages as PNG": "djvu pdf ps",
    "a video: extract its frames": "3gp avi flv m4v mkv mov mp4 mpeg mpg webm wmv",
    "a raw photo: convert it to JPEG": "arw cr2 cr3 dng nef nrw orf pef raf rw2 srw",
    "an archive: unpack it": "7z bz2 gz lz4 lzma rar tar tgz txz xz zip zst",
}
"""Reasons to skip files, and their extensions. Many raw photos are TIFF files, of which
Pillow would read the thumbnail."""
REASONS = {f".{end}": why for why, ends in OTHER_FILES.items() for end in ends.split()}
SYSTEM = {
    *("$recycle.bin", "#recycle", "@eadir", "@recycle", "__macosx", "desktop.ini"),
    *("icon\r", "lost+found", "system volume information", "thumbs.db"),
}
"""What Windows, macOS, Linux and network drives (Synology, QNAP) add, in lower case."""
AMBIGUOUS = "can be read in two ways"  # an error, not a reason to skip
NUMBER = re.compile("[0-9]+")
DOT = re.compile(r"(?<![^/])(\./)+")
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")
"""Control characters, line separators, and characters that YAML forbids."""


class Folder(NamedTuple):
    """The split and class of the images in one folder."""

    split: int
    """0 for training images, 1 for validation images."""
    label: int
    """An index into data.classes."""
    inner: str
    """The path below the class folder; empty or ending with a slash."""


def find_folder(
    path: str, splits: Mapping[str, int], labels: Mapping[str, int]
) -> Folder | str:
    """Parse a folder's path, [ROOT/]SPLIT/CLASS[/FOLDERS]/, or return why to skip it.

    `splits` and `labels` map folder names, in NFC, to indices.
    """
    if not (path := plain(normalize(path))):
        return ELSEWHERE
    parts = path[:-1].split("/")
    if "" in parts or ".." in parts:
        return ODD_PATH
    if any(is_hidden(part) for part in parts):
        return HIDDEN
    root = 0 if parts[0] in splits else 1  # the splits may be in a root folder
    if len(parts) < root + 2 or parts[root] not in splits:
        return ELSEWHERE
    split, label, *inner = parts[root:]
    # train/7/3/x.png may be a 7 or a 3: guessing could mislabel it silently.
    if label in splits or any(part in splits or part in labels for part in inner):
        return AMBIGUOUS
    if label not in labels:
        return ELSEWHERE
    return Folder(splits[split], labels[label], "".join(f"{part}/" for part in inner))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or the system's own."""
    return name.startswith(".") or name.lower() in SYSTEM


def find_reason(name: str) -> str | None:
    """Return why a file of this name is no image; None if it may be one."""
    _, dot, end = name.rpartition(".")
    return REASONS.get(dot + end.lower())


def find_image(
    member: str, find_folder: Callable[[str], Folder | str]
) -> tuple[Folder, str] | str:
    """Return an image's folder and file name, or the reason to skip the member.

    `find_folder` takes a path that ends with a slash, or is empty. Names are compared
    in NFC. Raises UserError if the path names two splits or two classes.
    """
    parent, slash, name = member.replace("\\", "/").rpartition("/")
    name = normalize(name)
    folder = find_folder(parent + slash)
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
    return find_reason(name) or (folder, name)


def plain(path: str) -> str:
    r"""Return a path with / for \, as from Windows, and without . as a folder."""
    return DOT.sub("", path.replace("\\", "/"))


def normalize(name: str) -> str:
    """Return a name in NFC: macOS decomposes letters (NFD), Linux does not."""
    return unicodedata.normalize("NFC", name)


def escape(text: str) -> str:
    r"""Return text on one line: a tab becomes \t, a newline \n, an escape \x1b."""
    return UNPRINTABLE.sub(
        lambda found: found[0].encode("unicode_escape").decode(), text
    )


def natural_order(name: str) -> str:
    """Return a sort key that compares digits as numbers: 2.png before 10.png."""
    # One string, not a tuple of parts: preprocess keeps a key per image in memory.
    # The name itself breaks ties between names that differ only in leading zeros.
    return f"{NUMBER.sub(_with_length, name)}\0\0{name}"


def _with_length(number: re.Match[str]) -> str:
    digits = number[0].lstrip("0")
    # A longer number is larger, so its length comes first. No file name has \0.
    return f"\0{chr(1 + len(digits))}{digits}"
