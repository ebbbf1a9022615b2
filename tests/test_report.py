"""What the report shows agrees with what the models' own stages computed."""

import base64
import csv
import hashlib
import io
import re
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import auc, confusion_matrix, f1_score

from stages import baseline, preprocess, report, train
from stages.evaluation import metrics, outputs
from stages.evaluation.model_file import TrainedModel
from stages.page import pictures
from stages.page import render as rendering
from stages.page.render import render
from stages.plumbing import artifacts
from stages.plumbing.tensors import Split, digest_image, format_decoding
from tests.builders import refusal, tensor_arrays
from tests.conftest import ROOT
from tests.page.builder import PLAIN, build_results, random_params

Build = Callable[..., str]


label = st.integers(0, 2)
p_predicted = st.sampled_from([0.5, 0.9]) | st.floats(0, 1)


@given(st.lists(st.tuples(label, label, p_predicted), min_size=1), st.integers(0, 9))
def test_mistakes_come_most_confident_first_and_ties_by_index(rows, count):
    wrong = [i for i, (actual, predicted, _) in enumerate(rows) if actual != predicted]
    wrong.sort(key=lambda i: (-rows[i][2], i))
    actual, predicted, p = (np.array(column) for column in zip(*rows, strict=True))
    found = report.most_confident_mistakes(actual, predicted, p, count)
    assert found.tolist() == wrong[:count]


def test_a_row_for_each_validation_image_names_its_classes():
    """And has a digest of its shape and pixels."""
    images = np.array([[[1, 2]], [[1, 2]]], np.uint8)
    valid = Split(images, np.array([0, 1], np.uint8))
    p = report.Probabilities(np.array([0.75, 1 / 3]), np.array([1e-9, 1 / 3]))
    names, classes = ["v/1.png", "v/2.png"], ["drei", "sieben"]
    rows = report.prediction_rows(valid, names, np.array([1, 1]), p, classes)
    digest = hashlib.blake2b(b"(1, 2)\x01\x02", digest_size=16).hexdigest()
    assert [[*row.values()] for row in rows] == [
        [0, "v/1.png", digest, "drei", "sieben", "0.75", "1e-09"],
        [1, "v/2.png", digest, "sieben", "sieben", "0.333333", "0.333333"],
    ]
    assert digest_image(images[0].T) != digest


@pytest.mark.parametrize(
    ("meaning", "count"),
    [("sigmoid", 2), ("target", 2), ("softmax", 3), ("one_versus_rest", 3)],
)
@pytest.mark.parametrize("block", [1, 7, 50])
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
    mean = np.full((side, side, 1), 0.5, np.float32)
    params = random_params(classes, mean.shape)
    return TrainedModel(params, mean, classes, meaning, PLAIN)


def peak(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the bytes that Python and NumPy hold at most while a function runs."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("in_tmp_path")
def test_neither_model_holds_a_number_for_each_image_and_class():
    """Of 40,000 images and 256 classes, float32 distances would take 41 MB."""
    count, valid = 40_000, noise(0, 40_000, 256, 2)
    trained = trained_model("softmax", 256, 2)
    assert peak(report.predict_trained, valid, trained) < 0.5 * 8 * count * 256
    arrays = {
        "means": np.zeros((256, 2, 2, 1), np.float32),
        "distance": np.array("l1"),
        "valid_distances": np.zeros((count, 256), np.float32),
    }
    artifacts.publish({artifacts.BASELINE: arrays})
    del arrays

    def predict() -> None:
        *_, to_means = report.load_baseline(count)
        report.predict_baseline(to_means)

    assert peak(predict) < 0.5 * 4 * count * 256


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return what runs baseline, train and report on two splits: the page."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)

    def run(own: Split, valid: Split, classes: list[str], **changes: Any) -> str:
        copies = preprocess.find_copies(valid.images, own.images)
        arrays = tensor_arrays(
            train_images=own.images,
            train_labels=own.labels,
            valid_images=valid.images,
            valid_labels=valid.labels,
            valid_in_train=copies.astype(np.uint8),
            valid_names=np.frombuffer(b"1.png\n" * len(copies), np.uint8),
            classes=np.array(classes),
            decoding=format_decoding(PLAIN),
        )
        artifacts.publish({artifacts.TENSORS: arrays})
        params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
        params["data"]["classes"] = classes
        params["train"] |= {"batch_size": 2, "epochs": 3, "l2": 0.0, **changes}
        Path("params.yaml").write_text(yaml.safe_dump(params), "utf-8")
        for stage in (baseline, train, report):
            stage.main()
        return Path(artifacts.REPORT).read_text("utf-8")

    return run


def noise(seed: int, count: int, classes: int, side: int) -> Split:
    """Draw images of black and white pixels, and their labels in turns."""
    random = np.random.default_rng(seed)
    images = random.choice(np.array([0, 255], np.uint8), (count, side, side, 1))
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


def predicted_labels(classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels by the baseline's distances, and those of predictions.csv."""
    with np.load(artifacts.BASELINE) as file:
        by_baseline = file["valid_distances"].argmin(1)
    with open(artifacts.PREDICTIONS, encoding="utf-8") as rows:
        names = [row["predicted"] for row in csv.DictReader(rows)]
    return by_baseline, np.array([classes.index(name) for name in names])


@pytest.mark.parametrize("seed", range(4))
def test_where_distances_tie_the_page_agrees_with_the_baselines_own_metrics(
    build, seed
):
    """The mean of three black and white images has four levels, so distances tie."""
    valid = noise(seed + 100, 200, 4, 8)
    classes = ["a", "b", "c", "d"]
    page = build(noise(seed, 12, 4, 8), valid, classes)
    predicted = predicted_labels(classes)
    by_baseline, by_model = (labels == valid.labels for labels in predicted)
    for right in (by_baseline, by_model):
        assert f"<td>{100 * right.mean():.2f} %" in page
    matrix = shown_matrix(page, "Baseline")
    np.testing.assert_array_equal(matrix, confusion_matrix(valid.labels, predicted[0]))
    measured = artifacts.load_json(artifacts.BASELINE_METRICS)
    assert by_baseline.mean() == measured["accuracy"]
    recall = np.diag(matrix) / matrix.sum(1)
    np.testing.assert_allclose(recall, list(measured["recall"].values()), atol=1e-6)

    only_one, model_only = (by_model != by_baseline).sum(), by_model & ~by_baseline
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
    measured = artifacts.load_json(artifacts.BASELINE_METRICS)["auc"]
    assert auc(false, true) == pytest.approx(measured, abs=1e-6)


def test_a_validation_image_more_takes_few_bytes_of_memory(build):
    """A row as a Python object alone would take over 300."""
    peaks = []
    for count in (5000, 15_000):  # from 4096 images on, blocks are whole
        build(noise(0, 12, 2, 5), noise(1, count, 2, 5), ["a", "b"], epochs=1)
        peaks.append(peak(report.main))
    assert (peaks[1] - peaks[0]) / 10_000 < 250


def separable(count: int) -> Split:
    """Make black images of the first class and white ones of the second."""
    labels = (np.arange(count) % 2).astype(np.uint8)
    random = np.random.default_rng(count)
    images = random.integers(0, 60, (count, 3, 3, 1), np.uint8)
    return Split(images + 190 * labels.reshape(-1, 1, 1, 1), labels)


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
    assert "1.000 →&nbsp;1.000" in page  # precision of white, recall of black
    assert "0.9997 →&nbsp;0.9997" in page  # recall of white


def test_the_page_says_how_many_validation_images_are_training_images_too(build):
    """And how the models do on the others."""
    own, other = noise(0, 12, 3, 6), noise(1, 30, 3, 6)
    images = np.concatenate([own.images[:9], other.images])
    valid = Split(images, np.concatenate([own.labels[:9], other.labels]))
    classes = ["a", "b", "c"]
    page = " ".join(build(own, valid, classes).split())
    assert "9 of the 39 validation images are <strong>among the training images" in page
    right = (labels == valid.labels for labels in predicted_labels(classes))
    by_baseline, by_model = (100 * correct[9:].mean() for correct in right)
    assert (
        f"Of the other 30, the trained model classifies <strong>{by_model:.1f} %"
        f"</strong> correctly, the baseline <strong>{by_baseline:.1f} %</strong>."
    ) in page


def test_where_all_or_no_validation_images_are_training_images_the_page_says_so():
    results = build_results()
    assert "training images, too" not in render(results)
    copies = np.ones(len(results.valid.images), bool)
    page = " ".join(render(results._replace(valid_in_train=copies)).split())
    assert "All the 60 validation images are <strong>among the training" in page
    assert "They say nothing about how the models do on new images." in page
    assert "Of the other" not in page


NAMES = ["七", "семь", "Füße", "it's 3"]


def test_names_that_the_font_lacks_are_shown_by_their_number_in_pictures_only():
    """And without a warning."""
    results = build_results(NAMES, outputs="softmax")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page, files = render(results), report.galleries(results)
    assert all(name.replace("'", "&#39;") in page for name in NAMES)
    captions = [f"mean: {name}" for name in ("class 0", "class 1", "class 2", "it's 3")]
    expected = pictures.gallery(pictures.to_images(results.means), captions)
    assert files["metrics/means.png"] == expected


def test_every_mistake_is_shown_with_the_name_of_its_file():
    """Its end in a picture, with question marks for what the font cannot draw."""
    names = [f"<valid>/{'long' * 9}/猫 {i}.png" for i in range(60)]
    results = build_results(mistakes=3, names=names)
    page = render(results)
    assert f'title="&lt;valid&gt;/{"long" * 9}/猫 0.png">…/猫 0.png<' in page
    with patch.object(pictures, "gallery", wraps=pictures.gallery) as gallery:
        report.galleries(results)
    captions = gallery.call_args_list[-1].args[1]
    for i, caption in zip(results.mistakes, captions, strict=True):
        _, _, rest = page.partition(f'<figure id="picture-{i}">')
        caption_on_page, _, _ = rest.partition("</figcaption>")
        assert f'/猫 {i}.png">…/猫 {i}.png<' in caption_on_page
        assert caption.endswith(f"\n…/? {i}.png")


def test_a_model_of_other_classes_is_refused(build):
    build(noise(0, 12, 2, 4), noise(1, 30, 2, 4), ["a", "b"])
    trained = TrainedModel.load(artifacts.MODEL)._replace(classes=["b", "a"])
    artifacts.publish({artifacts.MODEL: trained.to_arrays()})
    assert "other images: run dvc repro" in refusal(report.main)
    artifacts.publish(
        {artifacts.BASELINE: {"means": np.zeros((2, 4, 4, 1), np.float32)}}
    )
    assert "models/baseline.npz is damaged" in refusal(report.main)


def test_256_classes_are_reported_right(build):
    """Class k has its k-th pixel white: both models get every image right."""
    labels = np.repeat(np.arange(256), 2).astype(np.uint8)
    images = np.uint8(255) * np.eye(256, dtype=np.uint8)[labels].reshape(-1, 16, 16, 1)
    split = Split(images, labels)
    page = build(split, split, [f"c{k:03}" for k in range(256)], epochs=20)
    for title in ("Baseline", "Trained model"):
        assert (pictured_matrix(page, title) == 254 * np.eye(256)).all()
        assert f"{title}: no confusions." in page
    assert page.count("<strong>100.0 %</strong>") == 2


def test_of_many_classes_the_worst_and_the_most_frequent_confusions_come_first(build):
    names = [f"{k}th class" for k in range(30)]
    page = build(noise(0, 90, 30, 4), noise(1, 300, 30, 4), names)
    with open(artifacts.PREDICTIONS, encoding="utf-8") as file:
        pairs = [(row["actual"], row["predicted"]) for row in csv.DictReader(file)]
    actual, predicted = zip(*pairs, strict=True)
    f1 = f1_score(actual, predicted, labels=names, average=None, zero_division=0)
    assert len(re.findall('id="picture-', page)) == 24  # report.mistakes
    rows = re.findall(r'<th scope="row"><bdi title="(\d+th class)', page)
    assert rows[-30:] == [names[k] for k in np.argsort(f1, kind="stable")]

    matrix = confusion_matrix(actual, predicted, labels=names)
    signs = np.sign(pictured_matrix(page, "Trained model"))
    np.testing.assert_array_equal(signs, np.sign(matrix * (2 * np.eye(30) - 1)))
    wrong = matrix - np.diag(np.diag(matrix))
    _, _, table = page.partition('aria-label="Most frequent confusions: Trained model"')
    counts = re.findall(r"<td>(\d+) of 10</td>", table)
    assert [*map(int, counts)] == sorted(wrong.ravel(), reverse=True)[:10]


def test_a_page_of_large_images_and_many_classes_shows_them_smaller(monkeypatch):
    """And its models, whose float32 numbers alone would take 27 MB, are left out."""
    monkeypatch.setattr(rendering, "MAX_PIXELS", budget := 400_000)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (256, 96, 140, 1), np.uint8)
    names = [f"c{k:03}" for k in range(256)]
    page = render(build_results(names, (96, 140, 1), "softmax", images=images))
    for kind in ("mean image", "weights"):
        sizes = []
        for uri in re.findall(rf'base64,([^"]*)" alt="{kind}: c', page)[:256]:
            with Image.open(io.BytesIO(base64.b64decode(uri))) as image:
                sizes.append(image.size)
        assert len(sizes) == 256
        ((width, height),) = set(sizes)
        assert width / height == pytest.approx(140 / 96, rel=0.02)
        assert 0.9 * budget < 256 * width * height < 1.05 * budget
    assert len(page) < 2_200_000
    assert "data-try" not in page
    assert page.count("<script") == 1  # what tells the classes of a cell
    assert "the two models take 27,579,904 bytes" in " ".join(page.split())
    assert "python -m tools.predict IMAGE" in page
