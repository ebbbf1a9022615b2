"""Decoding against Pillow and NumPy, and what no image may be."""

import io
import random
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages import images
from stages.running import Refusal, one_line

RANDOM = np.random.default_rng(4)
GRAY = RANDOM.integers(256, size=(7, 5), dtype=np.uint8)
COLOUR = RANDOM.integers(256, size=(7, 5, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def decode(content: bytes, size: tuple[int, int] | None = None, *, grayscale: bool = False) -> np.ndarray:
    return images.decode(content, "train/3/1.png", size, grayscale=grayscale)


def refusal(content: bytes, *, grayscale: bool = False) -> str:
    """The line, with the name in it, that refuses an image."""
    with pytest.raises(Refusal) as caught:
        decode(content, grayscale=grayscale)
    line = one_line(caught.value)
    assert line is not None
    assert line.startswith("train/3/1.png: ")
    return line


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file by the book (ISO 15948), as Pillow writes no 16-bit colour."""
    start = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", start), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_grey_pixels_are_those_that_were_saved(kind):
    result = decode(encode(Image.fromarray(GRAY), kind))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, GRAY)


def test_a_jpeg_is_nearly_what_was_saved():
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    np.testing.assert_allclose(decode(encode(Image.fromarray(smooth), "JPEG")).astype(int), smooth, atol=6)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"P1\n3 2\n1 0 1\n0 0 1\n", [[0, 255, 0], [255, 255, 0]]),  # in a bitmap 1 is black
        (b"P4\n3 2\n\xa0\x20", [[0, 255, 0], [255, 255, 0]]),
        (b"P2\n2 2\n255\n0 1 2 255\n", [[0, 1], [2, 255]]),
        (b"P5\n2 2\n255\n\x00\x01\x02\xff", [[0, 1], [2, 255]]),
        (png(3, 1, 1, 0, b"\0\xa0"), [[255, 0, 255]]),
        (png(2, 1, 8, 0, b"\0\x07\xff"), [[7, 255]]),
    ],
    ids=["PBM text", "PBM", "PGM text", "PGM", "PNG of 1 bit", "PNG of 8 bits"],
)
def test_files_written_by_hand(content, expected):
    assert decode(content).tolist() == expected


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_colour_becomes_luma_of_itu_r_601(kind):
    content = encode(Image.fromarray(COLOUR), kind)
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode(content, grayscale=True), luma, atol=1)
    assert "is in colour or has transparency: set data.grayscale" in refusal(content)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_colour_transparency_and_palettes_need_grayscale(mode):
    content = encode(Image.fromarray(GRAY).convert(mode))
    assert "is in colour or has transparency" in refusal(content)
    np.testing.assert_allclose(decode(content, grayscale=True).astype(int), GRAY, atol=1)


@pytest.mark.parametrize("grayscale", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        encode(Image.fromarray(GRAY.astype(np.uint16) * 257)),
        png(1, 1, 16, 2, b"\0" + bytes(6)),
        png(1, 1, 16, 4, b"\0" + bytes(4)),
        png(1, 1, 16, 6, b"\0" + bytes(8)),
        b"P5\n1 1\n65535\n\0\0",
        b"P6\n1 1\n1023\n" + bytes(6),
        b"P2\n1 1\n300\n299\n",
    ],
    ids=["grey PNG", "RGB PNG", "grey PNG with alpha", "RGBA PNG", "PGM", "PPM", "PGM text"],
)
def test_more_than_8_bits_a_channel_are_refused_and_not_cut(content, grayscale):
    assert "more than 8 bits a channel" in refusal(content, grayscale=grayscale)


@pytest.mark.parametrize("size", [(7, 5), (14, 10), (3, 2), (2, 9)])
def test_resizing_is_pillows_bilinear_filter(size):
    expected = Image.fromarray(GRAY).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(GRAY)), size), expected)


def test_halving_takes_every_pixel_into_account():
    """A triangle twice as wide as an output pixel weighs 1, 3, 3, 1 (at the edge 3, 3, 1)."""
    row = np.array([[0, 0, 80, 0, 0, 0]], np.uint8)
    assert decode(encode(Image.fromarray(row)), (1, 3))[0].tolist() == pytest.approx([80 / 7, 80 * 3 / 8, 0], abs=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("width", "height"), [(60_000, 60_000), (10_000, 10_000), (4097, 4096), (2**31 - 1, 2**31 - 1)]
)
def test_too_many_pixels_are_refused_by_the_header(width, height):
    assert f"{width} x {height} pixels is more than" in refusal(png(width, height, 8, 0, b""))


@pytest.mark.parametrize(
    "content",
    [
        *(encode(Image.fromarray(GRAY), kind) for kind in ("GIF", "TIFF", "WEBP")),
        *(b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", png(0, 0, 8, 0, b""), png(5, 5, 8, 0, b"\0")),
    ],
)
def test_other_formats_and_fragments_are_refused(content):
    assert "not a readable PNG, JPEG, BMP or PNM image" in refusal(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM"])
def test_damaged_files_are_refused_or_read_but_nothing_else(kind):
    chance = random.Random(kind)
    whole = encode(Image.fromarray(GRAY), kind)
    damaged = [whole[: len(whole) * percent // 100] for percent in range(0, 100, 5)]
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] = chance.randrange(256)
        damaged.append(bytes(flipped))
    for content in damaged:
        with suppress(Refusal):
            result = decode(content, grayscale=True)
            assert (result.dtype, result.ndim) == (np.uint8, 2)


@given(st.lists(st.integers(0, 10**30), unique=True))
def test_natural_order_is_that_of_the_numbers(numbers):
    names = [f"image {n}.png" for n in numbers]
    assert sorted(names, key=images.natural) == [f"image {n}.png" for n in sorted(numbers)]


@given(st.lists(st.text(), unique=True), st.randoms(use_true_random=False))
def test_natural_order_tells_any_two_names_apart(names, shuffle):
    one = sorted(names, key=images.natural)
    shuffle.shuffle(names)
    assert sorted(names, key=images.natural) == one


def test_leading_zeros_do_not_count_but_for_ties():
    assert sorted(["10", "2", "002", "02", "1"], key=images.natural) == ["1", "002", "02", "2", "10"]
