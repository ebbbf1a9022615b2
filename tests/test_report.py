"""What the report says of single predictions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import report

ACTUAL, PREDICTED = np.array([0, 1, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 0, 1])
SCORES = np.array([0.99, 0.6, 0.9, 0.8, 0.7, 0.8])


@pytest.mark.parametrize(("count", "expected"), [(0, []), (2, [3, 5]), (3, [3, 5, 4]), (24, [3, 5, 4, 1])])
def test_mistakes_are_the_wrong_predictions_by_falling_confidence_and_ties_by_index(count, expected):
    assert report.most_confident_mistakes(ACTUAL, PREDICTED, SCORES, count).tolist() == expected


def test_without_a_mistake_there_are_none_to_show():
    assert report.most_confident_mistakes(ACTUAL, ACTUAL, SCORES, 24).size == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, 1)), min_size=1), st.integers(0, 9))
def test_no_mistake_left_out_is_more_confident_than_one_shown(rows, count):
    actual, predicted, scores = (np.array(column) for column in zip(*rows, strict=True))
    shown = report.most_confident_mistakes(actual, predicted, scores, count)
    others = set(np.flatnonzero(actual != predicted)) - set(shown)
    assert len(set(shown)) == len(shown) == min(count, (actual != predicted).sum())
    assert (actual[shown] != predicted[shown]).all()
    assert all(scores[o] <= scores[s] for o in others for s in shown)


def test_a_row_for_each_validation_image_names_its_classes():
    rows = report.prediction_rows(np.array([0, 1]), np.array([1, 1]), np.array([0.75, 0.5]), ["drei", "sieben"])
    assert rows == [
        {"split": "valid", "index": 0, "actual": "drei", "predicted": "sieben", "score": 0.75},
        {"split": "valid", "index": 1, "actual": "sieben", "predicted": "sieben", "score": 0.5},
    ]
