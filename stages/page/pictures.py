"""Images as they are or in blue-white-red: pictures for the page, galleries for DVC."""

import base64
import io
import math
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

BLUE, RED = b"\x32\x88\xbd", b"\xd6\x40\x4e"
BORDER = "#c8c8c8"
MAX_STRETCH = 4  # longest side of a picture, relative to the side of the square
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# The parts of a gallery, in pixels.
SIDE = 140  # of the square whose area limits an image
GAP = 20
COLUMNS = 4  # `dvc plots diff` has two galleries side by side
FONT_SIZE, LINE_HEIGHT = 13, 17
MAX_LINES, MAX_CHARACTERS = 3, 60
NAME_CHARACTERS = 20  # of a file name, about a line
NO_CHARACTER = "\uffff"  # in no font


def scale(width: int, height: int, side: float) -> float:
    """Return the factor that scales an image to the area of a square, side x side.

    It is smaller if the image's longest side would exceed MAX_STRETCH * side.
    """
    area, longest = side / math.sqrt(width * height), side / max(width, height)
    return min(area, MAX_STRETCH * longest)


def shrink(images: Iterable[NDArray], side: float) -> NDArray:
    """Shrink images (N, H, W, C) to the area of a square, side x side, by averaging.

    Smaller images are left alone. The dtype, uint8 or float32, is kept. Memory-mapped
    images are read one at a time.
    """

    def shrunk(image: NDArray) -> NDArray:
        height, width, _ = image.shape
        by = scale(width, height, side)
        if by >= 1:
            return image
        size = max(1, round(width * by)), max(1, round(height * by))
        # Pillow has no colour mode of floats, so resize one channel at a time.
        channels = [
            np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BOX))
            for channel in np.moveaxis(image, 2, 0)
        ]
        return np.stack(channels, 2)

    return np.array([shrunk(image) for image in images])


def to_images(pixels: NDArray) -> list[Image.Image]:
    """Convert pixels (N, H, W, C): uint8, or floats from 0 (black) to 1 (white)."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    # Pillow takes gray images without a channel axis.
    return [Image.fromarray(p[..., 0] if p.shape[2] == 1 else p) for p in pixels]


def diverging(values: NDArray, limit: float | None = None) -> list[Image.Image]:
    """Colour values (N, H, W, 1) from -limit (blue) to limit (red); 0 is transparent.

    Three channels, (N, H, W, 3), become red, green and blue, each from dark (-limit) to
    bright (limit); 0 is middle gray. The limit is the largest absolute value unless
    given.
    """
    limit = limit or float(np.abs(values).max(initial=0)) or 1.0
    indices = np.rint(128 + 127 * np.clip(values / limit, -1, 1)).astype(np.uint8)
    if values.shape[3:] == (3,):
        return to_images(indices)
    # Palette indices 0 to 127 are blue, 128 to 255 red; opacity is the magnitude.
    alphas = bytes(min(255, 2 * abs(index - 128)) for index in range(256))
    images = to_images(indices)
    for image in images:
        image.putpalette(BLUE * 128 + RED * 128)
        image.info["transparency"] = alphas
    return images


def confusion(matrix: NDArray[np.int64]) -> Image.Image:
    """Draw a confusion matrix (K, K), a pixel per cell: right is blue, wrong is red.

    The opacity is the cube root of the share of the row, so that rare confusions show.
    """
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    signs = 1 - 2 * np.eye(len(matrix))
    (image,) = diverging((signs * np.cbrt(shares))[None, ..., None], limit=1)
    return image


def png(image: Image.Image, *, optimize: bool = False) -> bytes:
    """Encode an image as a PNG file, slower but smaller if optimized."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """Encode an image as a PNG data URI."""
    return (
        "data:image/png;base64," + base64.b64encode(png(image, optimize=True)).decode()
    )


def drawable(text: str) -> str:
    """Return a text with a question mark for each character the font cannot draw.

    Pillow's own font has little beyond ASCII, and draws a box for the rest.
    """
    font = ImageFont.load_default(FONT_SIZE)
    box = bytes(font.getmask(NO_CHARACTER))
    return "".join("?" if bytes(font.getmask(c)) == box else c for c in text)


def drawable_names(classes: Sequence[str]) -> list[str]:
    """Return the names, but "class 0" for the first if the font cannot draw it."""
    return [
        name if name.strip() and drawable(name) == name else f"class {label}"
        for label, name in enumerate(classes)
    ]


def gallery(images: Sequence[Image.Image], captions: Sequence[str]) -> bytes:
    r"""Draw images of the same size in a grid, each with a caption, as a PNG file.

    A \n in a caption starts a new line. There are COLUMNS columns, or more, so that
    rows are at most twice as many.
    """
    font = ImageFont.load_default(FONT_SIZE)
    tiles = [_enlarge(image) for image in images]
    texts = [
        [line for part in caption.split("\n") for line in wrap(part, font)]
        for caption in captions
    ]
    columns = max(COLUMNS, math.ceil(math.sqrt(len(tiles) / 2)))
    columns = max(1, min(columns, len(tiles)))
    rows = max(1, math.ceil(len(tiles) / columns))
    tile_width, tile_height = tiles[0].size if tiles else (SIDE, SIDE)
    width = max(SIDE, tile_width) + GAP
    height = tile_height + GAP + max(map(len, texts), default=0) * LINE_HEIGHT
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
        left = i % columns * width + (width - tile_width) // 2
        top = i // columns * height + GAP // 2
        middle, bottom = left + tile_width // 2, top + tile_height
        draw.rectangle((left - 1, top - 1, left + tile_width, bottom), outline=BORDER)
        sheet.paste(tile, (left, top), tile)
        for k, line in enumerate(lines):
            at = middle, bottom + 4 + k * LINE_HEIGHT
            draw.text(at, line, "black", font, anchor="ma")
    return png(sheet)


def wrap(caption: str, font: Font) -> list[str]:
    """Break a caption into lines that fit below an image; truncate a long one."""
    for characters in range(MAX_CHARACTERS, 0, -1):
        lines = textwrap.wrap(caption, characters, max_lines=MAX_LINES, placeholder="…")
        if all(font.getlength(line) <= SIDE + GAP // 2 for line in lines):
            break
    return lines


def _enlarge(image: Image.Image) -> Image.Image:
    """Enlarge by an integer factor, so that pixels stay square."""
    by = max(1, math.floor(scale(*image.size, SIDE)))
    size = image.width * by, image.height * by
    return image.convert("RGBA").resize(size, Image.Resampling.NEAREST)
