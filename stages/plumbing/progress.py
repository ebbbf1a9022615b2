"""Show progress on a terminal."""

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(
    items: Iterable[T], description: str, unit: str, total: int | None = None
) -> Iterable[T]:
    """Return `items`, with a progress bar after a second if stderr is a terminal."""
    if not (sys.stderr and sys.stderr.isatty()):  # None if it is closed
        return items
    from tqdm import tqdm  # deferred: importing it takes 30 ms

    return tqdm(items, description, total, unit=f" {unit}", delay=1)
