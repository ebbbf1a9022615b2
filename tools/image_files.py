"""Find the image files in a folder or an archive, and record what is left out."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from stages.images import names
from stages.images.archive import MAX_MEMBER, Archive, Entry
from stages.plumbing import artifacts

LINK = "a link to a folder"
NO_FILE = "not a regular file"


class LeftOut:
    """The number of paths left out and an example, by reason; or all of them."""

    def __init__(self, *, listed: bool = False) -> None:
        """Start empty; remember all paths if they are to be `listed`."""
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._examples: dict[str, tuple[str, str]] = {}
        self._all: list[tuple[str, str]] | None = [] if listed else None

    def add(self, reason: str, path: str, *, by_extension: bool = False) -> None:
        """Count a path. Reasons that differ only in numbers are merged."""
        kind = re.sub("[0-9]+", "0", reason)
        extension = os.path.splitext(path)[1].lower() or "without extension"
        self._counts[kind][f" {extension}" if by_extension else ""] += 1
        self._examples.setdefault(kind, (reason, path))
        if self._all is not None:
            self._all.append((reason, path))

    def __iter__(self) -> Iterator[str]:
        """Yield a line for each reason, the most frequent first, or for each path."""
        if self._all is not None:
            yield from (f"{reason}: {path}" for reason, path in self._all)
            return
        for kind, counts in sorted(self._counts.items(), key=lambda k: -k[1].total()):
            reason, path = self._examples[kind]
            most = sorted(counts, key=lambda extension: (-counts[extension], extension))
            shown = ", ".join(f"{counts[extension]}{extension}" for extension in most)
            yield f"{reason}: {shown}, for example {path}"


Read = Callable[[str], bytes]
"""Returns a file's content, or its first 64 MiB and a byte."""


class Source(NamedTuple):
    """The files of a folder, or of an archive of one, that may be images."""

    top: str
    """The folder's path, which begins with the archive's."""
    paths: list[str]
    """Paths that begin with `top`, in natural order."""
    size: int
    """Of all files, in bytes."""
    read: Read


@contextmanager
def open_source(path: str, left_out: LeftOut) -> Iterator[Source]:
    """Open a folder, or a tar or zip archive of one.

    Raises UserError if it is neither, or as `Archive` does.
    """
    if os.path.isdir(path):
        paths = []
        for found in walk(path, left_out):
            if isinstance(found, OSError):
                left_out.add(found.strerror or "cannot be listed", found.filename)
            else:
                paths.append(found)
        sizes = (os.path.getsize(path) for path in paths if os.path.exists(path))
        yield Source(path, paths, sum(sizes), read_file)
        return
    with artifacts.scratch() as spool, Archive(path, spool) as archive:
        entries, roots = find_entries(archive, path, left_out)
        top = os.path.join(path, *roots) if len(roots) == 1 else path
        size = sum(entry.size for entry in entries.values())
        paths = sorted(entries, key=path_order)
        yield Source(top, paths, size, lambda path: archive.load(entries[path]))


def find_entries(
    archive: Archive, top: str, left_out: LeftOut
) -> tuple[dict[str, Entry], set[str]]:
    """Return the files that `walk` would yield, by path, and the outer folders.

    Among the folders, "" stands for files beside them.
    """
    hidden, roots = set(), set()

    def select(member: str) -> str | None:
        """Return the path, or None to leave it out."""
        member = names.plain(member)
        path, parts = f"{top}/{member}", member.split("/")
        if "" in parts or ".." in parts:
            left_out.add(names.ODD_PATH, path)
            return None
        for i, part in enumerate(parts):
            if names.is_hidden(part):
                hidden.add("/".join(parts[: i + 1]))
                return None
        roots.add(parts[0] if parts[1:] else "")
        if reason := names.find_reason(member):
            left_out.add(reason, path, by_extension=True)
            return None
        return path

    entries: dict[str, Entry] = {}
    for path, entry in archive.find(select):
        if path in entries:
            left_out.add("twice in the archive: only the last is used", path)
        entries[path] = entry
    for name in sorted(hidden):
        left_out.add(names.HIDDEN, f"{top}/{name}")
    return entries, roots


def read_file(path: str) -> bytes:
    """Return the content of a file, at most a byte more than 64 MiB."""
    with open(path, "rb") as file:
        return file.read(MAX_MEMBER + 1)


def path_order(path: str) -> list[tuple[str, str]]:
    """Return a key that sorts paths as `walk` yields them."""
    return [name_order(name) for name in re.findall("[^/]*/|[^/]+", path)]


def name_order(name: str) -> tuple[str, str]:
    """Return a key that sorts the names in a folder; a slash follows a folder's."""
    return names.natural_order(names.normalize(name)), name


def walk(top: str, left_out: LeftOut) -> Iterator[str | OSError]:
    """Yield the files in and below a folder that may be images, in natural order.

    For a folder that cannot be listed, yields the error instead. Follows links to
    files, but not to folders. Holds only the names in one folder and its parents in
    memory.
    """

    def select(entry: os.DirEntry[str]) -> str | None:
        """Return the name, with a slash after a folder's; None to leave it out."""
        if names.is_hidden(entry.name):
            reason = names.HIDDEN
        elif entry.is_dir(follow_symlinks=False):
            return f"{entry.name}/"
        elif entry.is_symlink() and os.path.isdir(entry.path):
            reason = LINK
        elif other := names.find_reason(entry.name):
            left_out.add(other, entry.path, by_extension=True)
            return None
        # Not the methods of `entry`, which raise an error for a loop of links.
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
            return entry.name
        else:
            reason = NO_FILE
        left_out.add(reason, entry.path)
        return None

    pending = [os.path.join(top, "")]
    while pending:
        path = pending.pop()
        if not path.endswith("/"):
            yield path
            continue
        try:
            with os.scandir(path) as entries:
                found = [name for entry in entries if (name := select(entry))]
        except OSError as error:
            yield error
            continue
        found.sort(key=name_order, reverse=True)
        pending += [f"{path}{name}" for name in found]
