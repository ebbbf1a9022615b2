"""Look at image files: what they are, and whether they can be used at all."""

import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from stages.images import decode
from stages.images.archive import MAX_MEMBER
from stages.plumbing import workers
from stages.plumbing.errors import UserError
from stages.plumbing.progress import progress
from tools.pack import folder

THUMBNAIL = (64, 64)
LARGE = f"larger than {MAX_MEMBER >> 20} MiB"


class Look(NamedTuple):
    """What an image file is."""

    digest: bytes
    """SHA-256 of the file."""
    size: tuple[int, int]
    """Height and width once it is upright."""
    is_gray: bool
    ink: float | None
    """Of an image with transparent pixels, the mean gray level, 0 to 255, of the rest.

    NaN if there is no rest; None if no pixel is transparent.
    """
    is_turned: bool
    """By its EXIF orientation."""


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
        is_turned = raw.getexif().get(Base.Orientation, 1) != 1
    ink = None
    if decode.has_transparent_pixels(image):
        small = image.convert("RGBA")
        small.thumbnail(THUMBNAIL, Image.Resampling.BOX)
        alpha = np.asarray(small.getchannel("A"), np.float64)
        luma = np.asarray(small.convert("RGB").convert("L"), np.float64)
        ink = float((luma * alpha).sum() / alpha.sum()) if alpha.any() else math.nan
    return Look(
        hashlib.sha256(content).digest(),
        (image.height, image.width),
        decode.is_gray(image),
        ink,
        is_turned,
    )


def look_at_all(images: Sequence[folder.Image]) -> Iterator[Look | str]:
    """Look at images, in threads: Pillow decodes several at a time."""
    with ThreadPoolExecutor(workers.available_processors()) as pool:
        looks = pool.map(look_at, [image.path for image in images])
        yield from progress(looks, "look at images", "images", len(images))
