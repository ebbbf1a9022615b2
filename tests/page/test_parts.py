"""The page's charts, pictures and numbers."""

import io
import itertools
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from stages.evaluation.metrics import confusion_matrix
from stages.page import charts, pictures, render
from tests.page.builder import PLAIN, build_results

limits = st.floats(-1e9, 1e9)


@given(limits, limits)
def test_ticks_are_round_numbers_inside_the_range(first, second):
    low, high = min(first, second), max(first, second)
    assume(high - low > 1e-9 * max(abs(low), abs(high), 1e-9))
    ticks = charts.ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert low <= ticks[0]
    assert ticks[-1] <= high
    exact = [Decimal(str(tick)) for tick in ticks]
    step = exact[1] - exact[0]
    assert step.normalize().as_tuple().digits in ((1,), (2,), (5,))
    assert exact == [exact[0] + i * step for i in range(len(ticks))]
    assert all(tick % step == 0 for tick in exact)


def test_ticks_of_some_ranges():
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts.ticks(0.1, 0.3) == [0.1, 0.15, 0.2, 0.25, 0.3]
    assert charts.ticks(-0.03, 0.02) == [-0.03, -0.02, -0.01, 0, 0.01, 0.02]
    assert charts.ticks(0.5, 0.5) == [0.5]


@st.composite
def curves(draw):
    """Draw a line from (0, 0) to (1, 1) that never falls, as a ROC curve."""
    step = st.sampled_from([0, 0, 1, 2, 900])
    steps = draw(st.lists(st.tuples(step, step), min_size=31, max_size=80))
    totals = np.cumsum([(0, 0), *steps], axis=0)
    return (totals / np.maximum(totals[-1], 1)).T


@given(curves())
def test_a_curve_drawn_by_its_corners_passes_through_every_point(curve):
    """And has no corner within a straight run."""
    [line] = charts.chart("", ("", ""), {"a": curve}, charts.DIAGONAL)["lines"].values()
    corners = line.tolist()
    scaled = np.round([300 * curve[0], 200 * (1 - curve[1])], 1).T.tolist()
    for point in scaled:
        assert any(
            point in (a, b)
            or (a[0] == point[0] == b[0] and b[1] <= point[1] <= a[1])
            or (a[1] == point[1] == b[1] and a[0] <= point[0] <= b[0])
            for a, b in itertools.pairwise([corners[0], *corners])
        )
    for a, b, c in zip(corners, corners[1:], corners[2:], strict=False):
        assert not a[0] == b[0] == c[0]
        assert not a[1] == b[1] == c[1]


@given(st.text(min_size=1, max_size=300))
def test_captions_of_a_gallery_fit_below_their_image(name):
    font = ImageFont.load_default(pictures.FONT_SIZE)
    (shown,) = pictures.drawable_names([name])
    lines = pictures.wrap(f"12345: {shown} predicted as {shown}", font)
    assert 1 <= len(lines) <= pictures.MAX_LINES
    assert all(font.getlength(line) < pictures.SIDE + pictures.GAP for line in lines)


@given(st.lists(st.text(), max_size=5))
def test_names_in_pictures_have_no_box_for_a_missing_character(names):
    font = ImageFont.load_default(pictures.FONT_SIZE)
    box = font.getmask("七")
    for label, shown in enumerate(pictures.drawable_names(names)):
        assert shown in (names[label], f"class {label}")
        assert all(bytes(font.getmask(c)) != bytes(box) for c in shown)


def test_names_that_the_font_has_are_shown():
    names = ["3", "a cat", "<b>", "it's", "°C", "C:\\x"]
    shown = pictures.drawable_names([*names, "é", " "])
    assert shown == [*names, "class 6", "class 7"]


def gallery(count: int, shape: tuple[int, int]) -> tuple[bytes, Image.Image]:
    """Draw random images in a gallery."""
    images = np.random.default_rng(0).random((count, *shape, 1), np.float32)
    tiles = pictures.to_images(pictures.shrink(images, pictures.SIDE))
    file = pictures.gallery(tiles, ["a"] * count)
    return file, Image.open(io.BytesIO(file))


@pytest.mark.parametrize(
    "shape", [(28, 28), (20, 31), (1, 1), (500, 3), (600, 400), (20, 200)]
)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_gallery_has_up_to_four_columns_and_no_empty_row(shape, count):
    file, sheet = gallery(count, shape)
    assert file == gallery(count, shape)[0]
    assert sheet.info == {}
    width = sheet.width / max(1, min(count, 4)) - pictures.GAP
    row = sheet.height / max(1, -(-count // 4))
    height = row - pictures.GAP - pictures.LINE_HEIGHT
    assert width >= pictures.SIDE
    assert max(width, height) <= pictures.MAX_STRETCH * pictures.SIDE
    assert shape not in [(28, 28), (1, 1)] or width == pictures.SIDE


def test_a_newline_in_a_caption_starts_a_line():
    tile = Image.new("L", (9, 9))
    sheets = [
        Image.open(io.BytesIO(pictures.gallery([tile], [caption])))
        for caption in ("a b", "a\nb")
    ]
    assert sheets[1].height - sheets[0].height == pictures.LINE_HEIGHT


def test_a_gallery_of_256_images_is_no_ribbon():
    _, sheet = gallery(256, (9, 9))
    assert 0.5 < sheet.width / sheet.height < 2


def test_two_galleries_of_24_mistakes_fit_side_by_side():
    assert 2 * gallery(24, (28, 28))[1].width <= 1280


def test_a_gallery_shows_every_pixel_as_a_square():
    image = np.arange(4, dtype=np.uint8).reshape(2, 2) * 80
    file = io.BytesIO(
        pictures.gallery(pictures.to_images(image[None, ..., None]), ["a"])
    )
    with Image.open(file) as sheet:
        start, half = pictures.GAP // 2, pictures.SIDE // 2
        corners = [start, start + half - 1, start + half, start + 2 * half - 1]
        grid = [[sheet.getpixel((x, y)) for x in corners] for y in corners]
    expected = image.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(grid, expected[..., None].repeat(3, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_large_images_shrink_to_the_means_of_their_pixels(dtype):
    """In blocks of 4 x 4: their side is that of a square of as large an area."""
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3)).astype(dtype)
    shrunk = pictures.shrink(images, np.sqrt(64 * 48) / 4)
    assert shrunk.dtype == dtype
    expected = images.reshape(3, 16, 4, 12, 4, 3).mean((2, 4))
    np.testing.assert_allclose(shrunk, expected, rtol=1e-5, atol=1)
    np.testing.assert_array_equal(pictures.shrink(images, 64), images)


def test_a_confusion_matrix_is_blue_where_right_and_red_where_wrong():
    """And transparent where there is no image."""
    matrix = np.array([[4, 0, 12], [0, 5, 0], [1, 99, 0]])
    pixels = np.asarray(pictures.confusion(matrix).convert("RGBA")).astype(int)
    right = np.eye(3, dtype=bool)
    assert (pixels[right, :3] == list(pictures.BLUE))[[0, 1]].all()
    assert (pixels[~right & (matrix > 0), :3] == list(pictures.RED)).all()
    share = matrix / matrix.sum(1, keepdims=True)
    np.testing.assert_allclose(pixels[..., 3], 255 * share ** (1 / 3), atol=3)


def test_weights_go_from_blue_over_white_to_red():
    images = pictures.diverging(np.array([[[[-2.0], [0.0], [2.0]]]]))
    low, zero, high = np.asarray(images[0].convert("RGBA"))[0].tolist()
    assert low == [*pictures.BLUE, 254]
    assert zero[3] == 0
    assert high == [*pictures.RED, 254]


def test_weights_in_colour_are_lighter_or_darker_than_middle_gray():
    (image,) = pictures.diverging(np.array([[[[-2.0, 0.0, 1.0]]]]))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (1, 128, 192))


def test_in_colour_a_pair_has_a_picture_of_weights_for_each_class():
    trained = build_results(shape=(4, 5, 3)).trained
    first, second = render.pixel_images(trained).reshape(2, -1)
    np.testing.assert_array_equal(first, trained.params["weights"][:, 0])
    np.testing.assert_array_equal(second, -first)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_the_most_frequent_confusions_are_those_that_counting_finds(pairs):
    actual, predicted = np.transpose(pairs)
    found = render.confusions(confusion_matrix(actual, predicted, 5))
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    expected = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    counts = Counter(actual.tolist())
    assert found == [
        (*pair, count, counts[pair[0]]) for pair, count in expected[: render.WORST]
    ]


INK = np.zeros((2, 9, 9, 1), np.uint8)
INK[:, 2:7, 4] = 255


@pytest.mark.parametrize(
    ("images", "color", "offered"),
    [
        (INK, None, True),
        (INK, "gray", False),  # the files were in colour
        (INK.repeat(3, axis=3), "rgb", False),
        (255 - INK, None, False),
        (np.full_like(INK, 9), None, False),  # a dark photo
        (INK[:, 2:7, 4:6], None, False),  # as much ink as ground
    ],
)
def test_a_pad_is_offered_for_gray_files_that_are_mostly_black(images, color, offered):
    decoding = PLAIN._replace(color=color)
    results = build_results(shape=images.shape[1:], images=images, decoding=decoding)
    page = render.render(results)
    assert ['id="pad"' in page, 'id="centre"' in page] == [offered, offered]
    assert ("Nothing drawn yet." if offered else "No image yet.") in page


@given(st.floats(0, 1), st.integers(1, 4), st.sampled_from([1, 100]))
def test_only_none_is_shown_as_0_and_only_all_as_1(share, digits, unit):
    text = render.format_share(share, digits, unit)
    sign, _, number = text.rpartition(" ")
    if share in (0, 1):
        assert (sign, float(number)) == ("", unit * share)
    else:
        assert 0 < float(number) < unit
        error = float(number) - unit * share
        assert abs(error) <= 0.51 * 10**-digits
        assert {"": True, "<": error > 0, ">": error < 0}[sign]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        *((0.984789, "98.5"), (1, "100.0"), (0, "0.0")),
        *((5999 / 6000, "99.98"), (1 - 1e-9, "> 99.9999")),
        *((1 / 6000, "0.02"), (1e-9, "< 0.0001")),
    ],
)
def test_percentages_have_more_digits_where_they_would_read_as_all_or_none(share, text):
    assert render.format_share(share, 1, 100) == text


@pytest.mark.parametrize("kept", [True, False])
def test_a_template_that_changes_is_compiled_again(monkeypatch, tmp_path, kept):
    """From whatever folder, and even if compiled templates cannot be kept."""
    (cache := tmp_path / "cache").mkdir()
    monkeypatch.setattr(
        render.runtime, "CACHE", str(cache if kept else tmp_path / "no")
    )
    for folder, text in (("a", "1\n"), ("a", "1\n"), ("a", "2\n"), ("b", "3\n")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "t.j2").write_text(text, "utf-8")
        assert render.load_template("t.j2", tmp_path / folder).render() == text.strip()
    assert len(list(cache.iterdir())) == kept
