"""What the report shows agrees with what the models' own stages computed."""

import base64
import csv
import functools
import hashlib
import io
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

from stages import baseline, model, preprocess, report, train
from stages.evaluation import metrics, outputs
from stages.evaluation.model_file import TrainedModel
from stages.page import pictures
from stages.page.render import MAX_PIXELS
from stages.plumbing import artifacts
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import Split, digest_image, format_decoding
from tests.conftest import ROOT
from tests.page.builder import PLAIN, build_results, random_params

ACTUAL, PREDICTED = np.array([0, 1, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 0, 1])
SCORES = np.array([0.99, 0.6, 0.9, 0.8, 0.7, 0.8])
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
    """And has a digest of its shape and pixels."""
    images = np.array([[[1, 2]], [[1, 2]]], np.uint8)
    valid = Split(images, np.array([0, 1], np.uint8))
    p = report.Probabilities(np.array([0.75, 1 / 3]), np.array([1e-9, 1 / 3]))
    rows = report.prediction_rows(valid, np.array([1, 1]), p, ["drei", "sieben"])
    digest = hashlib.blake2b(b"(1, 2)\x01\x02", digest_size=16).hexdigest()
    assert [[*row.values()] for row in rows] == [
        [0, digest, "drei", "sieben", "0.75", "1e-09"],
        [1, digest, "sieben", "sieben", "0.333333", "0.333333"],
    ]
    assert digest_image(images[0].T) != digest


@pytest.mark.parametrize(
    ("meaning", "count"),
    [("sigmoid", 2), ("target", 2), ("softmax", 3), ("one_versus_rest", 3)],
)
@pytest.mark.parametrize("block", [1, 7, 50, 4096])
def test_predictions_in_blocks_are_those_of_all_images(
    monkeypatch, meaning, count, block
):
    """The probabilities of the predicted and of the actual class are kept."""
    monkeypatch.setattr(report, "BLOCK", block)
    valid = noise(2, 50, count, 4)
    trained = trained_model(meaning, count, 4)
    predictions, p = report.predict_trained(valid, trained)
    logits = trained.logits(valid.images)
    labels = outputs.predicted_labels(logits, meaning)
    probabilities = outputs.probabilities(logits, meaning)
    np.testing.assert_array_equal(predictions.labels, labels)
    np.testing.assert_allclose(predictions.ranking, logits[:, 0])
    images = np.arange(50)
    np.testing.assert_allclose(p.p_predicted, probabilities[images, labels])
    np.testing.assert_allclose(p.p_actual, probabilities[images, valid.labels])
    distances = probabilities.astype(np.float32)
    by_baseline = report.predict_baseline(distances)
    np.testing.assert_array_equal(by_baseline.labels, distances.argmin(1))


def trained_model(meaning: str, count: int, side: int) -> TrainedModel:
    """Draw a linear model of `count` classes."""
    classes = [f"c{k:03}" for k in range(count)]
    params = random_params(classes, (side, side))
    return TrainedModel(params, classes, meaning, (side, side), PLAIN)


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
    count, valid = 40_000, noise(0, 40_000, 256, 2)
    trained = trained_model("softmax", 256, 2)
    assert peak(report.predict_trained, valid, trained) < 0.5 * 8 * count * 256
    means, distances = np.zeros((256, 2, 2)), np.zeros((count, 256))
    arrays = {"means": means.astype("f4"), "distance": np.array("l1")}
    arrays["valid_distances"] = distances.astype("f4")
    artifacts.publish({artifacts.BASELINE: arrays})
    del arrays, distances

    def predict() -> None:
        _, _, to_means = report.load_baseline(count)
        report.predict_baseline(to_means)

    assert peak(predict) < 0.5 * 4 * count * 256


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
            "decoding": format_decoding(PLAIN),
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
    only_one, model_only = (right != baseline_right).sum(), right & ~baseline_right
    words = " ".join(page.split())
    found = re.search(r"of the (\d+) images that only one .*?gets (\d+)", words)
    assert found
    assert [int(n) for n in found.groups()] == [only_one, model_only.sum()]


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


def test_rows_of_predictions_are_made_one_by_one(build, monkeypatch, rows_alive):
    made = report.prediction_rows
    monkeypatch.setattr(
        report, "prediction_rows", lambda *columns: map(rows_alive, made(*columns))
    )
    page = build(noise(0, 12, 2, 4), noise(1, 3000, 2, 4), ["a", "b"])
    assert len(re.findall('id="picture-', page)) == 24
    assert rows_alive.made == 3000
    assert rows_alive.most < 5
    with open(artifacts.PREDICTIONS, encoding="utf-8") as rows:
        assert [int(r["index"]) for r in csv.DictReader(rows)] == list(range(3000))


def test_a_validation_image_more_takes_few_bytes_of_memory(build):
    """A row as a Python object alone would take over 300."""
    peaks = []
    for count in (6000, 26_000):  # from 4096 images on, blocks are whole
        build(noise(0, 12, 2, 5), noise(1, count, 2, 5), ["a", "b"], epochs=1)
        peaks.append(peak(report.main))
    assert (peaks[1] - peaks[0]) / 20_000 < 250


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
    np.testing.assert_array_equal(shown_matrix(page, "Trained model"), matrix)
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
        f"Of the other 30, the trained model classifies <strong>"
        f"{100 * np.mean(right[9:]):.1f} %</strong> correctly, the baseline <strong>"
        f"{100 * by_baseline:.1f} %</strong>."
    ) in page


def test_where_all_validation_images_are_training_images_the_page_says_so(build):
    split = noise(0, 12, 2, 4)
    page = " ".join(build(split, split, ["a", "b"]).split())
    assert "All the 12 validation images are <strong>among the training" in page
    assert "They can’t tell how the models do on new images." in page
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
    trained = TrainedModel.load(artifacts.MODEL)._replace(classes=["b", "a"])
    artifacts.publish({artifacts.MODEL: trained.to_arrays()})
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
    for title in ("Baseline", "Trained model"):
        np.testing.assert_array_equal(
            pictured_matrix(page, title), 254 * np.eye(256, dtype=int)
        )
        assert f"{title}: no confusions." in page
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
    rows = re.findall(r'<th scope="row"><bdi title="(\d+th class)', page)
    assert rows[-30:] == [names[k] for k in np.argsort(f1, kind="stable")]

    matrix = confusion_matrix(actual, predicted, labels=names)
    signs = np.sign(pictured_matrix(page, "Trained model"))
    np.testing.assert_array_equal(signs, np.sign(matrix * (2 * np.eye(30) - 1)))
    wrong = matrix - np.diag(np.diag(matrix))
    _, _, table = page.partition('aria-label="Most frequent confusions: Trained model"')
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
    assert "<script" not in page
    assert "python -m tools.predict IMAGE" in page


def test_the_picture_of_the_weights_is_written_for_every_model(monkeypatch):
    """Of hidden units, or saying that there are no weights per pixel."""
    drawn: list[str] = []
    gallery = pictures.gallery

    def record(images: Any, captions: list[str], columns: int) -> bytes:
        drawn.extend(captions)
        return gallery(images, captions, columns)

    monkeypatch.setattr(pictures, "gallery", record)
    head = np.ones((9, 1), np.float32)
    nets = {
        "weights: unit 1": ({"hidden": np.ones((81, 9), np.float32), "head": head}, 81),
        "no weights per pixel": ({"head": head}, 9),
        "weights: a red, b blue": (None, 81),
    }
    for caption, (params, block) in nets.items():
        monkeypatch.setattr(model, "forward", functools.partial(chained, block))
        files = report.galleries(build_results(params=params))
        assert caption in drawn
        drawn.clear()
        with Image.open(io.BytesIO(files["metrics/weights.png"])) as sheet:
            assert sheet.width >= pictures.SIDE


def chained(block: int, params: dict[str, Any], images: Any) -> Any:
    """Multiply the means of blocks of pixels by all matrices."""
    values = images.reshape(len(images), block, -1).mean(2)
    for array in params.values():
        values = values @ array if array.ndim > 1 else values + array
    return values
