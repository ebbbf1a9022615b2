"""The mean images, the distances to them, and the notebook's figures for them."""

from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]

from stages import baseline, preprocess
from stages.evaluation import metrics
from stages.plumbing import parameters, workers
from stages.plumbing.tensors import Split

ARCHIVE = Path(__file__).parents[1] / "data/mnist_sample.tgz"
RANDOM = np.random.default_rng(2)
Mnist = tuple[Split, Split]


@pytest.fixture(scope="module")
def mnist() -> Mnist:
    """Read the training and the validation split of the bundled archive."""
    data = parameters.Data(
        ("3", "7"),
        parameters.Splits("train", "valid"),
        size=None,
        grayscale=False,
        background=None,
    )
    with pytest.MonkeyPatch.context() as patch:  # JAX has threads, so do not fork
        patch.setattr(workers, "available_processors", lambda: 1)
        return preprocess.read_splits(str(ARCHIVE), data)


def measure(mnist: Mnist, distance: Literal["l1", "l2"]) -> dict[str, Any]:
    train, valid = mnist
    means = jnp.asarray(baseline.mean_images(train, 2))
    distances = baseline.distances(jnp.asarray(valid.images), means, distance)
    predicted = np.asarray(distances).argmin(1)
    return metrics.classification_metrics(valid.labels, predicted, ["3", "7"])


def test_mean_images_equal_the_float64_means_of_the_classes():
    images = RANDOM.integers(256, size=(300, 5, 4), dtype=np.uint8)
    labels = np.append([0, 1, 2], RANDOM.integers(3, size=297)).astype(np.uint8)
    means = baseline.mean_images(Split(images, labels), 3)
    expected = [images[labels == k].mean(0) / 255 for k in range(3)]
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, expected, rtol=1e-6)


def test_256_classes_have_the_float64_means_of_their_images():
    """300 images are padded to 512, and none of the padding is of class 0."""
    images = RANDOM.integers(256, size=(300, 3, 2), dtype=np.uint8)
    labels = np.append(np.arange(256), RANDOM.integers(256, size=44)).astype(np.uint8)
    means = baseline.mean_images(Split(images, labels), 256)
    expected = [images[labels == k].mean(0) / 255 for k in range(256)]
    np.testing.assert_allclose(means, expected, rtol=1e-6)


def test_mean_images_do_not_depend_on_the_order_of_the_images():
    images = RANDOM.integers(256, size=(5000, 3, 3), dtype=np.uint8)
    labels = (np.arange(5000) % 2).astype(np.uint8)
    order = RANDOM.permutation(5000)
    means, reversed_means = (
        baseline.mean_images(Split(images[rows], labels[rows]), 2)
        for rows in (order, order[::-1])
    )
    np.testing.assert_array_equal(means, reversed_means)


@pytest.mark.parametrize(
    ("distance", "metric", "scale"),
    [("l1", "cityblock", 20), ("l2", "euclidean", 20**0.5)],
)
def test_distances_equal_scipy(distance, metric, scale):
    """SciPy sums over the 20 pixels; here l1 is a mean, and l2 the root of one."""
    images = RANDOM.integers(256, size=(40, 5, 4), dtype=np.uint8)
    means = RANDOM.random((3, 5, 4), np.float32)
    distances = baseline.distances(jnp.asarray(images), jnp.asarray(means), distance)
    expected = cdist(images.reshape(40, -1) / 255, means.reshape(3, -1), metric) / scale
    assert distances.shape == (40, 3)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def test_the_archive_has_the_notebooks_counts(mnist):
    counts = [np.bincount(split.labels).tolist() for split in mnist]
    assert counts == [[6131, 6265], [1010, 1028]]
    assert [split.images.shape[1:] for split in mnist] == [(28, 28)] * 2


def test_the_mean_images_of_the_archive_equal_float64(mnist):
    images, labels = mnist[0]
    expected = [images[labels == k].mean(0) / 255 for k in (0, 1)]
    means = baseline.mean_images(mnist[0], 2)
    np.testing.assert_allclose(means, expected, rtol=1e-6)


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
