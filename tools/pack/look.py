"""Look at image files: what they are, and whether they can be used at all."""

import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageStat
from PIL.ExifTags import Base

from stages.images import decode
from stages.images.archive import MAX_MEMBER
from stages.plumbing import workers
from stages.plumbing.errors import UserError
from stages.plumbing.progress import progress

SMALL = 2**14
"""Bytes of a file that is decoded in less than a millisecond."""
LARGE = f"larger than {MAX_MEMBER >> 20} MiB"


class Look(NamedTuple):
    """What an image file is."""

    digest: bytes
    """SHA-256 of the file."""
    size: tuple[int, int]
    """Height and width once it is upright."""
    is_gray: bool
    is_transparent: bool
    """In part, at least."""
    is_turned: bool
    """By its EXIF orientation."""
    level: float
    """Mean gray level, 0 to 255, over black."""
    opacity: float
    """Mean, 0 to 1."""

    @property
    def ink(self) -> float:
        """The mean gray level of what is not transparent; NaN if all is."""
        return self.level / self.opacity if self.opacity else math.nan

    def level_over(self, background: int | None) -> float:
        """Return the mean gray level over a background."""
        return self.level + (1 - self.opacity) * (background or 0)


def look_at(path: str) -> Look | str:
    """Look at an image file; return what is wrong with one that cannot be used."""
    try:
        if os.path.getsize(path) > MAX_MEMBER:
            return LARGE
        content = Path(path).read_bytes()
        image = decode.load(content, "")
    except UserError as error:
        return str(error).removeprefix(": ")
    except OSError as error:
        return error.strerror or "cannot be read"
    with Image.open(io.BytesIO(content), formats=decode.FORMATS) as raw:
        is_turned = raw.getexif().get(Base.Orientation) in range(2, 9)
    opacity, is_transparent = 1.0, decode.has_transparent_pixels(image)
    over_black = image
    if is_transparent:
        over_black = image.convert("RGBA")
        opacity = ImageStat.Stat(over_black.getchannel("A")).mean[0] / 255
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        over_black = Image.alpha_composite(black, over_black).convert("RGB")
    return Look(
        hashlib.sha256(content).digest(),
        (image.height, image.width),
        decode.is_gray(image),
        is_transparent,
        is_turned,
        ImageStat.Stat(over_black.convert("L")).mean[0],
        opacity,
    )


def look_at_all(paths: Sequence[str]) -> Iterator[Look | str]:
    """Look at image files, at several large ones at a time.

    With small ones, threads would wait for each other twice as long as they work.
    """
    in_all = sum(os.path.getsize(path) for path in paths if os.path.exists(path))
    is_parallel = in_all > len(paths) * SMALL
    threads = workers.available_processors() if is_parallel else 1
    with ThreadPoolExecutor(threads) as pool:
        look_at_each = pool.map if is_parallel else map
        looks = look_at_each(look_at, paths)
        yield from progress(looks, "look at images", "images", len(paths))
