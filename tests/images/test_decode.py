"""Decoding against Pillow, NumPy and files written by hand; what is refused."""

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from stages.images import decode as decoding
from stages.plumbing.errors import UserError
from tests.builders import damaged, encode, refusal

RANDOM = np.random.default_rng(4)
GRAY = RANDOM.integers(256, size=(7, 5), dtype=np.uint8)
COLOUR = RANDOM.integers(256, size=(7, 5, 3), dtype=np.uint8)
KINDS = ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP"]
LOSSLESS = {"WEBP": {"lossless": True}}


def decode(content: bytes, size: tuple[int, int] | None = None, **how) -> np.ndarray:
    """Return pixels (H, W, 3), or (H, W) of a single channel."""
    with warnings.catch_warnings(action="error"):
        pixels = decoding.decode(content, "train/3/1.png", size=size, **how)
    assert pixels.ndim == 3
    return pixels if how.get("color") == "rgb" else pixels.squeeze(2)


def error(content: bytes, **how) -> str:
    """Decode an image that is refused, and return the line that names it."""
    line = refusal(decode, content, **how)
    assert line.startswith("train/3/1.png: ")
    return line


def save(image: Image.Image, kind: str, **options) -> bytes:
    """Write a file without loss, except in a JPEG."""
    return encode(image, kind, **options, **LOSSLESS.get(kind, {}))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Write a PNG file by the book (ISO 15948): Pillow writes no 16-bit colour."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def tiff(strips: list[bytes], tags: dict[int, tuple[int, ...]]) -> bytes:
    """Write a TIFF of 2 x 2 pixels by the book (TIFF 6.0), with 16-bit values."""
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    sizes = {273: tuple(starts), 279: tuple(map(len, strips))}
    tags = {256: (2,), 257: (2,), 258: (8,), 259: (1,), 262: (1,)} | sizes | tags
    pixels, entries, values = b"".join(strips), b"", b""
    for tag, numbers in sorted(tags.items()):
        field = struct.pack(f"<{len(numbers)}H", *numbers).ljust(4, b"\0")
        if len(field) > 4:
            at = 8 + len(pixels) + 2 + 12 * len(tags) + 4 + len(values)
            values, field = values + field, struct.pack("<I", at)
        entries += struct.pack("<HHI", tag, 3, len(numbers)) + field
    header = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4) + values


PLANES = {258: (8, 8, 8), 262: (2,), 277: (3,), 284: (2,)}  # of red, green and blue


def test_planes_of_a_tiff_are_channels():
    content = tiff([b"\0\1\2\3", b"\4\5\6\7", b"\x08\x09\x0a\x0b"], PLANES)
    expected = np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0)
    np.testing.assert_array_equal(decode(content, color="rgb"), expected)


COMPRESSED = [zlib.compress(b"\1\2\3\4"), zlib.compress(b"\xff" * 4)]
MISREAD = {  # by Pillow
    "16-bit planes": (
        tiff([bytes(8)] * 3, PLANES | {258: (16, 16, 16)}),
        "has more than 8 bits per channel: save it with 8",
    ),
    "signed pixels": (
        tiff([b"\xff\0\1\2"], {339: (2,)}),
        "has signed pixels: save it with unsigned ones",
    ),
    "a plane of alpha": (
        tiff(COMPRESSED, {258: (8, 8), 259: (8,), 277: (2,), 284: (2,), 338: (2,)}),
        "has gray and alpha in two planes: save it as PNG",
    ),
    "subsampled colour": (
        tiff([bytes(16)], {258: (8, 8, 8), 262: (6,), 277: (3,)}),
        "has subsampled colour without compression: save it as PNG",
    ),
    "a volume": (
        tiff([bytes(4)] * 2, {32997: (2,)}),
        "has 2 frames: save the one that counts",
    ),
}


@pytest.mark.parametrize(("content", "problem"), MISREAD.values(), ids=MISREAD)
def test_a_tiff_that_pillow_would_misread_is_refused(content, problem):
    assert problem in error(content, color="rgb", background=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_plain_png_is_decoded_as_by_image_open(channels, monkeypatch):
    """Each row has another of PNG's five filters."""
    lines = RANDOM.integers(256, size=(10, 1 + 5 * channels), dtype=np.uint8)
    lines[:, 0] = [*range(5), *range(5)]
    content = png(5, 10, 8, 0 if channels == 1 else 2, lines.tobytes())
    color = "rgb" if channels == 3 else None
    expected = np.asarray(Image.open(io.BytesIO(content)))
    monkeypatch.delattr(Image, "open")
    assert (decode(content, color=color) == expected).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gray_pixels_are_decoded_as_saved(kind):
    content = save(Image.fromarray(GRAY), kind)
    # GIF has a palette and WebP only colour, whatever was saved.
    result = decode(content, color="gray" if kind in ("GIF", "WEBP") else None)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, GRAY)


def test_a_jpeg_is_decoded_nearly_as_saved():
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    result = decode(encode(Image.fromarray(smooth), "JPEG"))
    np.testing.assert_allclose(result.astype(int), smooth, atol=6)


BY_HAND = {  # in a bitmap, 1 is black
    "PBM text": (b"P1\n3 2\n1 0 1\n0 0 1\n", [[0, 255, 0], [255, 255, 0]]),
    "PBM": (b"P4\n3 2\n\xa0\x20", [[0, 255, 0], [255, 255, 0]]),
    "PGM text": (b"P2\n2 2\n255\n0 1 2 255\n", [[0, 1], [2, 255]]),
    "PGM": (b"P5\n2 2\n255\n\x00\x01\x02\xff", [[0, 1], [2, 255]]),
    "PGM text, and P5 in a comment": (b"P2 2 1 255\n0 1 # P5\n", [[0, 1]]),
    "PGM of zeros": (b"P5\n2 1\n255\n\0\0\n", [[0, 0]]),
    "TIFF": (tiff([b"\1\2\3\xff"], {}), [[1, 2], [3, 255]]),
    "PNG of 1 bit": (png(3, 1, 1, 0, b"\0\xa0"), [[255, 0, 255]]),
    "PNG of 8 bits": (png(2, 1, 8, 0, b"\0\x07\xff"), [[7, 255]]),
    "PNG with opaque alpha": (png(2, 1, 8, 4, b"\0\x07\xff\xff\xff"), [[7, 255]]),
}


@pytest.mark.parametrize(("content", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_files_written_by_hand_are_decoded(content, expected):
    assert decode(content).tolist() == expected


COLOURED = {
    **{kind: (Image.fromarray(COLOUR), kind) for kind in ("PNG", "BMP", "PPM")},
    "RGBA": (Image.fromarray(COLOUR).convert("RGBA"), "PNG"),
    "palette": (Image.fromarray(COLOUR).quantize(), "PNG"),
    "gray as RGB": (Image.fromarray(GRAY).convert("RGB"), "PNG"),
    "gray as palette": (Image.fromarray(GRAY).convert("P"), "PNG"),
}


@pytest.mark.parametrize(("image", "kind"), COLOURED.values(), ids=COLOURED)
def test_colour_becomes_itu_r_601_luma_or_is_refused(image, kind):
    content = encode(image, kind)
    luma = np.asarray(image.convert("RGB")) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode(content, color="gray"), luma, atol=1)
    line = "has colour or a palette: set data.color to rgb or gray, or convert it"
    assert line in error(content)


RGB = {
    **{name: (image, kind) for name, (image, kind) in COLOURED.items()},
    "gray": (Image.fromarray(GRAY), "PNG"),
    "1 bit": (Image.fromarray(GRAY).convert("1"), "PNG"),
    "CMYK": (Image.fromarray(255 - COLOUR).convert("CMYK"), "TIFF"),
    "JPEG": (Image.fromarray(COLOUR), "JPEG"),
}


@pytest.mark.parametrize(("image", "kind"), RGB.values(), ids=RGB)
def test_rgb_is_what_pillow_reads_and_gray_is_repeated_in_each_channel(image, kind):
    content = encode(image, kind)
    with Image.open(io.BytesIO(content)) as saved:
        np.testing.assert_array_equal(
            decode(content, color="rgb"), saved.convert("RGB")
        )
        small = saved.convert("RGB").resize((4, 2), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(content, (2, 4), color="rgb"), small)


def test_transparent_colour_is_laid_over_the_background():
    pixels = np.dstack([COLOUR, np.where(COLOUR[..., 0] < 128, 0, 255).astype("u1")])
    result = decode(encode(Image.fromarray(pixels)), color="rgb", background=77)
    expected = np.where(pixels[..., 3:], COLOUR, 77)
    np.testing.assert_array_equal(result, expected)


ALPHA = np.array([[255, 0, 0], [255, 255, 0]], np.uint8)
ICON = Image.merge("LA", [Image.new("L", (3, 2)), Image.fromarray(ALPHA)])  # black


def indexed(transparency: int | bytes) -> bytes:
    """Write a palette image of black where ALPHA is opaque, and white elsewhere."""
    image = Image.fromarray((ALPHA == 0).astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    return encode(image, transparency=transparency)


LEVELS = Image.fromarray(255 - ALPHA)
TRANSPARENT = {
    "LA": encode(ICON),
    "RGBA": encode(ICON.convert("RGBA")),
    "WebP": save(ICON.convert("RGBA"), "WEBP"),
    "TIFF": encode(ICON.convert("RGBA"), "TIFF"),
    "one colour of a palette": indexed(1),
    "a palette with levels of alpha": indexed(b"\xff\0"),
    "one gray level": encode(LEVELS, transparency=255),
    "one gray level of 1 bit": encode(LEVELS.convert("1"), transparency=255),
}


@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT)
def test_transparent_pixels_show_the_background_or_are_refused(content):
    line = "has transparent pixels: set data.background to the gray level"
    assert line in error(content, color="gray")
    for background in (0, 77, 255):
        result = decode(content, color="gray", background=background)
        np.testing.assert_array_equal(result, np.where(ALPHA, 0, background))


def test_half_transparent_pixels_are_blended():
    alpha = np.array([[0, 64, 128, 255]], np.uint8)
    image = Image.merge("LA", [Image.new("L", (4, 1), 200), Image.fromarray(alpha)])
    expected = (200.0 * alpha + 50 * (255.0 - alpha)) / 255
    np.testing.assert_allclose(decode(encode(image), background=50), expected, atol=1)


def test_the_background_is_laid_under_before_resizing():
    large = ICON.resize((60, 40), Image.Resampling.NEAREST)
    alpha = np.asarray(large.getchannel("A"))
    expected = Image.fromarray(np.where(alpha, 0, 255).astype(np.uint8))
    expected = expected.resize((7, 5), Image.Resampling.BILINEAR)
    result = decode(encode(large), (5, 7), background=255)
    np.testing.assert_array_equal(result, expected)


# What a viewer does to the stored rows (EXIF 2.3, tag 0x0112).
ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
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
    plain = decode(save(image, kind), color="gray")
    turned = decode(save(image, kind, exif=exif), color="gray")
    np.testing.assert_array_equal(turned, ORIENTATIONS[orientation](plain))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_an_image_of_several_frames_is_refused(kind):
    frames = [Image.fromarray(GRAY), Image.fromarray(255 - GRAY)]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "has 2 frames: save the one that counts" in error(content, color="gray")


@pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"])
def test_a_pnm_file_of_several_images_is_refused(kind):
    header = kind + b" 9 1" + (b"" if kind in (b"P1", b"P4") else b" 255") + b"\n"
    pixels = b"1 " * 27 if kind in (b"P1", b"P2", b"P3") else b"\1" * 27
    size = {b"P1": 18, b"P2": 18, b"P4": 2, b"P5": 9}.get(kind, len(pixels))
    one = header + pixels[:size]
    assert decode(one, color="gray").shape == (1, 9)
    for other in (one, b"\n" + one):
        assert "has several frames, or data after" in error(one + other, color="gray")


def test_a_warning_names_the_file(monkeypatch):
    """In threads, too, as tools.pack reads them."""
    orientation = b"Exif\0\0II*\0\x08\0\0\0\2\0" + struct.pack(
        "<HHIHH", 274, 3, 1, 6, 0
    )
    content = encode(Image.fromarray(GRAY), "JPEG", exif=orientation)
    lines: list[str] = []
    show = lambda *warned: lines.append(warnings.formatwarning(*warned[:4]))  # noqa: E731
    monkeypatch.setattr(warnings, "showwarning", show)
    names = [f"train/3/{i}.jpg" for i in range(20)]
    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("always")
        images = [*pool.map(lambda name: decoding.load(content, name), names)]
    assert {image.size for image in images} == {GRAY.shape}  # turned all the same
    assert {line.partition(": ")[0] for line in lines} == set(names)
    assert all(line.count("\n") == 1 and "EXIF" in line for line in lines)
    assert "train/3" not in warnings.formatwarning("x", UserWarning, "file.py", 1)


def bmp(
    bits: int, compression: int, table: bytes, rows: bytes, *, colours: int = 0
) -> bytes:
    """Write a BMP of 4 x 2 pixels (BITMAPINFOHEADER)."""
    start = 54 + len(table)
    sizes = (40, 4, 2, 1, bits, compression, len(rows), 0, 0, colours, 0)
    header = struct.pack("<IHHI", start + len(rows), 0, 0, start)
    return b"BM" + header + struct.pack("<IiiHHIIiiII", *sizes) + table + rows


def test_an_8_bit_bmp_with_two_colours_is_refused():
    """Pillow would read other pixels."""
    palette = bytes(4) + b"\xff\xff\xff\0"
    content = bmp(8, 0, palette, bytes([0, 1, 1, 0, 1, 0, 0, 1]), colours=2)
    assert "is an 8-bit BMP with two colours: save it as PNG" in error(content)


def test_a_16_bit_bmp_has_no_more_than_8_bits_per_channel():
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    content = bmp(16, 3, masks, struct.pack("<8H", *[0xFFFF, 0] * 4))
    result = decode(content, color="gray")
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


@pytest.mark.parametrize("color", [None, "gray", "rgb"])
@pytest.mark.parametrize("content", DEEP.values(), ids=DEEP)
def test_more_than_8_bits_per_channel_are_refused_not_truncated(content, color):
    assert "more than 8 bits per channel" in error(content, color=color)


def test_halving_weighs_every_pixel():
    """By a triangle two output pixels wide: 1, 3, 3, 1, and at the edge 3, 3, 1."""
    row = np.array([[0, 0, 80, 0, 0, 0]], np.uint8)
    halved = decode(encode(Image.fromarray(row)), (1, 3))[0].tolist()
    assert halved == pytest.approx([80 / 7, 80 * 3 / 8, 0], abs=1)


@pytest.mark.parametrize(
    ("width", "height"),
    [(60_000, 60_000), (10_000, 10_000), (4097, 4096), (2**31 - 1, 2**31 - 1)],
)
def test_a_header_with_too_many_pixels_is_refused_in_little_memory(width, height):
    tracemalloc.start()
    line = error(png(width, height, 8, 0, b""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{width} x {height} pixels is more than" in line
    assert peak < 16 * 2**20


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


def test_a_git_lfs_pointer_is_named():
    content = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    assert error(content).endswith("is a Git LFS pointer: run git lfs pull")


@pytest.mark.parametrize("kind", [*KINDS, "JPEG"])
def test_damage_ends_in_an_image_or_a_user_error(kind):
    for content in damaged(encode(Image.fromarray(GRAY), kind), kind):
        with suppress(UserError):
            result = decoding.decode(content, "x", color="rgb", background=0)
            assert (result.dtype, result.shape[2]) == (np.uint8, 3)
