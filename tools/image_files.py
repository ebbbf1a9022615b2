"""Find the image files in a folder, and note what is left out."""

import os
from collections import Counter
from collections.abc import Iterator

from stages.images import names

LINK = "a link to a folder"
NO_FILE = "no plain file"


class LeftOut:
    """How many paths were left out, and an example, by the reason."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one more."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, example)


def walk(top: str, left_out: LeftOut) -> Iterator[str | OSError]:
    """Yield the files in a folder and below that may be images, in natural order.

    A folder that cannot be listed is yielded as the error, in its place. Links to files
    are followed, links to folders are left out. Only the names of a folder at a time
    are in memory, with those of its parents.
    """

    def select(entry: os.DirEntry[str]) -> str | None:
        """Return the name, with a slash at the end of a folder's."""
        if names.is_hidden(entry.name):
            reason = names.HIDDEN
        elif entry.is_dir(follow_symlinks=False):
            return f"{entry.name}/"
        elif entry.is_dir():
            reason = LINK
        elif names.OTHER_FILE.search(entry.name):
            reason = names.NO_IMAGE
        elif entry.is_file() or entry.is_symlink():  # also one that leads nowhere
            return entry.name
        else:
            reason = NO_FILE
        left_out.add(reason, entry.path)
        return None

    def order(name: str) -> str:
        return names.natural_order(names.normalize(name))

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
