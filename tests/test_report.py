"""What the report shows agrees with what the models' own stages computed."""

import base64
import csv
import io
import itertools
import re
import shutil
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score

from stages import baseline, preprocess, report, train
from stages.evaluation import linear, metrics
from stages.evaluation.model_file import Linear
from stages.page import charts, pictures
from stages.page.render import MAX_PIXELS, Results, format_share, render
from stages.plumbing import artifacts, npz, parameters
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import Decoding, Split
from tests.conftest import ROOT

ACTUAL, PREDICTED = np.array([0, 1, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 0, 1])
SCORES = np.array([0.99, 0.6, 0.9, 0.8, 0.7, 0.8])
DECODING = Decoding(size=None, grayscale=False, background=None)
Build = Callable[..., str]


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (2, [3, 5]), (3, [3, 5, 4]), (24, [3, 5, 4, 1])]
)
def test_mistakes_come_most_confident_first_and_ties_by_index(count, expected):
    found = report.most_confident_mistakes(ACTUAL, PREDICTED, SCORES, count)
    assert found.tolist() == expected


def test_without_a_mistake_there_are_none_to_show():
    assert report.most_confident_mistakes(ACTUAL, ACTUAL, SCORES, 24).size == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, 1)), min_size=1
    ),
    st.integers(0, 9),
)
def test_no_mistake_left_out_is_more_confident_than_one_shown(rows, count):
    actual, predicted, scores = (np.array(column) for column in zip(*rows, strict=True))
    shown = report.most_confident_mistakes(actual, predicted, scores, count)
    others = set(np.flatnonzero(actual != predicted)) - set(shown)
    assert len(set(shown)) == len(shown) == min(count, (actual != predicted).sum())
    assert (actual[shown] != predicted[shown]).all()
    assert all(scores[o] <= scores[s] for o in others for s in shown)


def test_a_row_for_each_validation_image_names_its_classes():
    columns = np.array([0, 1]), np.array([1, 1]), np.array([0.75, 0.5])
    rows = list(report.prediction_rows(range(2), *columns, ["drei", "sieben"]))
    assert rows[1:] == list(report.prediction_rows([1], *columns, ["drei", "sieben"]))
    assert rows == [
        {
            "split": "valid",
            "index": 0,
            "actual": "drei",
            "predicted": "sieben",
            "score": 0.75,
        },
        {
            "split": "valid",
            "index": 1,
            "actual": "sieben",
            "predicted": "sieben",
            "score": 0.5,
        },
    ]


LINEAR_OUTPUTS = [("sigmoid", 1), ("target", 1), ("softmax", 3)]
LINEAR_OUTPUTS += [("one_versus_rest", 3), ("target", 3)]


def linear_model(outputs: str, count: int, side: int, classes: list[str]) -> Linear:
    """Draw the weights of a model with `count` outputs."""
    random = np.random.default_rng(count)
    weights = random.normal(0, 1, (side**2, count)).astype(np.float32)
    return Linear(weights, weights[0], classes, outputs, (side, side), DECODING)


@pytest.mark.parametrize(("outputs", "count"), LINEAR_OUTPUTS)
@pytest.mark.parametrize("block", [1, 7, 50, 4096])
def test_predictions_in_blocks_are_those_of_all_images(
    monkeypatch, outputs, count, block
):
    """Of the probabilities, those of the first, predicted and actual class are kept."""
    monkeypatch.setattr(report, "BLOCK", block)
    valid = noise(2, 50, 3 if count > 1 else 2, 4)
    model = linear_model(outputs, count, 4, ["a", "b", "c"][: max(count, 2)])
    predictions, kept = report.predict_linear(valid, model)
    logits = linear.logits(valid.images, model.weights, model.bias)
    labels = linear.predicted_labels(logits, outputs)
    probabilities = linear.probabilities(logits, outputs)
    np.testing.assert_array_equal(predictions.labels, labels)
    np.testing.assert_allclose(predictions.ranking, logits[:, 0])
    images = np.arange(50)
    np.testing.assert_allclose(kept.first, probabilities[:, 0])
    np.testing.assert_allclose(kept.predicted, probabilities[images, labels])
    np.testing.assert_allclose(kept.actual, probabilities[images, valid.labels])
    baseline = report.predict_baseline(probabilities.astype(np.float32))
    expected = probabilities.astype(np.float32).argmin(1)
    np.testing.assert_array_equal(baseline.labels, expected)


def peak(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the bytes that Python and NumPy hold at most while a function runs."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_neither_model_holds_a_number_for_each_image_and_class(tmp_path, monkeypatch):
    """Of 40,000 images and 256 classes, float32 distances would take 41 MB."""
    monkeypatch.chdir(tmp_path)
    count, classes = 40_000, [f"c{k:03}" for k in range(256)]
    valid = noise(0, count, 256, 2)
    model = linear_model("softmax", 256, 2, classes)
    assert peak(report.predict_linear, valid, model) < 0.5 * 8 * count * 256
    means, distances = np.zeros((256, 2, 2)), np.zeros((count, 256))
    arrays = {"means": means.astype("f4"), "distance": np.array("l1")}
    arrays["valid_distances"] = distances.astype("f4")
    artifacts.publish({artifacts.BASELINE: arrays})
    del arrays, distances

    def predict() -> None:
        _, _, to_means = report.load_baseline(count)
        report.predict_baseline(to_means)

    assert peak(predict) < 0.5 * 4 * count * 256


def test_render_reads_no_data_file_and_escapes_class_names(tmp_path, monkeypatch):
    classes, actual = ["<b>", "&amp;"], np.array([0, 0, 1], np.uint8)
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2) * 20
    means = np.divide(images[1:], 255, dtype=np.float32)
    weights = np.array([[-1], [0], [0.5], [1]], np.float32)
    model = Linear(weights, weights[0], classes, "sigmoid", (2, 2), DECODING)
    distances = means.reshape(2, 4)[:, :2].repeat(2, 0)[:3]
    by_linear, probabilities = report.predict_linear(Split(images, actual), model)
    predictions = {
        "baseline": report.predict_baseline(distances),
        "linear": by_linear,
    }
    measured = report.metrics.classification_metrics(
        actual, actual, classes, 1.0 - actual
    )
    epoch = {f"{s}_{m}": 0.5 for s in ("train", "valid") for m in ("loss", "accuracy")}
    moments = ("loss_before", "loss_after", "accuracy_before", "accuracy_after")
    results = Results(
        params={
            "baseline": parameters.Baseline("l1"),
            "train": parameters.Train(1, "brier", 1, "constant", 0, 0, 1, 1, 1),
        },
        digests={"data/tensors.npz": "0" * 32},
        classes=classes,
        valid=Split(images, actual),
        means=means,
        distance="l1",
        weights=weights.reshape(1, 2, 2),
        bias=weights[0],
        outputs="sigmoid",
        decoding=DECODING,
        predictions=predictions,
        distances=distances[0],
        metrics={"baseline": measured, "linear": measured},
        confusion={name: np.diag([2, 1]) for name in predictions},
        mcnemar=(0, 0, 1.0),
        copies=0,
        accuracy_without_copies={"baseline": 1.0, "linear": 1.0},
        curves=report.pair_curves(actual, predictions, probabilities.first),
        history=[{"epoch": 0, **epoch}, {"epoch": 1, **epoch}],
        sensitivity={"pixel": 3, **dict.fromkeys(moments, 0.5)},
        mistakes=[],
    )
    monkeypatch.chdir(tmp_path)
    page = render(results)
    assert page == render(results)
    assert "<title>&lt;b&gt; or &amp;amp;?</title>" in page
    assert "<b>" not in page
    assert "data/tensors.npz</th>" in page
    assert "Lower\n<code>train.learning_rate</code>" not in page
    rising = [*results.history, {"epoch": 2, **epoch, "train_loss": 0.6}]
    page = render(results._replace(history=rising))
    assert "After 1 of 1 epochs, the training loss is <strong>above" in page


@given(st.floats(0, 1), st.integers(1, 4), st.sampled_from([1, 100]))
def test_only_none_is_shown_as_0_and_only_all_as_1(share, digits, unit):
    text = format_share(share, digits, unit)
    sign, _, number = text.rpartition(" ")
    if share in (0, 1):
        assert (sign, float(number)) == ("", unit * share)
    else:
        assert 0 < float(number) < unit
        error = float(number) - unit * share
        assert abs(error) <= 0.51 * 10**-digits
        assert {"": True, "<": error > 0, ">": error < 0}[sign]


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0.984789, 1, "98.5"),
        (5999 / 6000, 1, "99.98"),
        (1 - 1e-9, 1, "> 99.9999"),
        (1, 1, "100.0"),
        (1 / 6000, 2, "0.02"),
        (1e-9, 2, "< 0.00001"),
        (0, 2, "0.00"),
    ],
)
def test_percentages_are_shown_with_more_digits_where_they_would_read_as_all_or_none(
    share, digits, text
):
    assert format_share(share, digits, 100) == text


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return what runs baseline, train and report on two splits: the page."""
    monkeypatch.chdir(tmp_path)

    def run(
        train_split: Split, valid: Split, classes: list[str], **changes: Any
    ) -> str:
        copies = preprocess.find_copies(valid.images, train_split.images)
        tensors = {
            "train_images": train_split.images,
            "train_labels": train_split.labels,
            "valid_images": valid.images,
            "valid_labels": valid.labels,
            "valid_in_train": copies.astype(np.uint8),
            "classes": np.array(classes),
            "decoding": tensors.format_decoding(DECODING),
        }
        artifacts.publish({artifacts.TENSORS: tensors})
        shutil.copy(ROOT / "requirements.txt", tmp_path)
        params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
        params["data"]["classes"] = classes
        params["train"] |= {"batch_size": 2, "epochs": 3, "l2": 0.0, **changes}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
        for stage in (baseline, train, report):
            stage.main()
        return Path(artifacts.REPORT).read_text("utf-8")

    return run


def noise(seed: int, count: int, classes: int, side: int) -> Split:
    """Draw images of black and white pixels, and their labels in turns."""
    random = np.random.default_rng(seed)
    images = random.integers(2, size=(count, side, side), dtype=np.uint8) * np.uint8(
        255
    )
    return Split(images, (np.arange(count) % classes).astype(np.uint8))


def pictured_matrix(page: str, model: str) -> np.ndarray:
    """Return the opacity of the picture of a confusion matrix; of mistakes, below 0."""
    found = re.search(
        rf'"data:image/png;base64,([^"]*)" alt="Confusion matrix: {model},', page
    )
    assert found
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as image:
        red, _, blue, alpha = np.moveaxis(np.asarray(image.convert("RGBA"), int), 2, 0)
    return np.where(red > blue, -alpha, alpha)


def shown_matrix(page: str, model: str) -> np.ndarray:
    """Return the confusion matrix that a page shows for a model."""
    _, _, rest = page.partition(f'aria-label="Confusion matrix: {model}"')
    table, _, _ = rest.partition("</table>")
    rows = [re.findall(r"<td[^>]*>(\d+)<", row) for row in table.split("<tr>")[2:]]
    return np.array(rows, int)


@pytest.mark.parametrize("seed", range(4))
def test_where_distances_tie_the_page_agrees_with_the_baselines_own_metrics(
    build, seed
):
    """The mean of three black and white images has four levels, so distances tie."""
    valid = noise(seed + 100, 200, 4, 8)
    page = build(noise(seed, 12, 4, 8), valid, ["a", "b", "c", "d"])
    measured = artifacts.load_json(artifacts.BASELINE_METRICS)
    with np.load(artifacts.BASELINE) as file:
        to_means = file["valid_distances"]
    matrix = shown_matrix(page, "Baseline")
    assert matrix.sum() == 200
    assert np.diag(matrix).sum() / 200 == measured["accuracy"]
    recall = np.diag(matrix) / matrix.sum(1)
    np.testing.assert_allclose(recall, list(measured["recall"].values()), atol=1e-6)
    predicted = to_means.argmin(1)
    expected = metrics.confusion_matrix(valid.labels, predicted, 4)
    np.testing.assert_array_equal(matrix, expected)

    with open(artifacts.PREDICTIONS, encoding="utf-8") as rows:
        right = np.array([r["actual"] == r["predicted"] for r in csv.DictReader(rows)])
    baseline_right = predicted == valid.labels
    only_one, linear_only = (right != baseline_right).sum(), right & ~baseline_right
    found = re.search(r"of the (\d+) images that only one .*?gets (\d+)", page, re.S)
    assert found
    assert [int(n) for n in found.groups()] == [only_one, linear_only.sum()]


def test_distances_of_a_pair_that_tie_rank_as_the_baselines_own_do(build):
    """The area under the page's ROC curve is the AUC of baseline.json."""
    valid = noise(1, 100, 2, 4)
    build(noise(0, 6, 2, 4), valid, ["a", "b"])
    with np.load(artifacts.BASELINE) as file:
        ranking = report.predict_baseline(file["valid_distances"]).ranking
    false, true = metrics.roc(ranking, valid.labels == 0)
    area = ((false[1:] - false[:-1]) * (true[1:] + true[:-1]) / 2).sum()
    auc = artifacts.load_json(artifacts.BASELINE_METRICS)["auc"]
    assert area == pytest.approx(auc, abs=1e-6)


class Row(dict):
    """A row of predictions.csv; the class counts how many there are at a time."""

    alive = most = made = 0

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        Row.made += 1
        Row.alive += 1
        Row.most = max(Row.most, Row.alive)

    def __del__(self) -> None:
        Row.alive -= 1


@pytest.fixture
def rows_alive() -> Iterator[type[Row]]:
    Row.alive = Row.most = Row.made = 0
    yield Row
    assert Row.alive == 0


def test_rows_are_written_one_by_one_with_the_bytes_of_a_list(
    tmp_path, monkeypatch, rows_alive
):
    monkeypatch.chdir(tmp_path)
    rows = [{"name": f"n, {i}", "score": np.float64(i / 7)} for i in range(5000)]
    artifacts.publish({"metrics/list.csv": rows})
    artifacts.publish({"metrics/iterator.csv": (rows_alive(row) for row in rows)})
    written = Path("metrics/iterator.csv").read_bytes()
    assert written == Path("metrics/list.csv").read_bytes()
    assert written.splitlines()[:3] == [
        b"name,score",
        b'"n, 0",0.0',
        b'"n, 1",0.142857',
    ]
    assert len(written.splitlines()) == 5001
    assert rows_alive.made == 5000
    assert rows_alive.most < 5


def test_an_iterator_of_rows_that_fails_midway_leaves_the_file_as_it_was(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    artifacts.publish({"metrics/a.csv": [{"x": 1}]})

    def rows() -> Iterator[dict[str, Any]]:
        yield from [{"x": 2}] * 100_000
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        artifacts.publish({"metrics/a.csv": rows()})
    assert Path("metrics/a.csv").read_text() == "x\n1\n"
    assert [path.name for path in Path("metrics").iterdir()] == ["a.csv"]


def test_only_the_rows_of_the_shown_mistakes_are_kept(build, monkeypatch, rows_alive):
    made = report.prediction_rows
    monkeypatch.setattr(
        report, "prediction_rows", lambda *columns: map(rows_alive, made(*columns))
    )
    page = build(noise(0, 12, 2, 4), noise(1, 3000, 2, 4), ["a", "b"])
    assert len(re.findall('<tr id="row-', page)) == 24
    assert rows_alive.made == 3000 + 24
    assert rows_alive.most < 24 + 5
    with open(artifacts.PREDICTIONS, encoding="utf-8") as rows:
        assert [int(r["index"]) for r in csv.DictReader(rows)] == list(range(3000))


def test_a_validation_image_more_takes_few_bytes_of_memory(build):
    """A row as a Python object alone would take over 300."""
    peaks = []
    for count in (6000, 26_000):  # from 4096 images on, blocks are whole
        build(noise(0, 12, 2, 5), noise(1, count, 2, 5), ["a", "b"], epochs=1)
        peaks.append(peak(report.main))
    assert (peaks[1] - peaks[0]) / 20_000 < 250


@st.composite
def curves(draw):
    """Draw a line from (0, 0) to (1, 1) that never falls, as a ROC curve."""
    steps = st.lists(st.sampled_from([0, 0, 1, 2, 900]), min_size=31, max_size=80)
    x = np.cumsum([0, *draw(steps)])
    y = np.cumsum([0, *(draw(st.sampled_from([0, 0, 1, 2, 900])) for _ in x[1:])])
    return x / max(x[-1], 1), y / max(y[-1], 1)


@given(curves())
def test_a_curve_drawn_by_its_corners_passes_through_every_point(curve):
    """And has no corner within a straight run."""
    [line] = charts.chart("", ("", ""), {"a": curve}, charts.DIAGONAL).lines.values()
    corners = [(float(x), float(y)) for x, y in line]
    pieces = list(itertools.pairwise(corners))
    for x, y in zip(*curve, strict=True):
        point = float(f"{300 * x:.1f}"), float(f"{200 * (1 - y):.1f}")
        assert any(
            point in (a, b)
            or (a[0] == point[0] == b[0] and b[1] <= point[1] <= a[1])
            or (a[1] == point[1] == b[1] and a[0] <= point[0] <= b[0])
            for a, b in pieces
        )
    for a, b, c in zip(corners, corners[1:], corners[2:], strict=False):
        assert not a[0] == b[0] == c[0]
        assert not a[1] == b[1] == c[1]


def separable(count: int) -> Split:
    """Make black images of the first class and white ones of the second."""
    labels = (np.arange(count) % 2).astype(np.uint8)
    random = np.random.default_rng(count)
    images = random.integers(0, 60, (count, 3, 3), np.uint8)
    return Split(images + 190 * labels[:, None, None], labels)


def test_one_mistake_in_6000_is_not_shown_as_100_percent(build):
    valid = separable(6000)
    valid.labels[0] = 1
    page = build(separable(8), valid, ["black", "white"], epochs=50)
    matrix = [[2999, 0], [1, 3000]]
    np.testing.assert_array_equal(shown_matrix(page, "Baseline"), matrix)
    np.testing.assert_array_equal(shown_matrix(page, "Linear model"), matrix)
    result = re.search('<section id="result">.*?</section>', page, re.DOTALL)
    assert result
    assert not re.search(r"\b100(\.0+)? %", result[0])
    assert result[0].count(">99.98 %<") == 6  # in the text, and in two columns
    assert "1.000 → 1.000" in page  # precision of white, recall of black
    assert "0.9997 → 0.9997" in page  # recall of white


def test_a_model_without_a_mistake_has_100_percent(build):
    page = build(separable(8), separable(60), ["black", "white"], epochs=50)
    assert page.count("<strong>100.0 %</strong>") == 2


def test_without_copies_in_the_validation_images_the_page_says_nothing_of_them(build):
    assert "training images, too" not in build(
        noise(0, 12, 2, 4), noise(1, 30, 2, 4), ["a", "b"]
    )


def test_the_page_says_how_many_validation_images_are_training_images_too(build):
    """And how the models do on the others."""
    own, other = noise(0, 12, 3, 6), noise(1, 30, 3, 6)
    images = np.concatenate([own.images[:9], other.images])
    valid = Split(images, np.concatenate([own.labels[:9], other.labels]))
    page = " ".join(build(own, valid, ["a", "b", "c"]).split())
    assert "9 of the 39 validation images are <strong>among the training images" in page
    with np.load(artifacts.BASELINE) as file:
        by_baseline = (file["valid_distances"].argmin(1) == valid.labels)[9:].mean()
    with open(artifacts.PREDICTIONS, encoding="utf-8") as rows:
        right = [row["actual"] == row["predicted"] for row in csv.DictReader(rows)]
    assert (
        f"Of the other 30, the linear model classifies <strong>"
        f"{100 * np.mean(right[9:]):.1f} %</strong> correctly, the baseline <strong>"
        f"{100 * by_baseline:.1f} %</strong>."
    ) in page


def test_where_all_validation_images_are_training_images_the_page_says_so(build):
    split = noise(0, 12, 2, 4)
    page = " ".join(build(split, split, ["a", "b"]).split())
    assert "All the 12 validation images are <strong>among the training" in page
    assert "How the models do on new images cannot be said." in page
    assert "Of the other" not in page


NAMES = ["七", "семь", "Füße", "it's 3"]


def test_names_that_the_font_lacks_are_shown_by_their_number_in_pictures_only(build):
    """And without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = build(noise(0, 12, 4, 4), noise(1, 30, 4, 4), NAMES)
    for name in NAMES:
        assert name.replace("'", "&#39;") in page
    with np.load(artifacts.BASELINE) as file:
        means = pictures.grayscale(file["means"])
    names = ["class 0", "class 1", "class 2", "it's 3"]
    expected = pictures.gallery(means, [f"mean: {name}" for name in names], columns=5)
    assert Path("metrics/means.png").read_bytes() == expected


def test_a_model_of_other_classes_is_refused(build):
    build(noise(0, 12, 2, 4), noise(1, 30, 2, 4), ["a", "b"])
    model = Linear.load(artifacts.MODEL)._replace(classes=["b", "a"])
    artifacts.publish({artifacts.MODEL: model.to_arrays()})
    with pytest.raises(UserError, match="other images: run dvc repro"):
        report.main()
    artifacts.publish({artifacts.BASELINE: {"means": np.zeros((2, 4, 4), np.float32)}})
    with pytest.raises(UserError, match=r"models/baseline\.npz is damaged"):
        report.main()


def test_256_classes_are_reported_right(build):
    """Class k has its k-th pixel white: both models get every image right."""
    labels = np.repeat(np.arange(256), 2).astype(np.uint8)
    images = np.uint8(255) * np.eye(256, dtype=np.uint8)[labels].reshape(-1, 16, 16)
    split = Split(images, labels)
    page = build(split, split, [f"c{k:03}" for k in range(256)], epochs=20)
    for model in ("Baseline", "Linear model"):
        np.testing.assert_array_equal(
            pictured_matrix(page, model), 254 * np.eye(256, dtype=int)
        )
        assert f"{model}: no confusions." in page
    with np.load(artifacts.BASELINE) as file:
        expected = np.eye(256).reshape(-1, 16, 16)
        np.testing.assert_array_equal(file["means"], expected)


def test_of_many_classes_the_worst_and_the_most_frequent_confusions_come_first(build):
    names = [f"{k}th class" for k in range(30)]
    page = build(noise(0, 90, 30, 4), noise(1, 300, 30, 4), names)
    with open(artifacts.PREDICTIONS, encoding="utf-8") as file:
        pairs = [(row["actual"], row["predicted"]) for row in csv.DictReader(file)]
    actual, predicted = zip(*pairs, strict=True)
    f1 = f1_score(actual, predicted, labels=names, average=None, zero_division=0)
    shown, _, folded = page.partition("<summary>Precision, recall and F1 of all 30")
    rows = re.findall(r'<th scope="row"><bdi title="(\d+th class)', shown)
    assert rows[-10:] == [names[k] for k in np.argsort(f1, kind="stable")[:10]]
    assert [name in folded.partition("</details>")[0] for name in names] == [True] * 30

    matrix = confusion_matrix(actual, predicted, labels=names)
    signs = np.sign(pictured_matrix(page, "Linear model"))
    np.testing.assert_array_equal(signs, np.sign(matrix * (2 * np.eye(30) - 1)))
    wrong = matrix - np.diag(np.diag(matrix))
    _, _, table = shown.partition('aria-label="Most frequent confusions: Linear model"')
    counts = re.findall(r"<td>(\d+) of 10</td>", table)
    assert [*map(int, counts)] == sorted(wrong.ravel(), reverse=True)[:10]


def test_a_page_of_large_images_and_many_classes_shows_them_smaller(build):
    """And its models, whose float32 numbers alone would take 27 MB, are left out."""
    labels = np.arange(256, dtype=np.uint8)
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (256, 96, 140), np.uint8), labels)
    names = [f"c{k:03}" for k in labels]
    page = build(split, split, names, epochs=1, batch_size=256, learning_rate=1e-4)
    for kind in ("mean image", "weights"):
        sizes = []
        for uri in re.findall(rf'base64,([^"]*)" alt="{kind}: c', page)[:256]:
            with Image.open(io.BytesIO(base64.b64decode(uri))) as image:
                sizes.append(image.size)
        assert len(sizes) == 256
        ((width, height),) = set(sizes)
        assert width / height == pytest.approx(140 / 96, rel=0.02)
        assert 0.9 * MAX_PIXELS < 256 * width * height < 1.02 * MAX_PIXELS
    assert len(page) < 6_000_000
    assert "data-try" not in page
    assert "python -m tools.predict IMAGE" in page
