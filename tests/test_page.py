"""The report's page, in a real browser: its models answer as JAX does, and it needs nothing from outside.

The browser is driven by chromedriver, spoken to by the W3C's WebDriver protocol.
"""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import jax
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from stages import artifacts, linear, metrics
from stages.baseline import distances
from tests.conftest import copy, succeed

HOSTILE = ['<img src=x onerror="window.broken = 1">', "<script>window.broken = '&"]
INVENTED = [
    (HOSTILE, (20, 31), "squared_error", "l2"),
    ([str(i) for i in range(10)], (64, 64), "log_loss", "l1"),
    (["a", "b", "c"], (9, 9), "brier", "l1"),
]
IDS = ["real", "hostile names", "ten classes of 64 x 64", "one versus rest"]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: install chromium and chromedriver (apt install chromium-driver)"
)
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync"]  # fmt: skip

labels = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.99, 1.0])), min_size=2)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_mcnemar_equals_a_binomial_test_of_the_images_that_one_model_alone_gets_right(pairs):
    first, second = np.array(pairs).T
    gains, losses, p = metrics.mcnemar(first, second)
    assert (gains, losses) == ((first > second).sum(), (second > first).sum())
    assert p == pytest.approx(binomtest(gains, gains + losses).pvalue if gains + losses else 1.0)


def test_mcnemar_of_many_images_is_quick_and_exact():
    first = np.arange(40_000) < 20_300
    assert metrics.mcnemar(first, ~first)[2] == pytest.approx(binomtest(20_300, 40_000).pvalue)


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


def invent(folder: Path, classes: list[str], shape: tuple[int, int], loss: str, distance: str) -> Path:
    """Write what the report stage reads, of random images and models, and run it."""
    random = np.random.default_rng(0)
    count = len(classes)
    outputs = 1 if count == 2 else count
    images = random.integers(0, 256, (60, *shape), np.uint8)
    actual = (np.arange(60) % count).astype(np.uint8)
    means = random.random((count, *shape), np.float32)
    weights = random.normal(0, 4 / np.sqrt(np.prod(shape)), (np.prod(shape), outputs)).astype(np.float32)
    for name in ("data", "models"):
        (folder / name).mkdir(exist_ok=True)
    np.savez(
        folder / artifacts.TENSORS, train_images=images, train_labels=actual, valid_images=images, valid_labels=actual,
        classes=np.array(classes),
    )  # fmt: skip
    np.savez(folder / artifacts.BASELINE, means=means)
    np.savez(folder / artifacts.LINEAR, weights=weights, bias=-weights.sum(0) / 2)
    predicted = np.asarray(distances(images, means, distance)).argmin(1)
    scores = np.zeros(60) if count == 2 else None
    measures = metrics.measures(actual, predicted, classes, scores)
    (folder / artifacts.BASELINE_METRICS).write_text(json.dumps(measures), "utf-8")
    params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
    params["data"]["classes"], params["baseline"]["distance"], params["train"]["loss"] = classes, distance, loss
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    succeed(folder, "python", "-m", "stages.report")
    return folder


@pytest.fixture(scope="module", params=[None, *INVENTED], ids=IDS)
def reported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a report: the real one, or of an invented data set."""
    if request.param is None:
        return request.getfixturevalue("built")
    folder = copy(request.getfixturevalue("sources"), tmp_path_factory.mktemp("invented") / "a clone")
    return invent(folder, *request.param)


class Browser:
    """A headless Chromium."""

    def __init__(self, driver: str, browser: str, profile: Path) -> None:
        self.process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        port = next(
            found[1] for line in self.process.stdout if (found := re.search(r"successfully on port (\d+)", line))
        )
        self.address, self.open = f"http://127.0.0.1:{port}/session", build_opener(ProxyHandler({})).open
        options = {"binary": browser, "args": [*FLAGS, f"user-data-dir={profile}"]}
        started = self.send("", capabilities={"alwaysMatch": {"goog:chromeOptions": options}})
        self.address += f"/{started['sessionId']}"

    def send(self, command: str, **content: Any) -> Any:
        request = Request(self.address + command, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with self.open(request, timeout=60) as response:
            return json.load(response)["value"]

    def run(self, script: str, *arguments: Any) -> Any:
        return self.send("/execute/sync", script=script, args=arguments)

    def show(self, page: Path, width: int = 1200) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)
        self.send("/url", url=page.as_uri())

    def wait(self, script: str) -> Any:
        """The first true value of an expression, tried for two seconds."""
        attempt = "const done = arguments[0], start = Date.now(), go = () => { const value = %s;"
        attempt += "if (value || Date.now() - start > 2000) done(value); else setTimeout(go, 20); }; go();"
        return self.send("/execute/async", script=attempt % script, args=[])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert BROWSER
    assert DRIVER
    browser = Browser(DRIVER, BROWSER, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.open(Request(browser.address, method="DELETE"), timeout=60).close()
    browser.process.terminate()
    browser.process.wait()


def load(folder: Path) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    with np.load(folder / artifacts.TENSORS) as tensors, np.load(folder / artifacts.LINEAR) as model:
        images, model = tensors["valid_images"], dict(model)
    with np.load(folder / artifacts.BASELINE) as file:
        means = file["means"]
    return images, means, model, yaml.safe_load((folder / "params.yaml").read_text("utf-8"))


@needs_browser
def test_every_validation_image_scores_in_the_browser_as_in_jax(reported, browser):
    images, means, model, params = load(reported)
    browser.show(reported / artifacts.REPORT)
    answers = browser.run(
        """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0)), size = width * height;
        return Array.from({ length: bytes.length / size }, (_, i) => {
          const pixels = bytes.subarray(i * size, (i + 1) * size), answers = [linear(pixels), baseline(pixels)];
          return [answers.map((a) => a.scores), answers.map((a) => a.best)];
        });""",
        base64.b64encode(images.tobytes()).decode(),
    )
    scores = [np.array([answer[0][i] for answer in answers]) for i in (0, 1)]
    best = np.array([answer[1] for answer in answers])
    loss = params["train"]["loss"]
    raw = linear.raw_predictions(images, **model)
    np.testing.assert_allclose(scores[0], linear.probabilities(raw, loss), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(best[:, 0], linear.predicted_classes(raw, loss))
    far = np.asarray(distances(images, means, params["baseline"]["distance"]))
    np.testing.assert_allclose(scores[1], far, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(best[:, 1], far.argmin(1))
    if raw.shape[1] == 1 and loss == "log_loss":
        logits = images.reshape(len(images), -1) / np.float32(255) @ jax.numpy.asarray(model["weights"]) + model["bias"]
        np.testing.assert_allclose(scores[0][:, 0], jax.nn.sigmoid(logits)[:, 0], rtol=0, atol=1e-5)


def test_page_needs_nothing_from_outside_and_is_small(reported):
    page = (reported / artifacts.REPORT).read_text("utf-8")
    assert len(page.encode()) <= 1_000_000
    assert all(
        target.startswith(("#", "data:image/png;base64,")) for target in re.findall(r'(?:src|href)="([^"]*)', page)
    )
    assert not re.search(r"url\(|@import|https?://|/tmp/|\bfetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


@needs_browser
@pytest.mark.parametrize("width", [360, 1200])
def test_page_fits_its_window_and_names_what_it_shows(reported, browser, width):
    browser.show(reported / artifacts.REPORT, width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return document.querySelectorAll('h1, main').length") == 2
    assert browser.run("return [...document.images].filter((i) => !i.alt || !i.naturalWidth).length") == 0
    assert browser.run("return [...document.querySelectorAll('a')].filter((a) => !$(a.hash.slice(1))).length") == 0
    classes = yaml.safe_load((reported / "params.yaml").read_text("utf-8"))["data"]["classes"]
    shown = "return [...document.querySelectorAll('#linear-bars .bar')].map((b) => b.firstChild.textContent)"
    assert browser.run(shown) == classes
    assert browser.run("return [document.scripts.length, window.broken ?? null]") == [2, None]


@needs_browser
def test_an_image_file_is_taken_as_it_is_and_a_larger_one_is_centred(built, browser, tmp_path):
    images, _, model, params = load(built)
    expected = linear.probabilities(linear.raw_predictions(images[:1], **model), params["train"]["loss"])[0]
    browser.show(built / artifacts.REPORT)
    chooser = (
        "/element/" + next(iter(browser.send("/element", using="css selector", value="#file").values())) + "/value"
    )
    shown = "return [...document.querySelectorAll('#linear-bars .bar')].map((b) => parseFloat(b.lastChild.textContent))"

    Image.fromarray(images[0]).save(tmp_path / "exact.png")
    browser.send(chooser, text=str(tmp_path / "exact.png"))
    assert browser.wait("$('answer').textContent.startsWith('Linear: ')")
    assert browser.run(shown) == pytest.approx((100 * expected).tolist(), abs=0.051)

    corner = np.zeros((300, 200), np.uint8)
    corner[:56, -56:] = np.kron(images[0], np.ones((2, 2), np.uint8))
    Image.fromarray(255 - corner).save(tmp_path / "dark on light.png")
    browser.run("$('invert').click()")
    browser.send(chooser, text=str(tmp_path / "dark on light.png"))
    assert browser.wait("source.width === 200")
    assert browser.wait("$('answer').textContent.startsWith('Linear: 3.')")
    seen = np.array(browser.run("return Array.from(prepare(source, true, true))"), float).reshape(28, 28)
    middle = [(seen.sum(axis) @ np.arange(28)) / seen.sum() for axis in (1, 0)]
    assert middle == pytest.approx([13.5, 13.5], abs=0.6)
    assert max(np.ptp(np.flatnonzero(seen.max(axis) > 30)) + 1 for axis in (0, 1)) in (19, 20, 21)


@needs_browser
def test_a_drawing_is_answered_at_once(built, browser):
    browser.show(built / artifacts.REPORT)
    browser.run("pad.scrollIntoView({ block: 'center' })")
    pad = browser.send("/element", using="css selector", value="#pad")
    moves = [
        {"type": "pointerMove", "origin": pad, "x": x, "y": y, "duration": 50}
        for x, y in [(-90, -90), (0, -90), (-40, 90)]
    ]
    strokes = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:]]
    browser.send("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": strokes}])
    assert browser.run("return document.querySelector('#linear-bars .best').firstChild.textContent") == "7"
    browser.send(
        "/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [{"type": "pointerUp", "button": 0}]}]
    )
    assert browser.run("return $('answer').textContent") == "Linear: 7. Baseline: 7."


def test_page_agrees_with_the_metrics(built):
    page = (built / artifacts.REPORT).read_text("utf-8")
    for name in (artifacts.BASELINE_METRICS, artifacts.LINEAR_METRICS):
        accuracy = json.loads((built / name).read_text())["accuracy"]
        assert f"<td>{100 * accuracy:.2f} %" in page
    images, means, _, params = load(built)
    with np.load(built / artifacts.TENSORS) as tensors:
        actual = tensors["valid_labels"]
    near = np.asarray(distances(images, means, params["baseline"]["distance"])).argmin(1)
    cells = re.findall(r'<td class="(?:hit|miss)"[^>]*>(\d+)', page)
    assert list(map(int, cells[:4])) == metrics.confusion_matrix(actual, near, 2).ravel().tolist()


def test_page_is_the_same_in_another_folder_time_zone_and_locale(clone, built):
    succeed(clone, "python", "-m", "stages.report", TZ="Asia/Tokyo", LC_ALL="tr_TR.UTF-8", LANG="tr_TR.UTF-8")
    for name in [
        artifacts.REPORT,
        artifacts.PREDICTIONS,
        *(f"metrics/{n}.png" for n in ("means", "weights", "mistakes")),
    ]:
        assert (clone / name).read_bytes() == (built / name).read_bytes()
