"""Image files as arrays: decoding, and the natural order of their names."""

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from stages.running import Refusal

FORMATS = ("PNG", "JPEG", "BMP", "PPM")  # Pillow's PPM is all of PNM
MAX_PIXELS = 4096 * 4096
Image.MAX_IMAGE_PIXELS = None  # decode has a bound of its own, and needs no warning before it
GRAY = {"1", "L"}


def decode(content: bytes, name: str, size: tuple[int, int] | None, *, grayscale: bool) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 (H, W), 0 for black.

    `size` (height, width) resizes it, bilinear and smoothed where it shrinks; `grayscale` converts colour to
    luma (ITU-R 601: 0.299 R + 0.587 G + 0.114 B). Raises Refusal, by `name`, for what is no PNG, JPEG, BMP or
    PNM, is damaged, has more than 8 bits a channel or 4096 x 4096 pixels, or has colour unless `grayscale`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                msg = f"{name}: {image.width} x {image.height} pixels is more than {MAX_PIXELS} in all: leave it out"
                raise Refusal(msg)
            if _is_deep(image):
                msg = f"{name}: more than 8 bits a channel: save it with 8"
                raise Refusal(msg)
            if image.mode not in GRAY and not grayscale:
                msg = f"{name}: is in colour or has transparency: set data.grayscale to true, or convert it"
                raise Refusal(msg)
            image.load()
            gray = image if image.mode == "L" else image.convert("L")
            if size is not None and gray.size != size[::-1]:
                gray = gray.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(gray)
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # Pillow raises a dozen types for damaged files
        msg = f"{name}: not a readable PNG, JPEG, BMP or PNM image ({error}): repair it or leave it out"
        raise Refusal(msg) from None


def _is_deep(image: ImageFile) -> bool:
    """Whether the file has more than 8 bits a channel, which Pillow would cut to 8 for colour."""
    arguments = image.tile[0].args if image.tile else ()
    raw, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    return (
        image.mode[0] in "IF"
        or ";16" in str(raw)
        or (image.format == "PPM" and any(n > 255 for n in rest if isinstance(n, int)))
    )


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key that puts 2.png before 10.png: runs of digits compare as numbers."""
    runs = re.split(r"([0-9]+)", name)
    return [(len(run.lstrip("0")), run.lstrip("0")) if i % 2 else (0, run) for i, run in enumerate(runs)], name
