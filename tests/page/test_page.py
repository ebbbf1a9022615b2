"""The report's page in a real browser: it classifies as JAX does and loads nothing.

The browser is driven by chromedriver over the W3C's WebDriver protocol.
"""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import jax
import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageFont
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from stages.baseline import distances
from stages.images.decode import decode
from stages.evaluation import linear, metrics
from stages.evaluation.model_file import Linear
from stages.page import charts, pictures, render
from stages.plumbing import artifacts, npz
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import Decoding
from tests.conftest import copy, succeed

PLAIN = Decoding(size=None, grayscale=False, background=None)
HOSTILE = ['<img src=x onerror="window.broken = 1">', "<script>window.broken = '&"]
SCRIPTS = ["Шайба", "猫の種類", "قطة", "ж" * 200, "a b", "<i>&amp;<b>", 'it\'s "x"']
MANY = [f"{SCRIPTS[k % len(SCRIPTS)]} {k}" for k in range(30)]
INVENTED = [
    (HOSTILE, (20, 31), "squared_error", "l2"),
    ([str(i) for i in range(10)], (64, 64), "log_loss", "l1"),
    (["a", "b", "c"], (9, 9), "brier", "l1"),
    (MANY, (6, 90), "log_loss", "l2"),
    (["cat " * 70 + end for end in "ab"], (160, 5), "log_loss", "l1"),
]
IDS = ["real", "hostile names", "ten classes of 64 x 64", "one versus rest"]
IDS += ["thirty classes of strips", "names of 281 characters"]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no browser: apt install chromium chromium-driver",
)
FLAGS = [
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
]

probabilities = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.99, 1.0])
labels = st.lists(st.tuples(st.booleans(), probabilities), min_size=2)
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


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.1, 0.3, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (1, 20, [5, 10, 15, 20]),
        (-0.03, 0.02, [-0.03, -0.02, -0.01, 0, 0.01, 0.02]),
        (0.5, 0.5, [0.5]),
    ],
)
def test_ticks_of_some_ranges(low, high, expected):
    assert charts.ticks(low, high) == expected


@given(st.text(min_size=1, max_size=300))
def test_captions_of_a_gallery_fit_below_their_image(name):
    font = ImageFont.load_default(pictures.FONT_SIZE)
    (shown,) = pictures.drawable_names([name])
    lines = pictures._wrap(f"12345: {shown} predicted as {shown}", font)
    assert 1 <= len(lines) <= pictures.MAX_LINES
    assert all(font.getlength(line) < pictures.SIDE + pictures.GAP for line in lines)


@given(st.lists(st.text(), max_size=5))
def test_names_in_pictures_have_no_box_for_a_missing_character(names):
    font = ImageFont.load_default(pictures.FONT_SIZE)
    box = font.getmask("七")
    for label, shown in enumerate(pictures.drawable_names(names)):
        assert shown in (names[label], f"class {label}")
        assert all(bytes(font.getmask(c)) != bytes(box) for c in shown)


@pytest.mark.parametrize("name", ["3", "a cat", "<b>", "it's", "°C", "C:\\x"])
def test_names_that_the_font_has_are_shown(name):
    assert pictures.drawable_names(["é", name, " "]) == ["class 0", name, "class 2"]


SHAPES = [(28, 28), (20, 31), (1, 1), (500, 3), (600, 400), (20, 200)]


def tiles(count: int, shape: tuple[int, int]) -> list[Image.Image]:
    """Draw random images for a gallery."""
    images = np.random.default_rng(0).random((count, *shape), np.float32)
    return pictures.grayscale(pictures.shrink(images, pictures.SIDE))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_gallery_has_as_many_columns_as_asked_and_no_empty_row(shape, count):
    file, again = (
        pictures.gallery(tiles(count, shape), ["a"] * count, 5) for _ in range(2)
    )
    assert file == again
    columns, rows = max(1, min(count, 5)), max(1, -(-count // 5))
    with Image.open(io.BytesIO(file)) as sheet:
        assert sheet.info == {}
        width, height = sheet.width / columns, sheet.height / rows
    width, height = width - pictures.GAP, height - pictures.GAP - pictures.LINE_HEIGHT
    assert width >= pictures.SIDE
    assert max(width, height) <= pictures.MAX_STRETCH * pictures.SIDE
    assert shape not in [(28, 28), (1, 1)] or width == pictures.SIDE


def test_a_gallery_of_256_images_is_no_ribbon():
    file = pictures.gallery(tiles(256, (9, 9)), ["a"] * 256, 5)
    with Image.open(io.BytesIO(file)) as sheet:
        assert 0.5 < sheet.width / sheet.height < 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_large_images_shrink_to_the_means_of_their_pixels(dtype):
    """In blocks of 4 x 4: their side is that of a square of as large an area."""
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 48)).astype(dtype)
    shrunk = pictures.shrink(images, np.sqrt(64 * 48) / 4)
    assert shrunk.dtype == dtype
    expected = images.reshape(3, 16, 4, 12, 4).mean((2, 4))
    np.testing.assert_allclose(shrunk, expected, rtol=1e-5, atol=1)
    np.testing.assert_array_equal(pictures.shrink(images, 64), images)


def test_a_confusion_matrix_is_blue_where_right_and_red_where_wrong():
    """And transparent where there is no image."""
    matrix = np.array([[4, 0, 12], [0, 5, 0], [1, 99, 0]])
    image = pictures.confusion(matrix)
    pixels = np.asarray(image.convert("RGBA")).astype(int)
    right = np.eye(3, dtype=bool)
    assert (pixels[right, :3] == list(pictures.BLUE))[[0, 1]].all()
    assert (pixels[~right & (matrix > 0), :3] == list(pictures.RED)).all()
    share = matrix / matrix.sum(1, keepdims=True)
    np.testing.assert_allclose(pixels[..., 3], 255 * share ** (1 / 3), atol=3)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_the_most_frequent_confusions_are_those_that_counting_finds(pairs):
    actual, predicted = np.transpose(pairs)
    matrix = metrics.confusion_matrix(actual, predicted, 5)
    found = render.confusions(matrix)
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    expected = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    counts = Counter(actual.tolist())
    assert found == [
        (*pair, count, counts[pair[0]]) for pair, count in expected[: render.WORST]
    ]


INK = np.zeros((2, 9, 9), np.uint8)
INK[:, 2:7, 4] = 255


@pytest.mark.parametrize(
    ("images", "grayscale", "offered"),
    [
        (INK, False, True),
        (INK, True, False),  # the files were in colour
        (255 - INK, False, False),
        (np.full_like(INK, 9), False, False),  # a dark photo
        (INK[:, 2:7, 4:6], False, False),  # as much ink as ground
    ],
)
def test_a_pad_is_offered_for_gray_files_that_are_mostly_black(
    images, grayscale, offered
):
    decoding = PLAIN._replace(grayscale=grayscale)
    assert render.offers_pad(images, decoding) is offered


def test_a_gallery_shows_every_pixel_as_a_square():
    image = np.arange(4, dtype=np.uint8).reshape(2, 2) * 80
    file = io.BytesIO(pictures.gallery(pictures.grayscale(image[None]), ["a"], 5))
    with Image.open(file) as sheet:
        start, half = pictures.GAP // 2, pictures.SIDE // 2
        corners = [start, start + half - 1, start + half, start + 2 * half - 1]
        grid = [[sheet.getpixel((x, y)) for x in corners] for y in corners]
    expected = image.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(grid, expected[..., None].repeat(3, 2))


def test_weights_go_from_blue_over_white_to_red():
    images = pictures.diverging(np.array([[[-2.0, 0.0, 2.0]]]))
    low, zero, high = np.asarray(images[0].convert("RGBA"))[0].tolist()
    assert low == [*pictures.BLUE, 254]
    assert zero[3] == 0
    assert high == [*pictures.RED, 254]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_mcnemar_equals_a_binomial_test_of_images_only_one_model_gets_right(pairs):
    first, second = np.array(pairs).T
    gains, losses, p = metrics.mcnemar(first, second)
    assert (gains, losses) == ((first > second).sum(), (second > first).sum())
    assert p == pytest.approx(
        binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
    )


def test_mcnemar_of_many_images_is_quick_and_exact():
    first = np.arange(40_000) < 20_300
    assert metrics.mcnemar(first, ~first)[2] == pytest.approx(
        binomtest(20_300, 40_000).pvalue
    )


@given(labels.filter(lambda rows: len({positive for positive, _ in rows}) == 2))
def test_roc_equals_scikit_learn(rows):
    positive, scores = (np.array(column) for column in zip(*rows, strict=True))
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(metrics.roc(scores, positive), (false, true))


@given(labels)
def test_calibration_equals_scikit_learn(rows):
    positive, scores = (np.array(column) for column in zip(*rows, strict=True))
    share, mean = calibration_curve(positive, scores, n_bins=10)
    found, hits, total = metrics.calibration(scores, positive)
    np.testing.assert_allclose((found, hits / total), (mean, share))
    assert total.sum() == len(rows)


def invent(
    folder: Path,
    classes: list[str],
    shape: tuple[int, int],
    loss: str,
    distance: str,
    decoding: Decoding = PLAIN,
) -> Path:
    """Write random images and models, and run the report stage on them."""
    random = np.random.default_rng(0)
    count, pixels = len(classes), shape[0] * shape[1]
    outputs = 1 if count == 2 else count
    images = random.integers(0, 256, (60, *shape), np.uint8)
    actual = (np.arange(60) % count).astype(np.uint8)
    means = random.random((count, *shape), np.float32)
    drawn = random.normal(0, 4 / np.sqrt(pixels), (pixels, outputs))
    weights = drawn.astype(np.float32)
    to_means = np.asarray(distances(images, means, distance))
    model = Linear(
        weights,
        -weights.sum(0) / 2,
        classes,
        linear.outputs_of(loss, outputs),
        shape,
        decoding,
    )
    tensors = {
        "train_images": images,
        "train_labels": actual,
        "valid_images": images,
        "valid_labels": actual,
        "valid_in_train": np.ones(60, np.uint8),
        "classes": np.array(classes),
        "decoding": tensors.format_decoding(decoding),
    }
    baseline = {
        "means": means,
        "distance": np.array(distance),
        "valid_distances": to_means,
    }
    artifacts.publish({str(folder / artifacts.TENSORS): tensors})
    artifacts.publish(
        {
            str(folder / artifacts.BASELINE): baseline,
            str(folder / artifacts.MODEL): model.to_arrays(),
        }
    )
    predicted = to_means.argmin(1)
    scores = np.zeros(60) if count == 2 else None
    measured = metrics.classification_metrics(actual, predicted, classes, scores)
    (folder / artifacts.BASELINE_METRICS).write_text(json.dumps(measured), "utf-8")
    params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
    params["data"]["classes"] = classes
    params["baseline"]["distance"] = distance
    params["train"]["loss"] = loss
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    succeed(folder, "python", "-m", "stages", "report")
    return folder


@pytest.fixture(scope="module", params=[None, *INVENTED], ids=IDS)
def reported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a clone with a report: the real one, or of invented data."""
    if request.param is None:
        return request.getfixturevalue("built")
    folder = copy(
        request.getfixturevalue("sources"),
        tmp_path_factory.mktemp("invented") / "a clone",
    )
    return invent(folder, *request.param)


class Browser:
    """A headless Chromium."""

    def __init__(self, driver: str, browser: str, profile: Path) -> None:
        self.process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        port = next(
            found[1]
            for line in self.process.stdout
            if (found := re.search(r"successfully on port (\d+)", line))
        )
        self.address = f"http://127.0.0.1:{port}/session"
        self.open = build_opener(ProxyHandler({})).open
        options = {"binary": browser, "args": [*FLAGS, f"user-data-dir={profile}"]}
        started = self.send(
            "", capabilities={"alwaysMatch": {"goog:chromeOptions": options}}
        )
        self.address += f"/{started['sessionId']}"

    def send(self, command: str, **content: Any) -> Any:
        request = Request(
            self.address + command,
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with self.open(request, timeout=60) as response:
            return json.load(response)["value"]

    def run(self, script: str, *arguments: Any) -> Any:
        return self.send("/execute/sync", script=script, args=arguments)

    def show(self, page: Path, width: int = 1200) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        command = "Emulation.setDeviceMetricsOverride"
        self.send("/goog/cdp/execute", cmd=command, params=size)
        self.send("/url", url=page.as_uri())

    def wait(self, script: str) -> Any:
        """Return the first true value of an expression, tried for two seconds."""
        attempt = """
            const done = arguments[0], start = Date.now();
            const go = () => {
              const value = %s;
              if (value || Date.now() - start > 2000) done(value);
              else setTimeout(go, 20);
            };
            go();"""
        return self.send("/execute/async", script=attempt % script, args=[])

    def find(self, selector: str) -> dict[str, str]:
        return self.send("/element", using="css selector", value=selector)

    def upload(self, file: Path) -> None:
        (element,) = self.find("#file").values()
        self.send(f"/element/{element}/value", text=str(file))

    def move(self, *steps: dict[str, Any]) -> None:
        """Do what a mouse does."""
        mouse = {"type": "pointer", "id": "mouse", "actions": steps}
        self.send("/actions", actions=[mouse])

    def bars(self) -> dict[str, str]:
        """Return the text beside each class's bar in the linear model's list."""
        script = """return [...document.querySelectorAll('#linear-bars .bar')]
            .map((bar) => [bar.firstChild.textContent, bar.lastChild.textContent])"""
        return dict(self.run(script))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert BROWSER
    assert DRIVER
    browser = Browser(DRIVER, BROWSER, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.open(Request(browser.address, method="DELETE"), timeout=60).close()
    browser.process.terminate()
    browser.process.wait()


def load(folder: Path) -> tuple[Any, Any, Any, Linear]:
    """Return validation images, their labels, their distances to the means, a model."""
    with np.load(folder / artifacts.TENSORS) as tensors:
        images, labels = tensors["valid_images"], tensors["valid_labels"]
    with np.load(folder / artifacts.BASELINE) as file:
        to_means = file["valid_distances"]
    return images, labels, to_means, Linear.load(str(folder / artifacts.MODEL))


@needs_browser
def test_every_validation_image_scores_in_the_browser_as_in_jax(reported, browser):
    images, _, to_means, model = load(reported)
    browser.show(reported / artifacts.REPORT)
    answers = browser.run(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const size = width * height;
        return Array.from({ length: bytes.length / size }, (_, i) => {
          const pixels = bytes.subarray(i * size, (i + 1) * size);
          const answers = [linear(pixels), baseline(pixels)];
          return [answers.map((a) => a.scores), answers.map((a) => a.label)];
        });""",
        base64.b64encode(images.tobytes()).decode(),
    )
    scores = [np.array([answer[0][i] for answer in answers]) for i in (0, 1)]
    predicted = np.array([answer[1] for answer in answers])
    logits = linear.logits(images, model.weights, model.bias)
    expected = linear.probabilities(logits, model.outputs)
    np.testing.assert_allclose(scores[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(
        predicted[:, 0], linear.predicted_labels(logits, model.outputs)
    )
    np.testing.assert_allclose(scores[1], to_means, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(predicted[:, 1], to_means.argmin(1))
    if model.outputs == "sigmoid":
        pixels = images.reshape(len(images), -1) / np.float32(255)
        in_jax = pixels @ jax.numpy.asarray(model.weights) + model.bias
        np.testing.assert_allclose(
            scores[0][:, 0], jax.nn.sigmoid(in_jax)[:, 0], rtol=0, atol=1e-5
        )


def test_page_needs_nothing_from_outside_and_is_small(reported):
    page = (reported / artifacts.REPORT).read_text("utf-8")
    assert len(page.encode()) <= 1_000_000
    assert all(
        target.startswith(("#", "data:image/png;base64,"))
        for target in re.findall(r'(?:src|href)="([^"]*)', page)
    )
    assert not re.search(
        r"url\(|@import|https?://|/tmp/|\bfetch\(|XMLHttpRequest", page
    )
    assert "default-src 'none'" in page


@needs_browser
@pytest.mark.parametrize("width", [360, 1200])
def test_page_fits_its_window_and_names_what_it_shows(
    reported, browser, tmp_path, width
):
    browser.show(reported / artifacts.REPORT, width)
    scroll_width = "return document.documentElement.scrollWidth"
    resources = "return performance.getEntriesByType('resource').length"
    assert browser.run(scroll_width) <= width
    assert browser.run(resources) == 0
    assert browser.run("return document.querySelectorAll('h1, main').length") == 2
    bad_images = "[...document.images].filter((i) => !i.alt || !i.naturalWidth)"
    assert browser.run(f"return {bad_images}.length") == 0
    links = "[...document.querySelectorAll('a')]"
    broken = f"return {links}.filter((a) => !$(a.hash.slice(1))).length"
    assert browser.run(broken) == 0
    bdi = "[...document.querySelectorAll('bdi')]"
    untitled = f"{bdi}.filter((name) => name.title !== name.textContent)"
    classify_first(reported, browser, tmp_path)
    unfold(browser)
    assert browser.run(f"return {untitled}.length") == 0
    cut = (
        f"{bdi}.filter((b) => b.title.length < 9 && b.scrollWidth > b.clientWidth + 1)"
    )
    assert browser.run(f"return {cut}.filter((b) => b.clientWidth).length") == 0
    assert browser.run(scroll_width) <= width
    assert browser.run(resources) == 0
    alien = "return [document.scripts.length, window.broken ?? null]"
    assert browser.run(alien) == [2, None]


@needs_browser
def test_pictures_are_large_enough_to_see_and_crisp_if_small(reported, browser):
    images, *_ = load(reported)
    height, width = images.shape[1:]
    browser.show(reported / artifacts.REPORT)
    unfold(browser)
    shown = browser.run(
        """return [...document.querySelectorAll('.images img')].map((image) => [
          image.clientWidth, image.clientHeight, getComputedStyle(image).imageRendering,
        ])"""
    )
    assert shown
    for across, down, rendering in shown:
        assert 80**2 < across * down < 160**2
        assert max(across, down) < 4 * 150
        assert across / down == pytest.approx(width / height, rel=0.1)
        assert rendering == "pixelated"


@needs_browser
def test_the_first_of_many_probabilities_are_shown_and_all_of_a_few(
    reported, browser, tmp_path
):
    _, _, to_means, model = load(reported)
    browser.show(reported / artifacts.REPORT)
    image = classify_first(reported, browser, tmp_path)
    bars = browser.bars()
    if len(model.classes) <= render.MANY:
        assert list(bars) == model.classes
        return
    logits = linear.logits(image[None], model.weights, model.bias)
    (expected,) = linear.probabilities(logits, model.outputs)
    first = np.argsort(-expected)[: render.BARS]
    assert list(bars.items()) == [(model.classes[k], bar(expected[k])) for k in first]
    names = "[...document.querySelectorAll('#baseline-bars bdi')]"
    nearest = browser.run(f"return {names}.map((name) => name.title)")
    order = np.argsort(to_means[0])[: render.BARS]
    assert nearest == [model.classes[k] for k in order]


@needs_browser
def test_a_mistake_tried_is_classified_as_in_the_table(reported, browser):
    with (reported / artifacts.PREDICTIONS).open(encoding="utf-8") as file:
        rows = {row["index"]: row for row in csv.DictReader(file)}
    browser.show(reported / artifacts.REPORT)
    index = browser.run(
        """const button = document.querySelector('button[data-try]');
        button.click();
        return button.dataset.try;"""
    )
    answer = browser.wait("source && $('answer').textContent")
    assert answer.startswith(f"Linear: {rows[index]['predicted']}. Baseline: ")


@needs_browser
def test_without_a_pad_files_can_be_dropped_and_have_the_size_of_the_models(
    reported, browser
):
    images, *_ = load(reported)
    height, width = images.shape[1:]
    browser.show(reported / artifacts.REPORT)
    parts = browser.run("return ['pad', 'centre', 'invert'].filter($)")
    if (images == 0).mean() > 0.5:
        assert parts == ["pad", "centre", "invert"]
        return
    assert parts == []
    assert browser.run("return $('answer').textContent") == "No image yet."
    drop = """
        const [width, height] = arguments;
        blank(width, height, 99).canvas.toBlob((file) => {
          const dataTransfer = { files: [file] };
          $('try').dispatchEvent(Object.assign(new Event('drop'), { dataTransfer }));
        });"""
    browser.run(drop, width, height)
    assert browser.wait("$('answer').textContent.startsWith('Linear: ')")
    browser.run(drop, width + 1, height)
    said = browser.wait("source === null && $('answer').textContent")
    assert f"{width + 1} × {height} pixels" in said
    assert f"data.size in params.yaml to [{height}, {width}]" in said


@needs_browser
def test_an_image_file_is_taken_as_it_is_and_a_larger_one_is_centred(
    built, browser, tmp_path
):
    images, _, _, model = load(built)
    logits = linear.logits(images[:1], model.weights, model.bias)
    expected = linear.probabilities(logits, model.outputs)[0]
    browser.show(built / artifacts.REPORT)

    Image.fromarray(images[0]).save(tmp_path / "exact.png")
    browser.upload(tmp_path / "exact.png")
    assert browser.wait("$('answer').textContent.startsWith('Linear: ')")
    assert [*browser.bars().values()] == [bar(p) for p in expected]

    corner = np.zeros((300, 200), np.uint8)
    corner[:56, -56:] = np.kron(images[0], np.ones((2, 2), np.uint8))
    Image.fromarray(255 - corner).save(tmp_path / "dark on light.png")
    browser.run("$('invert').click()")
    browser.upload(tmp_path / "dark on light.png")
    assert browser.wait("source.width === 200")
    assert browser.wait("$('answer').textContent.startsWith('Linear: 3.')")
    prepared = browser.run("return Array.from(prepare(source, true, true))")
    pixels = np.array(prepared, float).reshape(28, 28)
    middle = [(pixels.sum(axis) @ np.arange(28)) / pixels.sum() for axis in (1, 0)]
    assert middle == pytest.approx([13.5, 13.5], abs=0.6)
    sides = [np.ptp(np.flatnonzero(pixels.max(axis) > 30)) + 1 for axis in (0, 1)]
    assert max(sides) in (19, 20, 21)


def bar(p: float) -> str:
    """Format a probability as beside a bar: only 0 reads as 0, and only 1 as 100."""
    if p < 1 and 100 * p >= 99.95:
        return "> 99.9 %"
    return "< 0.1 %" if p > 0 and 100 * p < 0.05 else f"{100 * p:.1f} %"


def draw(browser: Browser) -> None:
    """Draw a 7 on the pad, and keep the button pressed."""
    browser.run("pad.scrollIntoView({ block: 'center' })")
    pad = {"type": "pointerMove", "origin": browser.find("#pad"), "duration": 50}
    start, corner, end = ({"x": -90, "y": -90}, {"x": 0, "y": -90}, {"x": -40, "y": 90})
    press = {"type": "pointerDown", "button": 0}
    browser.move(pad | start, press, pad | corner, pad | end)


def unfold(browser: Browser) -> None:
    """Open everything that is folded."""
    folds = "document.querySelectorAll('details')"
    browser.run(f"{folds}.forEach((fold) => {{ fold.open = true; }})")


def classify_first(folder: Path, browser: Browser, tmp_path: Path) -> np.ndarray:
    """Choose the first validation image as a file, and return it."""
    image = load(folder)[0][0]
    Image.fromarray(image).save(tmp_path / "image.png")
    assert answer(browser, tmp_path / "image.png").startswith("Linear: ")
    return image


HEIGHT, WIDTH = 20, 31
DECODINGS = {
    "gray level 200": Decoding(size=None, grayscale=False, background=200),
    "all": Decoding(size=(HEIGHT, WIDTH), grayscale=True, background=40),
}


@pytest.fixture(scope="module", params=[*DECODINGS.values()], ids=[*DECODINGS])
def decoding(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Decoding]:
    """Return a page whose model takes images decoded in some way, and that way."""
    folder = copy(
        request.getfixturevalue("sources"), tmp_path_factory.mktemp("a") / "a clone"
    )
    invent(folder, ["a", "b"], (HEIGHT, WIDTH), "log_loss", "l1", request.param)
    return folder / artifacts.REPORT, request.param


def gradient(*channels: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Draw ramps to the right, to the left and downwards, some gray, with 4 levels."""
    x, y = np.arange(width) / (width - 1), np.arange(height)[:, None] / (height - 1)
    ramps = [x + 0 * y, 1 - x + 0 * y, y + 0 * x, x * y]
    planes = [np.rint(255 * ramps[channel]).astype(np.uint8) for channel in channels]
    return Image.fromarray(np.stack(planes, 2) if len(planes) > 1 else planes[0])


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the content of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    """Draw an image whose gray levels are a palette, the first half transparent."""
    image = gradient(0).convert("P")
    image.putpalette([level for level in range(256) for _ in range(3)])
    return image


GRAY_ALPHA = gradient(0, 2)  # mode LA
TURNED = gradient(0, height=WIDTH, width=HEIGHT)
LARGE = gradient(3, height=77, width=50)
FILES: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "gray": (gradient(0), "PNG", {}),
    "gray in red, green and blue": (gradient(0, 0, 0), "PNG", {}),
    "opaque alpha": (gradient(0, 0, 0).convert("RGBA"), "PNG", {}),
    "gray with alpha": (GRAY_ALPHA, "PNG", {}),
    "gray and alpha in four channels": (gradient(0, 0, 0, 2), "PNG", {}),
    "transparent palette": (palette(), "PNG", {"transparency": bytes(range(200))}),
    "one transparent level": (gradient(0), "PNG", {"transparency": 255}),
    "colour": (gradient(0, 1, 2), "PNG", {}),
    "colour with alpha": (gradient(0, 1, 2, 3), "PNG", {}),
    "colour in a JPEG": (gradient(0, 1, 2), "JPEG", {}),
    "JPEG": (gradient(0), "JPEG", {}),
    **{
        f"JPEG turned by {i}": (TURNED, "JPEG", {"exif": rotated(i)})
        for i in (5, 6, 7, 8)
    },
    "JPEG mirrored": (gradient(0), "JPEG", {"exif": rotated(2)}),
    "PNG turned by 6": (TURNED, "PNG", {"exif": rotated(6)}),
    "WebP": (gradient(0, 1, 2), "WEBP", {"lossless": True}),
}
OTHER_SIZES: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "larger": (LARGE, "PNG", {}),
    "larger and turned": (LARGE, "JPEG", {"exif": rotated(6)}),
    "smaller": (gradient(3, height=7, width=11), "PNG", {}),
}


def answer(browser: Browser, file: Path) -> str:
    """Choose a file, and return what the page says of it."""
    browser.run("$('answer').textContent = ''")
    browser.upload(file)
    return browser.wait("$('answer').textContent")


def assert_seen(
    browser: Browser, content: bytes, decoding: Decoding, tolerance: int
) -> None:
    """Assert that the models see a file as `decode` does; gray in RGB is fine, too."""
    as_gray = decoding._replace(grayscale=True)
    expected = decode(content, "image", **as_gray._asdict())
    seen = browser.run("return Array.from(grayscale(input))")
    np.testing.assert_allclose(
        np.reshape(seen, (HEIGHT, WIDTH)), expected.astype(int), rtol=0, atol=tolerance
    )


@needs_browser
@pytest.mark.parametrize(("image", "kind", "options"), FILES.values(), ids=FILES)
def test_the_models_see_a_file_in_the_browser_as_they_were_trained_to(
    decoding, browser, tmp_path, image, kind, options
):
    """Or refuse colour, if they do.

    Decoders of JPEG files and of transparency may differ by a few levels.
    """
    page, how = decoding
    file = tmp_path / f"image.{kind.lower()}"
    file.write_bytes(encoded(image, kind, **options))
    browser.show(page)
    said = answer(browser, file)
    red, green, blue = np.asarray(image.convert("RGB")).reshape(-1, 3).T
    if not how.grayscale and ((red != green) | (red != blue)).any():
        assert "data.grayscale" in said
        with pytest.raises(UserError, match=r"data\.grayscale"):
            decode(file.read_bytes(), "image", **how._asdict())
    else:
        assert said.startswith("Linear: ")
        assert_seen(browser, file.read_bytes(), how, 4 if kind == "JPEG" else 1)


@needs_browser
@pytest.mark.parametrize("decoding", [DECODINGS["all"]], indirect=True, ids=["all"])
@pytest.mark.parametrize(
    ("image", "kind", "options"), OTHER_SIZES.values(), ids=OTHER_SIZES
)
def test_a_file_is_resized_in_the_browser_as_by_decode_if_the_model_resizes_files(
    decoding, browser, tmp_path, image, kind, options
):
    page, how = decoding
    file = tmp_path / f"image.{kind.lower()}"
    file.write_bytes(encoded(image, kind, **options))
    browser.show(page)
    assert answer(browser, file).startswith("Linear: ")
    assert_seen(browser, file.read_bytes(), how, 4 if kind == "JPEG" else 1)


@needs_browser
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(GRAY_ALPHA), "data.background"),
        (encoded(gradient(0, 0, 0, 2)), "data.background"),
        (encoded(gradient(0), transparency=255), "data.background"),
        (encoded(gradient(0, 1, 2)), "data.grayscale"),
        (encoded(gradient(0).convert("I;16")), "16 bits"),
        (encoded(gradient(0, 0, 0), "WEBP", exif=rotated(6)), "EXIF"),
        (b"no image", "cannot read"),
    ],
)
def test_a_file_that_the_models_cannot_take_is_refused_and_leaves_no_answer(
    built, browser, tmp_path, content, reason
):
    (tmp_path / "refused").write_bytes(content)
    (tmp_path / "gray.png").write_bytes(encoded(gradient(0)))
    browser.show(built / artifacts.REPORT)
    assert answer(browser, tmp_path / "gray.png").startswith("Linear: ")
    assert reason in answer(browser, tmp_path / "refused")
    nothing = "return [document.querySelectorAll('.bar').length, source]"
    assert browser.run(nothing) == [0, None]


@needs_browser
def test_a_drawing_is_answered_at_once(built, browser):
    browser.show(built / artifacts.REPORT)
    draw(browser)
    best = "return document.querySelector('#linear-bars .best').firstChild.textContent"
    assert browser.run(best) == "7"
    browser.move({"type": "pointerUp", "button": 0})
    assert browser.run("return $('answer').textContent") == "Linear: 7. Baseline: 7."


@needs_browser
def test_an_untouched_pad_shows_no_probabilities(built, browser):
    shown = """return [document.querySelectorAll('.bar').length,
        $('answer').textContent, Math.max(...grayscale(input))]"""
    nothing = [0, "Nothing drawn yet.", 0]
    browser.show(built / artifacts.REPORT)
    assert browser.run(shown) == nothing
    browser.run("$('invert').click(), $('centre').click()")
    assert browser.run(shown) == nothing
    draw(browser)
    browser.move({"type": "pointerUp", "button": 0})
    assert browser.run(shown)[0] == 4
    browser.run("$('clear').click()")
    assert browser.run(shown) == nothing


def test_page_agrees_with_the_metrics(built):
    page = (built / artifacts.REPORT).read_text("utf-8")
    for name in (artifacts.BASELINE_METRICS, artifacts.MODEL_METRICS):
        accuracy = json.loads((built / name).read_text())["accuracy"]
        assert f"<td>{100 * accuracy:.2f} %" in page
    _, actual, to_means, _ = load(built)
    matrix = metrics.confusion_matrix(actual, to_means.argmin(1), 2)
    cells = re.findall(r'<td class="(?:hit|miss)"[^>]*>(\d+)', page)
    assert list(map(int, cells[:4])) == matrix.ravel().tolist()


def test_page_is_the_same_in_another_folder_time_zone_and_locale(clone, built):
    elsewhere = {"TZ": "Asia/Tokyo", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}
    succeed(clone, "python", "-m", "stages", "report", **elsewhere)
    pictures = [f"metrics/{name}.png" for name in ("means", "weights", "mistakes")]
    for name in [artifacts.REPORT, artifacts.PREDICTIONS, *pictures]:
        assert (clone / name).read_bytes() == (built / name).read_bytes()
