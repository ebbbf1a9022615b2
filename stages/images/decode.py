"""Decode image files into arrays."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from stages.plumbing.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "PPM")  # Pillow's PPM is all of PNM
GRAY = {"1", "L"}
MAX_PIXELS = 4096 * 4096
Image.MAX_IMAGE_PIXELS = None  # no warning before the bound of our own


def decode(
    content: bytes, name: str, size: tuple[int, int] | None, *, grayscale: bool
) -> NDArray[np.uint8]:
    """Decode an image file to its pixels, uint8 (H, W), 0 for black.

    `size` (height, width) resizes it, bilinear and antialiased; `grayscale` converts
    colour to luma (ITU-R 601: 0.299 R + 0.587 G + 0.114 B). Raises UserError, naming
    the file, if it is no PNG, JPEG, BMP or PNM, is damaged, has more than 8 bits per
    channel or 4096 x 4096 pixels, or has colour without `grayscale`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if problem := _find_problem(image, grayscale=grayscale):
                raise UserError(f"{name}: {problem}")
            image.load()
            gray = image if image.mode == "L" else image.convert("L")
            if size is not None and gray.size != size[::-1]:
                gray = gray.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(gray)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow raises a dozen types for damaged files
        raise UserError(
            f"{name}: not a readable PNG, JPEG, BMP or PNM image ({error}): "
            "repair it or leave it out"
        ) from None


def _find_problem(image: ImageFile, *, grayscale: bool) -> str | None:
    """Return why an image cannot be used, and what to do."""
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        return f"{size} is more than {MAX_PIXELS} in all: leave it out"
    if _is_deep(image):
        return "more than 8 bits a channel: save it with 8"
    if image.mode not in GRAY and not grayscale:
        remedy = "set data.grayscale to true, or convert it"
        return f"is in colour or has transparency: {remedy}"
    return None


def _is_deep(image: ImageFile) -> bool:
    """Return whether the file has more than 8 bits per channel.

    For colour, Pillow would cut them to 8 without a word.
    """
    arguments = image.tile[0].args if image.tile else ()
    raw_mode, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    if image.mode[0] in "IF" or ";16" in str(raw_mode):
        return True
    max_values = [n for n in rest if isinstance(n, int)]
    return image.format == "PPM" and any(n > 255 for n in max_values)
