"""The rows of metrics/predictions.csv, and the mistakes that the report shows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import report
from stages.page.render import Results, render
from stages.plumbing import parameters
from stages.plumbing.artifacts import Split

ACTUAL, PREDICTED = np.array([0, 1, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 0, 1])
SCORES = np.array([0.99, 0.6, 0.9, 0.8, 0.7, 0.8])


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
    rows = report.prediction_rows(
        np.array([0, 1]), np.array([1, 1]), np.array([0.75, 0.5]), ["drei", "sieben"]
    )
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


def test_render_reads_no_data_file_and_escapes_class_names(tmp_path, monkeypatch):
    classes, actual = ["<b>", "&amp;"], np.array([0, 0, 1], np.uint8)
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2) * 20
    means = np.divide(images[1:], 255, dtype=np.float32)
    weights = np.array([[-1], [0], [0.5], [1]], np.float32)
    predictions = {
        "baseline": report.predict_baseline(images, means, "l1"),
        "linear": report.predict_linear(images, weights, weights[0], "brier"),
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
        weights=weights.reshape(1, 2, 2),
        bias=weights[0],
        predictions=predictions,
        metrics={"baseline": measured, "linear": measured},
        confusion={name: np.diag([2, 1]) for name in predictions},
        mcnemar=(0, 0, 1.0),
        curves=report.pair_curves(actual, predictions),
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
