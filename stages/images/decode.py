"""Decode image files into arrays."""

import io
import re
import warnings
import zlib
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from stages.plumbing.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF", "GIF")  # PPM is all of PNM
FORMAT_NAMES = "PNG, JPEG, BMP, PNM, WebP, TIFF or GIF"
GRAY = ("1", "L", "LA")  # modes without colour; A is alpha
COLOR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # P is a palette
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
"""Modes with premultiplied alpha, and the modes to convert them to."""
HEIF = re.compile(rb"....ftyp(avi|hei|hev|mif|msf)", re.DOTALL)
"""Refused: we could not check that every processor decodes HEIC or AVIF alike."""
TIFF_BITS, TIFF_PLANES, TIFF_SAMPLE_FORMAT, TIFF_SUBSAMPLING = 258, 284, 339, 530
TIFF_DEPTH = 32997
"""Tags of a TIFF file. Depth is the number of slices of a volume (SGI)."""
LFS_POINTER = b"version https://git-lfs"
PLAIN_PNG = re.compile(
    rb"\x89PNG\r\n\x1a\n\0\0\0\r(IHDR(.{4})(.{4})\x08([\0\2])\0\0\0)(.{4})"
    rb"(.{4})(IDAT(.*))(.{4})\0\0\0\0IEND\xaeB`\x82",
    re.DOTALL,
)
"""A PNG file (ISO 15948) of three chunks: 8-bit gray or RGB, not interlaced.

The groups are the header with width, height and colour type, its CRC, and the size of
the data, the chunk, its data and CRC.
"""
MAX_PIXELS = 4096 * 4096
Image.MAX_IMAGE_PIXELS = None  # no warning: MAX_PIXELS is the limit
loading = ContextVar("loading", default="")
"""The name of the file that `load` reads, for a warning."""
_format_warning = warnings.formatwarning


def format_warning(message: Warning | str, *others: Any, **options: Any) -> str:
    """Format a warning: on one line that begins with the file's name, if there is one.

    Pillow warns, for example, of damaged EXIF, and then the orientation may be lost.
    """
    if name := loading.get():
        return f"{name}: {message}\n"
    return _format_warning(message, *others, **options)


# Not catch_warnings, which is not thread-safe.
warnings.formatwarning = format_warning


def decode(content: bytes, name: str, **options: Any) -> NDArray[np.uint8]:
    """Decode an image file to pixels: `load`, then `to_pixels` with these options."""
    return to_pixels(load(content, name), name, **options)


def load(content: bytes, name: str) -> Image.Image:
    """Load an image file and apply its EXIF orientation.

    Raises UserError, naming the file, if the format is unknown or the structure
    damaged, and for several frames, over 8 bits per channel or over 4096 x 4096 pixels.
    Damaged data inside a JPEG goes unnoticed: it still decodes to an image.
    """
    if plain := _load_plain_png(content):
        return plain
    token = loading.set(name)
    try:
        # With `formats`, no other decoder sees the file.
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if problem := _find_problem(image, content):
            raise UserError(f"{name}: {problem}")
        image.load()
        # Without metadata, skip exif_transpose, which would copy the image.
        upright = ImageOps.exif_transpose(image) if image.info else image
        if upright.mode in PREMULTIPLIED:
            return upright.convert(PREMULTIPLIED[upright.mode])
        return upright
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        problem = f"not a readable {FORMAT_NAMES} image"
        if HEIF.match(content):
            problem = "is HEIC or AVIF"
        if content.startswith(LFS_POINTER):
            raise UserError(f"{name}: is a Git LFS pointer: run git lfs pull") from None
        raise UserError(f"{name}: {problem}: convert it to JPEG or PNG") from None
    except Exception as error:  # Pillow raises a dozen types for damaged files
        reason = re.sub(r" ?<[^>]*>", "", str(error)) or type(error).__name__
    finally:
        loading.reset(token)
    raise UserError(
        f"{name}: not a readable {FORMAT_NAMES} image ({reason}): "
        "repair it or leave it out"
    )


def _load_plain_png(content: bytes) -> Image.Image | None:
    """Load a PLAIN_PNG; return None for any other file, and for a damaged one.

    Most small images are such files, and Image.open takes three times as long.
    """
    if not (found := PLAIN_PNG.fullmatch(content)):
        return None
    header, width, height, kind, header_crc, size, chunk, data, crc = found.groups()
    shape = int.from_bytes(width), int.from_bytes(height)
    if (
        not 0 < shape[0] * shape[1] <= MAX_PIXELS
        or int.from_bytes(size) != len(data)
        or int.from_bytes(header_crc) != zlib.crc32(header)
        or int.from_bytes(crc) != zlib.crc32(chunk)
    ):
        return None
    mode = "RGB" if kind == b"\2" else "L"
    try:
        return Image.frombytes(mode, shape, data, "zip", mode)
    except (ValueError, OSError):
        return None


def to_pixels(
    image: Image.Image,
    name: str,
    *,
    size: tuple[int, int] | None = None,
    color: str | None = None,
    background: int | None = None,
) -> NDArray[np.uint8]:
    """Convert an image of any mode to pixels, uint8 (H, W, C), 0 for black.

    Like a viewer, composites transparent pixels over the gray level `background`.
    `color` is "rgb" for three channels, or "gray" for one, to which colour is converted
    as luma (ITU-R 601: 0.299 R + 0.587 G + 0.114 B). `size` (height, width) then
    resizes the image (bilinear, antialiased).

    Raises UserError, naming the file, for colour if `color` is None, and for
    transparent pixels if `background` is None.
    """
    if color is None and not is_gray(image):
        raise UserError(
            f"{name}: has colour or a palette: set data.color to rgb or gray, or "
            "convert it"
        )
    if has_transparent_pixels(image):
        if background is None:
            raise UserError(
                f"{name}: has transparent pixels: set data.background to the gray "
                "level behind them (0 is black, 255 white)"
            )
        ground = Image.new("RGBA", image.size, (*[background] * 3, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    if image.has_transparency_data:
        # Via RGBA: Pillow warns if a palette with alpha values is converted directly.
        image = image.convert("RGBA").convert("RGB")
    mode = "RGB" if color == "rgb" else "L"
    if image.mode != mode:
        image = image.convert(mode)
    # Pillow has width first.
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    # np.asarray(image) takes longer, and gives gray no channel axis.
    return np.ndarray((image.height, image.width, len(mode)), np.uint8, image.tobytes())


def is_gray(image: Image.Image) -> bool:
    """Return whether an image is stored in a mode without colour."""
    return image.mode in GRAY


def has_transparent_pixels(image: Image.Image) -> bool:
    """Return whether any pixel of an image is at least partly transparent."""
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _find_problem(image: ImageFile, content: bytes) -> str | None:
    """Return why an image cannot be used and how to fix it; None if it can."""
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        return f"{size} is more than {MAX_PIXELS} in all: shrink it"
    frames = getattr(image, "n_frames", 1)
    if isinstance(image, TiffImageFile):
        frames = max(frames, image.tag_v2.get(TIFF_DEPTH, 1))
    if frames > 1 and image.format != "MPO":  # the other frames of MPO are previews
        return f"has {frames} frames: save the one that counts"
    if _is_deep(image):
        return "has more than 8 bits per channel: save it with 8"
    if image.format == "PPM" and _has_rest(image, content):
        return "has several frames, or data after its pixels: save the one that counts"
    if image.mode not in (*GRAY, *COLOR, *PREMULTIPLIED):
        return f"has the mode {image.mode}: save it as RGB or gray"
    if image.format == "BMP" and image.mode == "1" and content[28] > 1:
        # From two colours, Pillow infers 1-bit pixels, and reads each byte as eight.
        return "is an 8-bit BMP with two colours: save it as PNG"
    return _find_tiff_problem(image) if isinstance(image, TiffImageFile) else None


def _find_tiff_problem(image: TiffImageFile) -> str | None:
    """Return why Pillow would misread the pixels of a TIFF file; None if it does not.

    Compared with tifffile, for every kind of file that it writes.
    """
    tags = image.tag_v2
    if set(tags.get(TIFF_SAMPLE_FORMAT, ())) - {1}:
        return "has signed pixels: save it with unsigned ones"
    if tags.get(TIFF_PLANES) == 2 and len(image.getbands()) == 2:
        return "has gray and alpha in two planes: save it as PNG"
    if image.mode == "YCbCr" and tags.get(TIFF_SUBSAMPLING, (2, 2)) != (1, 1):
        return "has subsampled colour without compression: save it as PNG"
    return None


def _has_rest(image: ImageFile, content: bytes) -> bool:
    """Return whether a PNM file goes on after its pixels, as with another image."""
    start = image.tile[0].offset
    if content[1:2] in b"123":  # text, with comments up to the end of a line
        return b"P" in re.sub(rb"#[^\r\n]*", b"", content[start:])
    bits = image.width * (1 if image.mode == "1" else 8 * len(image.getbands()))
    return bool(content[start + image.height * -(-bits // 8) :].strip())


def _is_deep(image: ImageFile) -> bool:
    """Return whether the file has more than 8 bits per channel.

    Pillow silently truncates 16-bit colour to 8 bits; only a TIFF file's tags, the raw
    mode, or a PNM file's maximum value, show the original depth.
    """
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(TIFF_BITS, (1,))) > 8
    arguments = image.tile[0].args if image.tile else None
    if not isinstance(arguments, tuple):
        arguments = (arguments,)
    raw_mode, *rest = arguments or ("",)
    # I and F are 32-bit integers and floats. BGR;16 has 5, 6 and 5 bits.
    if image.mode[0] in "IF" or (";16" in (raw := str(raw_mode)) and raw[0] != "B"):
        return True
    # Its maximum value is the only integer.
    return image.format == "PPM" and any(isinstance(n, int) and n > 255 for n in rest)
