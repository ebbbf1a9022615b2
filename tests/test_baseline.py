"""The mean images and the distances to them, and the notebook's numbers on its own archive."""

from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]

from stages import baseline, metrics, parameters, preprocess

ARCHIVE = Path(__file__).parents[1] / "data/mnist_sample.tgz"
RANDOM = np.random.default_rng(2)


@pytest.fixture(scope="module")
def mnist() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the training and of the validation set."""
    data = parameters.Data(("3", "7"), parameters.Splits("train", "valid"), size=None, grayscale=False)
    images = preprocess.read_images(str(ARCHIVE), data)
    return [preprocess.stack(*images, "train", data), preprocess.stack(*images, "valid", data)]


def measures(mnist: list[tuple[np.ndarray, np.ndarray]], distance: Literal["l1", "l2"]) -> dict[str, Any]:
    (images, labels), (valid, actual) = mnist
    far = baseline.distances(jnp.asarray(valid), jnp.asarray(baseline.mean_images(images, labels, 2)), distance)
    return metrics.measures(actual, np.asarray(far).argmin(1), ["3", "7"])


def test_mean_images_equal_float64_means_of_each_class():
    images = RANDOM.integers(256, size=(300, 5, 4), dtype=np.uint8)
    labels = np.append([0, 1, 2], RANDOM.integers(3, size=297)).astype(np.uint8)
    means = baseline.mean_images(images, labels, 3)
    expected = [images[labels == k].mean(0) / 255 for k in range(3)]
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, expected, rtol=1e-6)


def test_mean_images_do_not_depend_on_the_order_of_the_images():
    images, labels = RANDOM.integers(256, size=(5000, 3, 3), dtype=np.uint8), (np.arange(5000) % 2).astype(np.uint8)
    order = RANDOM.permutation(5000)
    one, other = (baseline.mean_images(images[o], labels[o], 2) for o in (order, order[::-1]))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("distance", "metric", "scale"), [("l1", "cityblock", 20), ("l2", "euclidean", 20**0.5)])
def test_distances_equal_scipy(distance, metric, scale):
    """The mean and not the sum over 20 pixels: l1 is smaller by 20, the root mean square by its root."""
    images = RANDOM.integers(256, size=(40, 5, 4), dtype=np.uint8)
    means = RANDOM.random((3, 5, 4), np.float32)
    far = baseline.distances(jnp.asarray(images), jnp.asarray(means), distance)
    expected = cdist(images.reshape(40, -1) / 255, means.reshape(3, -1), metric) / scale
    assert far.shape == (40, 3)
    np.testing.assert_allclose(far, expected, rtol=1e-5)


def test_the_archive_has_the_notebooks_counts(mnist):
    assert [np.bincount(labels).tolist() for _, labels in mnist] == [[6131, 6265], [1010, 1028]]
    assert [images.shape[1:] for images, _ in mnist] == [(28, 28)] * 2


def test_the_mean_images_are_those_of_the_archive_in_float64(mnist):
    (images, labels), _ = mnist
    means = baseline.mean_images(images, labels, 2)
    np.testing.assert_allclose(means, [images[labels == k].mean(0) / 255 for k in (0, 1)], rtol=1e-6)


def test_l1_has_the_notebooks_numbers(mnist):
    result = measures(mnist, "l1")
    assert result["recall"] == pytest.approx({"3": 926 / 1010, "7": 1013 / 1028})
    assert result["recall"] == pytest.approx({"3": 0.916832, "7": 0.985409}, abs=5e-7)
    assert result["balanced_accuracy"] == pytest.approx(0.951120, abs=1e-6)
    assert result["accuracy"] == pytest.approx(0.951423, abs=5e-7)
    assert result["precision"]["3"] == pytest.approx(0.984060, abs=1e-6)


def test_l2_is_better_than_l1(mnist):
    result = measures(mnist, "l2")
    assert result["accuracy"] == pytest.approx(0.966143, abs=5e-7)
    assert result["recall"] == pytest.approx({"3": 0.958416, "7": 0.973735}, abs=5e-7)
