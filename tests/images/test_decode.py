"""Decoding compared with Pillow and NumPy, what no image may be, and natural order."""

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.images import decode as decoding
from stages.images.names import natural_order
from stages.plumbing.errors import UserError, one_line

RANDOM = np.random.default_rng(4)
GRAY = RANDOM.integers(256, size=(7, 5), dtype=np.uint8)
COLOUR = RANDOM.integers(256, size=(7, 5, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(content: bytes, size: tuple[int, int] | None = None, **how) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decoding.decode(content, "train/3/1.png", size=size, **how)


def error(content: bytes, **how) -> str:
    """Decode an image that is refused, and return the line that names it."""
    with pytest.raises(UserError) as caught:
        decode(content, **how)
    line = one_line(caught.value)
    assert line is not None
    assert line.startswith("train/3/1.png: ")
    return line


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Write a PNG file by the book (ISO 15948): Pillow writes no 16-bit colour."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_gray_pixels_are_decoded_as_saved(kind):
    result = decode(encode(Image.fromarray(GRAY), kind))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, GRAY)


def test_a_jpeg_is_decoded_nearly_as_saved():
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    result = decode(encode(Image.fromarray(smooth), "JPEG"))
    np.testing.assert_allclose(result.astype(int), smooth, atol=6)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # In a bitmap 1 is black.
        (b"P1\n3 2\n1 0 1\n0 0 1\n", [[0, 255, 0], [255, 255, 0]]),
        (b"P4\n3 2\n\xa0\x20", [[0, 255, 0], [255, 255, 0]]),
        (b"P2\n2 2\n255\n0 1 2 255\n", [[0, 1], [2, 255]]),
        (b"P5\n2 2\n255\n\x00\x01\x02\xff", [[0, 1], [2, 255]]),
        (png(3, 1, 1, 0, b"\0\xa0"), [[255, 0, 255]]),
        (png(2, 1, 8, 0, b"\0\x07\xff"), [[7, 255]]),
    ],
    ids=["PBM text", "PBM", "PGM text", "PGM", "PNG of 1 bit", "PNG of 8 bits"],
)
def test_files_written_by_hand_are_decoded(content, expected):
    assert decode(content).tolist() == expected


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_colour_becomes_itu_r_601_luma(kind):
    content = encode(Image.fromarray(COLOUR), kind)
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode(content, grayscale=True), luma, atol=1)
    line = "is in colour or has a palette: set data.grayscale to true, or convert it"
    assert line in error(content)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_and_palettes_need_grayscale(mode):
    content = encode(Image.fromarray(GRAY).convert(mode))
    assert "is in colour or has a palette" in error(content)
    result = decode(content, grayscale=True)
    np.testing.assert_allclose(result.astype(int), GRAY, atol=1)


INK = np.array([[0, 0, 0], [0, 0, 0]], np.uint8)  # black
ALPHA = np.array([[255, 0, 0], [255, 255, 0]], np.uint8)
ICON = Image.merge("LA", [Image.fromarray(INK), Image.fromarray(ALPHA)])


def indexed(transparency: int | bytes) -> bytes:
    """Write a palette image of black where ALPHA is opaque, and white elsewhere."""
    image = Image.fromarray((ALPHA == 0).astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    return encode(image, transparency=transparency)


TRANSPARENT = {
    "LA": encode(ICON),
    "RGBA": encode(ICON.convert("RGBA")),
    "WebP": encode(ICON.convert("RGBA"), "WEBP", lossless=True),
    "TIFF": encode(ICON.convert("RGBA"), "TIFF"),
    "one colour of a palette": indexed(1),
    "a palette with levels of alpha": indexed(b"\xff\0"),
    "one gray level": encode(Image.fromarray(255 - ALPHA), transparency=255),
    "one gray level of 1 bit": encode(
        Image.fromarray(255 - ALPHA).convert("1"), transparency=255
    ),
}


@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT)
def test_transparent_pixels_show_the_background_or_are_refused(content):
    line = "has transparent pixels: set data.background to the gray level"
    assert line in error(content, grayscale=True)
    for background in (0, 77, 255):
        result = decode(content, grayscale=True, background=background)
        np.testing.assert_array_equal(result, np.where(ALPHA, INK, background))


def test_half_transparent_pixels_are_blended():
    alpha = np.array([[0, 64, 128, 255]], np.uint8)
    ink = np.full_like(alpha, 200)
    image = Image.merge("LA", [Image.fromarray(ink), Image.fromarray(alpha)])
    expected = (200.0 * alpha + 50 * (255.0 - alpha)) / 255
    result = decode(encode(image), background=50)
    np.testing.assert_allclose(result, expected, atol=1)


def test_gray_with_an_opaque_alpha_channel_needs_nothing():
    image = Image.fromarray(GRAY).convert("LA")
    np.testing.assert_array_equal(decode(encode(image)), GRAY)


def test_the_background_is_laid_under_before_resizing():
    large = ICON.resize((60, 40), Image.Resampling.NEAREST)
    alpha = np.asarray(large.getchannel("A"))
    expected = Image.fromarray(np.where(alpha, 0, 255).astype(np.uint8))
    expected = expected.resize((7, 5), Image.Resampling.BILINEAR)
    result = decode(encode(large), (5, 7), background=255)
    np.testing.assert_array_equal(result, expected)


ORIENTATIONS: dict[
    int, Callable[[np.ndarray], np.ndarray]
] = {  # what a viewer does to the stored rows (EXIF 2.3, tag 0x0112)
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_an_image_is_turned_as_its_exif_says(kind, orientation):
    image = Image.fromarray(GRAY).resize((40, 56))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = decode(encode(image, kind, **options), grayscale=True)
    turned = decode(encode(image, kind, exif=exif, **options), grayscale=True)
    np.testing.assert_array_equal(turned, ORIENTATIONS[orientation](plain))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_webp_tiff_and_gif_are_decoded_as_saved(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(GRAY)
    result = decode(encode(image, kind, **options), grayscale=True)
    np.testing.assert_array_equal(result, GRAY)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_an_image_of_several_frames_is_refused(kind):
    frames = [Image.fromarray(GRAY), Image.fromarray(255 - GRAY)]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "has 2 frames: save the one that counts" in error(content, grayscale=True)


def bmp(bits: int, compression: int, colours: bytes, rows: bytes) -> bytes:
    """Write a BMP of 4 x 2 pixels (BITMAPINFOHEADER)."""
    start = 54 + len(colours)
    sizes = (40, 4, 2, 1, bits, compression, len(rows), 0, 0, 0, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(rows), 0, 0, start)
        + struct.pack("<IiiHHIIiiII", *sizes)
        + colours
        + rows
    )


def test_a_bmp_of_8_bits_with_a_palette_of_two_colours_is_right_or_refused():
    palette = bytes(4) + b"\xff\xff\xff\0"
    content = bytearray(bmp(8, 0, palette, bytes([0, 1, 1, 0, 1, 0, 0, 1])))
    struct.pack_into("<I", content, 46, 2)  # the number of colours
    assert "is a BMP of 8 bits with two colours: save it as PNG" in error(
        bytes(content)
    )


def test_a_bmp_of_16_bits_has_no_more_than_8_per_channel():
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    content = bmp(16, 3, masks, struct.pack("<8H", *[0xFFFF, 0] * 4))
    result = decode(content, grayscale=True)
    assert result.tolist() == [[255, 0, 255, 0]] * 2


DEEP = {
    "gray PNG": encode(Image.fromarray(GRAY.astype(np.uint16) * 257)),
    "RGB PNG": png(1, 1, 16, 2, b"\0" + bytes(6)),
    "gray PNG with alpha": png(1, 1, 16, 4, b"\0" + bytes(4)),
    "RGBA PNG": png(1, 1, 16, 6, b"\0" + bytes(8)),
    "PGM": b"P5\n1 1\n65535\n\0\0",
    "PPM": b"P6\n1 1\n1023\n" + bytes(6),
    "PGM text": b"P2\n1 1\n300\n299\n",
}


@pytest.mark.parametrize("grayscale", [False, True])
@pytest.mark.parametrize("content", DEEP.values(), ids=DEEP)
def test_more_than_8_bits_per_channel_are_refused_not_truncated(content, grayscale):
    assert "more than 8 bits a channel" in error(content, grayscale=grayscale)


@pytest.mark.parametrize("size", [(7, 5), (14, 10), (3, 2), (2, 9)])
def test_resizing_is_pillows_bilinear_filter(size):
    image = Image.fromarray(GRAY)
    expected = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(encode(image), size), expected)


def test_halving_weighs_every_pixel():
    """By a triangle two output pixels wide: 1, 3, 3, 1, and at the edge 3, 3, 1."""
    row = np.array([[0, 0, 80, 0, 0, 0]], np.uint8)
    halved = decode(encode(Image.fromarray(row)), (1, 3))[0].tolist()
    assert halved == pytest.approx([80 / 7, 80 * 3 / 8, 0], abs=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("width", "height"),
    [(60_000, 60_000), (10_000, 10_000), (4097, 4096), (2**31 - 1, 2**31 - 1)],
)
def test_a_header_with_too_many_pixels_is_refused(width, height):
    line = error(png(width, height, 8, 0, b""))
    assert f"{width} x {height} pixels is more than" in line


@pytest.mark.parametrize(
    "content",
    [
        *(encode(Image.fromarray(GRAY), kind) for kind in ("ICO", "TGA", "JPEG2000")),
        *(b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>"),
        *(png(0, 0, 8, 0, b""), png(5, 5, 8, 0, b"\0")),
    ],
)
def test_other_formats_and_fragments_are_refused(content):
    line = error(content)
    assert "not a readable PNG, JPEG, BMP, PNM, WebP, TIFF or GIF image" in line
    assert "<" not in line.replace("<svg/>", "")
    assert "BytesIO" not in line


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF", "GIF"])
def test_damage_ends_in_an_image_or_a_user_error(kind):
    chance = random.Random(kind)
    whole = encode(Image.fromarray(GRAY), kind)
    damaged = [whole[: len(whole) * percent // 100] for percent in range(0, 100, 5)]
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] = chance.randrange(256)
        damaged.append(bytes(flipped))
    for content in damaged:
        with suppress(UserError):
            result = decode(content, grayscale=True, background=0)
            assert (result.dtype, result.ndim) == (np.uint8, 2)


@given(st.lists(st.integers(0, 10**30), unique=True))
def test_natural_order_compares_numbers(numbers):
    names = [f"image {n}.png" for n in numbers]
    expected = [f"image {n}.png" for n in sorted(numbers)]
    assert sorted(names, key=natural_order) == expected


@given(st.lists(st.text(), unique=True), st.randoms(use_true_random=False))
def test_natural_order_tells_any_two_names_apart(names, shuffle):
    expected = sorted(names, key=natural_order)
    shuffle.shuffle(names)
    assert sorted(names, key=natural_order) == expected


def test_leading_zeros_only_break_ties():
    names = sorted(["10", "2", "002", "02", "1"], key=natural_order)
    assert names == ["1", "002", "02", "2", "10"]
