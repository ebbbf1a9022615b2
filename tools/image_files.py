"""Find the image files in a folder, and record what is left out."""

import os
import re
from collections import Counter
from collections.abc import Iterator

from stages.images import names

LINK = "a link to a folder"
NO_FILE = "not a regular file"


class LeftOut:
    """The number of paths left out and an example, by reason."""

    def __init__(self) -> None:
        """Start empty."""
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, tuple[str, str]] = {}

    def add(self, reason: str, path: str) -> None:
        """Count a path. Reasons that differ only in numbers are merged."""
        kind = re.sub("[0-9]+", "0", reason)
        self._counts[kind] += 1
        self._examples.setdefault(kind, (reason, path))

    def __iter__(self) -> Iterator[tuple[str, int, str]]:
        """Yield reasons, counts and examples, the most frequent first."""
        for kind, count in self._counts.most_common():
            reason, path = self._examples[kind]
            yield reason, count, path


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
        elif entry.is_dir():
            reason = LINK
        elif names.OTHER_FILE.search(entry.name):
            reason = names.NO_IMAGE
        elif entry.is_file() or not os.path.exists(entry.path):  # a broken link
            return entry.name
        else:
            reason = NO_FILE
        left_out.add(reason, entry.path)
        return None

    def order(name: str) -> tuple[str, str]:
        return names.natural_order(names.normalize(name)), name

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
        found.sort(key=order, reverse=True)
        pending += [f"{path}{name}" for name in found]
