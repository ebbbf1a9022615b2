"""The page in a headless Chromium, driven by chromedriver (the W3C's WebDriver)."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pytest

from stages import model, report
from stages.baseline import distances
from stages.evaluation import outputs
from stages.evaluation.metrics import classification_metrics
from stages.evaluation.model_file import TrainedModel
from stages.page import pictures, render
from stages.plumbing import artifacts
from stages.plumbing.tensors import Tensors
from tests.conftest import ROOT
from tests.page.builder import build_results

HOSTILE = ['<img src=x onerror="window.broken = 1">', "<script>window.broken = '&"]
SCRIPTS = ["Шайба", "猫の種類", "قطة", "ж" * 200, "a b", "<i>&amp;<b>", 'it\'s "x"']
MANY = [f"{SCRIPTS[k % len(SCRIPTS)]} {k}" for k in range(30)]
WORDS = [f"a name of words, number {k}" for k in range(10)]
INVENTED: dict[str, Any] = {
    "hostile names": (HOSTILE, (20, 31, 3), "target", "l2"),
    "ten classes": (WORDS, (64, 64, 1), "softmax", "l1"),
    "one versus rest": (["a", "b", "c"], (9, 9, 3), "one_versus_rest", "l1"),
    "thirty classes of strips": (MANY, (6, 90, 1), "softmax", "l2"),
    "long names": (["cat " * 70 + end for end in "ab"], (160, 5, 1), "sigmoid", "l1"),
}
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: apt install chromium chromium-driver"
)
FLAGS = [
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
]


class Shown(NamedTuple):
    """A page, and what it shows."""

    page: Path
    images: np.ndarray
    to_means: np.ndarray
    trained: TrainedModel

    def probabilities(self) -> np.ndarray:
        logits = self.trained.logits(self.images)
        return outputs.probabilities(logits, self.trained.outputs)


def write(folder: Path, results: render.Results) -> Shown:
    page = folder / "report.html"
    page.write_text(render.render(results), "utf-8")
    images = results.valid.images
    to_means = distances(images, results.means, results.distance)
    return Shown(page, images, to_means, results.trained)


@pytest.fixture(scope="module")
def real(built: Path, mnist: Tensors) -> Shown:
    """Return the page of the pipeline."""
    with np.load(built / artifacts.BASELINE) as file:
        to_means = file["valid_distances"]
    trained = TrainedModel.load(str(built / artifacts.MODEL))
    return Shown(built / artifacts.REPORT, mnist.valid.images, to_means, trained)


@pytest.fixture(scope="module", params=["real", *INVENTED])
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Shown:
    """Return the page of the pipeline, or one of random images and models."""
    if request.param == "real":
        return request.getfixturevalue("real")
    results = build_results(*INVENTED[request.param])
    return write(tmp_path_factory.mktemp("page"), results)


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

    def tell(self, command: str, **params: Any) -> None:
        """Send a command of the Chrome DevTools Protocol."""
        self.send("/goog/cdp/execute", cmd=f"Emulation.{command}", params=params)

    def run(self, expression: str, *arguments: Any) -> Any:
        script = expression if "return" in expression else f"return {expression}"
        return self.send("/execute/sync", script=script, args=arguments)

    def show(self, page: Path, width: int = 1200) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.tell("setDeviceMetricsOverride", **size)
        self.send("/url", url=page.as_uri())

    def draw(self, *points: tuple[int, int]) -> None:
        """Draw a line on the pad, its points relative to the middle, and go on."""
        self.run("pad.canvas.scrollIntoView({ block: 'center' })")
        canvas = self.send("/element", using="css selector", value="#pad")
        moves = [
            {"type": "pointerMove", "origin": canvas, "duration": 50, "x": x, "y": y}
            for x, y in points
        ]
        self.move(moves[0], {"type": "pointerDown", "button": 0}, *moves[1:])

    def move(self, *steps: dict[str, Any]) -> None:
        mouse = {"type": "pointer", "id": "mouse", "actions": steps}
        self.send("/actions", actions=[mouse])

    def release(self) -> None:
        self.move({"type": "pointerUp", "button": 0})

    def bars(self, of: str = "model") -> dict[str, str]:
        """Return the text beside the bar of each class in a list."""
        return dict(
            self.run(
                f"[...document.querySelectorAll('#{of}-bars .bar')]"
                ".map((bar) => [bar.firstChild.title, bar.lastChild.textContent])"
            )
        )

    def offers_to_try(self) -> bool:
        """Tell whether anything can be tried; the page always says what else to do."""
        text = self.run("document.body.innerText")
        assert "python -m tools.predict IMAGE" in text
        parts = "[...document.querySelectorAll('canvas, button')]"
        visible = self.run(f"{parts}.map((part) => part.clientWidth > 0)")
        assert len({*visible}) < 2
        assert any(visible) == ("nothing leaves it" in text)
        return any(visible)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert BROWSER
    assert DRIVER
    browser = Browser(DRIVER, BROWSER, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.open(Request(browser.address, method="DELETE"), timeout=60).close()
    browser.process.terminate()
    browser.process.wait()


@needs_browser
def test_every_validation_image_scores_in_the_browser_as_in_python(shown, browser):
    browser.show(shown.page)
    answers = browser.run(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const size = width * height * channels;
        return Array.from({ length: bytes.length / size }, (_, i) => {
          const image = bytes.subarray(i * size, (i + 1) * size);
          const pixels = Float64Array.from(image, (byte) => byte / 255);
          const answers = [model(pixels), baseline(pixels)];
          return [answers.map((a) => a.scores), answers.map((a) => a.label)];
        });""",
        base64.b64encode(shown.images.tobytes()).decode(),
    )
    by_model, by_baseline = (np.array([a[0][i] for a in answers]) for i in (0, 1))
    predicted = np.array([answer[1] for answer in answers])
    logits = shown.trained.logits(shown.images)
    np.testing.assert_allclose(by_model, shown.probabilities(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(
        predicted[:, 0], outputs.predicted_labels(logits, shown.trained.outputs)
    )
    np.testing.assert_allclose(by_baseline, shown.to_means, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(predicted[:, 1], shown.to_means.argmin(1))


def test_the_page_needs_nothing_from_outside_and_is_small(shown):
    page = shown.page.read_text("utf-8")
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
def test_the_page_fits_its_window_and_names_what_it_shows(shown, browser, width):
    browser.show(shown.page, width)
    browser.run("document.querySelector('button[data-try]').click()")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelector('#result table').clientWidth") < width
    tables = "[...document.querySelectorAll('.wide')]"
    scroll = browser.run(f"{tables}.some((t) => t.scrollWidth > t.clientWidth)")
    assert width < 1200 or not scroll
    assert browser.run("performance.getEntriesByType('resource').length") == 0
    assert browser.run("document.querySelectorAll('h1, main').length") == 2
    names = "[...document.querySelectorAll('bdi')]"
    for wrong in (
        "[...document.images].filter((i) => !i.alt || !i.naturalWidth)",
        "[...document.links].filter((a) => !$(a.hash.slice(1)))",
        f"{names}.filter((b) => b.title !== b.textContent)",
        f"{names}.filter((b) => !b.title[8] && b.scrollWidth > b.clientWidth + 1)",
    ):
        assert browser.run(f"{wrong}.map((element) => element.outerHTML)") == []
    alien = browser.run("[document.scripts.length, window.broken ?? null]")
    assert alien == [3 + (len(shown.trained.classes) > render.MANY), None]


@needs_browser
def test_a_cell_of_a_large_confusion_matrix_tells_its_classes_and_count(
    browser, tmp_path
):
    results = build_results(MANY, (6, 9, 1), "softmax")
    predicted = results.predictions["baseline"].labels
    index = np.flatnonzero(predicted != results.valid.labels)[0]
    row, column = int(results.valid.labels[index]), int(predicted[index])
    count = sum((results.valid.labels == row) & (predicted == column))
    browser.show(write(tmp_path, results).page)
    picture = browser.send("/element", using="css selector", value=".matrix")
    side = browser.run("document.querySelector('.matrix').width")
    x, y = (round(((k + 0.5) / 30 - 0.5) * side) for k in (column, row))
    browser.run("document.querySelector('.matrix').scrollIntoView({ block: 'center' })")
    browser.move({"type": "pointerMove", "origin": picture, "x": x, "y": y})
    text = f"{MANY[row]} predicted as {MANY[column]}: {count}"
    figure = "document.querySelector('.axes')"
    assert browser.run(f"{figure}.lastElementChild.textContent") == text
    assert browser.run(f"{figure}.querySelector('img').title") == text
    axes = browser.run(
        f"[...{figure}.querySelectorAll('span')].map((s) => s.innerText)"
    )
    assert axes == ["actual class", "predicted class"]


@needs_browser
def test_pictures_are_large_enough_to_see_and_crisp_if_small(shown, browser):
    height, width, _ = shown.images.shape[1:]
    browser.show(shown.page)
    pictures = browser.run(
        """[...document.querySelectorAll('.images img')].map((image) => [
          image.clientWidth, image.clientHeight, getComputedStyle(image).imageRendering,
        ])"""
    )
    assert pictures
    for across, down, rendering in pictures:
        assert 80**2 < across * down < 160**2
        assert max(across, down) < 4 * 150
        assert across / down == pytest.approx(width / height, rel=0.1)
        assert rendering == "pixelated"


def bar(p: float) -> str:
    """Format a probability as beside a bar: only 0 reads as 0, and only 1 as 100."""
    if p < 1 and 100 * p >= 99.95:
        return "> 99.9 %"
    return "< 0.1 %" if p > 0 and 100 * p < 0.05 else f"{100 * p:.1f} %"


@needs_browser
def test_a_mistake_tried_is_classified_as_in_python(shown, browser):
    """Of many classes, the most probable are shown, and the nearest means."""
    browser.show(shown.page)
    index = browser.run(
        "const button = document.querySelector('button[data-try]');"
        "button.click(); return Number(button.dataset.try)"
    )
    pixels = np.array(browser.run("Array.from(read(input))")) * 255
    np.testing.assert_allclose(pixels, shown.images[index].ravel())
    classes, many = shown.trained.classes, len(shown.trained.classes) > render.MANY
    p, to_means = shown.probabilities()[index], shown.to_means[index]
    answer = f"Model: {classes[p.argmax()]}. Baseline: {classes[to_means.argmin()]}."
    assert browser.run("$('answer').textContent") == answer
    first, nearest = (
        np.argsort(order)[: render.BARS] if many else range(len(p))
        for order in (-p, to_means)
    )
    assert browser.bars() == {classes[k]: bar(p[k]) for k in first}
    assert [*browser.bars("baseline")] == [classes[k] for k in nearest]


SEVEN = [(-90, -90), (0, -90), (-40, 90)]


@needs_browser
def test_a_drawing_is_answered_at_once_and_can_be_cleared(real, browser):
    state = "[document.querySelectorAll('.bar').length, $('answer').textContent]"
    nothing = [0, "Nothing drawn yet."]
    browser.show(real.page)
    browser.run("[$('centre').click(), $('centre').click()]")
    assert browser.run(state) == nothing
    browser.draw(*SEVEN)
    best = "document.querySelector('#model-bars .best').firstChild.title"
    assert browser.run(best) == "7"
    browser.release()
    assert browser.run(state) == [4, "Model: 7. Baseline: 7."]
    browser.run("$('clear').click()")
    assert browser.run(state) == nothing
    assert browser.run("Math.max(...read(input), ...read(pad).slice(0, 9999))") == 0


@needs_browser
@pytest.mark.parametrize("corner", [(-60, -40), (50, 60)])
def test_a_drawing_is_centred_as_in_mnist(real, browser, corner):
    """Its ink fills 20 of 28 pixels, and its centre of mass is in the middle."""
    browser.show(real.page)
    browser.draw(*((x // 3 + corner[0], y // 3 + corner[1]) for x, y in SEVEN))
    browser.release()
    pixels = np.reshape(browser.run("Array.from(read(input))"), (28, 28))
    middle = [(pixels.sum(axis) @ np.arange(28)) / pixels.sum() for axis in (1, 0)]
    assert middle == pytest.approx([13.5, 13.5], abs=0.6)
    sides = [np.ptp(np.flatnonzero(pixels.max(axis) > 0.12)) + 1 for axis in (0, 1)]
    assert max(sides) in (19, 20, 21)
    browser.run("$('centre').click()")
    shifted = np.reshape(browser.run("Array.from(read(input))"), (28, 28))
    assert np.ptp(np.flatnonzero(shifted.max(1) > 0.12)) < 14
    assert browser.run("$('answer').textContent").startswith("Model: ")


LINEAR = (ROOT / "stages/model.js").read_text("utf-8")
NET = """function forward({ hidden, head }, pixels) {
  const [, units] = hidden.shape;
  return Array.from({ length: units }, (_, j) => Math.max(0, pixels.reduce(
    (sum, pixel, i) => sum + pixel * hidden.data[i * units + j], 0)) * head.data[j],
  ).reduce((sums, value) => [sums[0] + value], [0]);
}"""


def net(params: Any, images: Any) -> Any:
    hidden = images.reshape(len(images), -1) @ params["hidden"]
    return np.maximum(hidden, 0) @ params["head"]


def pool(params: Any, images: Any) -> Any:
    return images.reshape(len(images), -1, 9).mean(1) @ params["head"]


NORMAL = np.random.default_rng(2).normal(size=(200, 40)).astype("f4")
NET_PARAMS = {"hidden": NORMAL[:81, :30], "head": NORMAL[100:130, :1]}


TWINS: dict[str, tuple[str | None, Any, Any, bool]] = {
    "linear": (LINEAR, model.forward, None, True),
    "net": (NET, net, NET_PARAMS, True),
    "with helpers": (f"const sigmoid = 0; {LINEAR}", model.forward, None, True),
    "of another model": (LINEAR, net, NET_PARAMS, False),
    "wrong activation": (NET.replace("max", "min"), net, NET_PARAMS, False),
    "no bias": (LINEAR.replace("value))", "0))"), model.forward, None, False),
    "NaN": (LINEAR.replace("+ c]", "+ c + 1]"), model.forward, None, False),
    "throws": ("function forward() { throw Error(); }", model.forward, None, False),
    "syntax error": ("function forward(", model.forward, None, False),
    "empty": ("", model.forward, None, False),
    "missing": (None, model.forward, None, False),
}


@needs_browser
@pytest.mark.parametrize(
    ("twin", "forward", "params", "offered"), TWINS.values(), ids=TWINS
)
def test_models_can_be_tried_only_with_an_up_to_date_twin(
    browser, tmp_path, monkeypatch, twin, forward, params, offered
):
    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr(render, "TWIN", tmp_path / "model.js")
    if twin is not None:
        render.TWIN.write_text(twin, "utf-8")
    browser.show(write(tmp_path, build_results(params=params)).page)
    assert browser.offers_to_try() is offered
    text = browser.run("document.body.innerText")
    stale = twin not in (None, "") and not offered
    assert ("does not compute what stages/model.py does" in text) == stale


@needs_browser
def test_without_javascript_nothing_is_offered_to_try(real, browser):
    browser.tell("setScriptExecutionDisabled", value=True)
    try:
        browser.show(real.page)
        assert not browser.offers_to_try()
    finally:
        browser.tell("setScriptExecutionDisabled", value=False)


def captions(results: render.Results) -> list[str]:
    """Return the captions of metrics/weights.png."""
    with patch.object(pictures, "gallery", wraps=pictures.gallery) as gallery:
        assert report.galleries(results)["metrics/weights.png"]
    _, weights, _ = gallery.call_args_list
    return weights.args[1]


def test_weights_are_named_after_classes_only_where_they_are_of_classes(monkeypatch):
    """Those of hidden units are numbered, even if as many as the classes."""
    results = build_results()
    page = render.render(results)
    assert "learned a weight for each pixel" in page
    assert 'alt="weights: a red, b blue"' in page
    assert captions(results) == ["weights: a red, b blue"]

    monkeypatch.setattr(model, "forward", net)
    for units in (3, 30):
        params = {"hidden": NORMAL[:81, :units], "head": NORMAL[:units, :3]}
        results = build_results(["a", "b", "c"], outputs="softmax", params=params)
        page = render.render(results)
        numbers = [str(unit) for unit in range(1, units + 1)]
        assert re.findall(r'alt="weights[^"]*: (.*?)"', page) == numbers
        assert captions(results) == [f"weights: unit {number}" for number in numbers]
        assert "evidence for" not in page
        assert "a weight for each pixel" not in page
        assert "Make its\nweights a ten-thousandth larger" in page

    monkeypatch.setattr(model, "forward", pool)
    results = build_results(params={"head": NORMAL[:9, :1]}, sensitivity={})
    page = render.render(results)
    assert "This model has no weights per pixel" in page
    assert 'alt="weights' not in page
    assert "ten-thousandth" not in page
    assert captions(results) == ["no weights per pixel"]


def with_mistakes(by_model: int, by_baseline: int, log_loss: float) -> render.Results:
    """Compute results of models that get so many images wrong, the same ones first."""
    results = build_results()
    labels, order = results.valid.labels, np.arange(len(results.valid.labels))
    predictions = {
        name: results.predictions[name]._replace(
            labels=np.where(order < wrong, 1 - labels, labels)
        )
        for name, wrong in (("model", by_model), ("baseline", by_baseline))
    }
    metrics = {
        name: {"log_loss": log_loss}
        | classification_metrics(labels, p.labels, ["a", "b"], p.ranking)
        for name, p in predictions.items()
    }
    return results._replace(predictions=predictions, metrics=metrics)


@pytest.mark.parametrize(
    ("by_model", "by_baseline", "log_loss", "said"),
    [
        (6, 0, 0.3, "The trained model is worse than the baseline."),  # p = 2 / 2**6
        (5, 0, 0.3, "The trained model is no better than the baseline."),
        (0, 6, 0.7, "probabilities are worse than guessing: their log loss is"),
        (0, 6, 0.693147, ""),  # log 2
        (1, 1, 0.3, ""),
    ],
)
def test_the_headline_says_if_the_model_is_worse_than_the_baseline_or_guessing(
    by_model, by_baseline, log_loss, said
):
    results = with_mistakes(by_model, by_baseline, log_loss)
    page = " ".join(render.render(results).split())
    assert ('class="lead worse"' in page) == bool(said)
    assert said in page
    significant = {6: True, 5: False}.get(abs(by_model - by_baseline))
    assert ("statistically significant</strong>" in page) == (significant is not None)
    assert ("not statistically significant" in page) == (significant is False)
    assert ("Both get the same images right." in page) == (by_model == by_baseline)


def test_the_page_says_why_it_shows_no_mistakes_and_offers_none_to_try():
    for wrong, said in (
        (0, "The trained model makes no mistakes."),
        (9, "None are shown, as report.mistakes is 0: the trained model makes 9."),
    ):
        results = with_mistakes(wrong, 0, 0.3)._replace(mistakes=np.empty(0, np.intp))
        page = " ".join(render.render(results).split())
        assert said in page
        assert "<script" not in page
        assert "can be tried" not in page


@pytest.mark.usefixtures("in_tmp_path")
def test_the_page_escapes_names_and_reads_no_data():
    results = build_results(["<b>", "&amp;"])
    page = render.render(results)
    assert page == render.render(results)
    assert "<title>&lt;b&gt; or &amp;amp;?</title>" in page
    assert "<b>" not in page
    assert "data/tensors.npz</th>" in page


def test_the_page_says_if_the_training_loss_rises():
    results = build_results()
    assert "<code>train.learning_rate</code>" not in render.render(results)
    rising = [*results.history, {**results.history[0], "epoch": 2, "train_loss": 0.6}]
    page = render.render(results._replace(history=rising))
    assert "After 1 of 2 epochs, the training loss is <strong>above" in page
    assert "<code>train.learning_rate</code>" in page
