"""The mean images, the distances to them, and the notebook's figures for them."""

from typing import Any, Literal

import numpy as np
import pytest
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]

from stages import baseline
from stages.evaluation import metrics
from stages.plumbing.tensors import Split, Tensors

RANDOM = np.random.default_rng(2)


def measure(mnist: Tensors, distance: Literal["l1", "l2"]) -> dict[str, Any]:
    means = baseline.mean_images(mnist.train, 2)
    images, labels = mnist.valid
    predicted = baseline.distances(images, means, distance).argmin(1)
    return metrics.classification_metrics(labels, predicted, mnist.classes)


@pytest.mark.parametrize("classes", [3, 256])
def test_mean_images_equal_the_float64_means_of_the_classes(classes):
    images = RANDOM.integers(256, size=(300, 5, 2, 3), dtype=np.uint8)
    labels = np.append(np.arange(classes), RANDOM.integers(classes, size=300 - classes))
    means = baseline.mean_images(Split(images, labels.astype(np.uint8)), classes)
    expected = [images[labels == k].mean(0) / 255 for k in range(classes)]
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, expected, rtol=1e-6)


def test_mean_images_do_not_depend_on_the_order_of_the_images():
    images = RANDOM.integers(256, size=(5000, 3, 3, 1), dtype=np.uint8)
    labels = (np.arange(5000) % 2).astype(np.uint8)
    order = RANDOM.permutation(5000)
    means, reversed_means = (
        baseline.mean_images(Split(images[rows], labels[rows]), 2)
        for rows in (order, order[::-1])
    )
    np.testing.assert_array_equal(means, reversed_means)


@pytest.mark.parametrize(
    ("distance", "metric", "scale"),
    [("l1", "cityblock", 30), ("l2", "euclidean", 30**0.5)],
)
def test_distances_equal_scipy(distance, metric, scale):
    """SciPy sums over 30 numbers; here l1 is a mean, and l2 the root of one."""
    images = RANDOM.integers(256, size=(40, 5, 2, 3), dtype=np.uint8)
    means = RANDOM.random((3, 5, 2, 3), np.float32)
    distances = baseline.distances(images, means, distance)
    expected = cdist(images.reshape(40, -1) / 255, means.reshape(3, -1), metric) / scale
    assert distances.shape == (40, 3)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def test_the_archive_has_the_notebooks_counts(mnist):
    counts = [np.bincount(s.labels).tolist() for s in (mnist.train, mnist.valid)]
    assert counts == [[6131, 6265], [1010, 1028]]
    assert mnist.train.images.shape[1:] == mnist.valid.images.shape[1:] == (28, 28, 1)


def test_l1_has_the_notebooks_figures(mnist):
    result = measure(mnist, "l1")
    assert result["recall"] == pytest.approx({"3": 926 / 1010, "7": 1013 / 1028})
    assert result["recall"] == pytest.approx({"3": 0.916832, "7": 0.985409}, abs=5e-7)
    assert result["balanced_accuracy"] == pytest.approx(0.951120, abs=1e-6)
    assert result["accuracy"] == pytest.approx(0.951423, abs=5e-7)
    assert result["precision"]["3"] == pytest.approx(0.984060, abs=1e-6)


def test_l2_is_better_than_l1(mnist):
    result = measure(mnist, "l2")
    assert result["accuracy"] == pytest.approx(0.966143, abs=5e-7)
    assert result["recall"] == pytest.approx({"3": 0.958416, "7": 0.973735}, abs=5e-7)
