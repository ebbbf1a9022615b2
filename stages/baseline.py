"""The baseline: classify an image by the nearest mean image.

In NumPy: importing JAX would take longer than the whole stage.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stages.evaluation import metrics
from stages.plumbing import artifacts, parameters, tensors
from stages.plumbing.tensors import Split

BLOCK_BYTES = 2**18  # of images at a time: as floats, they fit a processor's cache


def blocks(split: Split) -> Iterator[Split]:
    """Yield a split in blocks: its images are memory-mapped and may exceed memory."""
    size = max(BLOCK_BYTES // split.images[0].size, 1)
    for start in range(0, len(split.images), size):
        yield Split(*(array[start : start + size] for array in split))


def mean_images(train: Split, classes: int) -> NDArray[np.float32]:
    """Average each class, (classes, H, W, C) in [0, 1]: the perfect 3, the perfect 7.

    Sums integers, so that the order of summation cannot matter.
    """
    totals = np.zeros((classes, *train.images.shape[1:]), np.int64)
    for images, labels in blocks(train):
        for label in np.unique(labels):  # few: images are sorted by class
            totals[label] += images[labels == label].sum(0, dtype=np.int64)
    counts = np.bincount(train.labels, minlength=classes)
    return (totals / (255 * counts.reshape(-1, 1, 1, 1))).astype(np.float32)


def distances(
    images: NDArray[np.uint8], means: NDArray[np.float32], distance: str
) -> NDArray[np.float32]:
    """Return the distances (N, K) from images (N, H, W, C) to means (K, H, W, C).

    l1 is the mean absolute difference of the pixels, l2 the root mean square.
    """
    pixels = images.reshape(len(images), -1) / np.float32(255)

    def to_mean(mean: NDArray[np.float32]) -> NDArray[np.float32]:
        difference = pixels - mean
        if distance == "l1":
            return np.abs(difference).mean(1)
        return np.sqrt((difference**2).mean(1))

    # One mean at a time: broadcasting would need an array of (N, K, H·W·C).
    return np.stack([to_mean(mean) for mean in means.reshape(len(means), -1)], 1)


def main() -> None:
    """Write models/baseline.npz and metrics/baseline.json from data/tensors.npz."""
    distance = parameters.load(parameters.Baseline).distance
    train, valid, classes, *_ = tensors.load_tensors()
    means = mean_images(train, len(classes))
    to_means = np.concatenate(
        [distances(images, means, distance) for images, _ in blocks(valid)]
    )
    # For a pair, a higher score favours the first class.
    scores = to_means[:, 1] - to_means[:, 0] if len(classes) == 2 else None
    predicted = to_means.argmin(1)
    measured = metrics.classification_metrics(valid.labels, predicted, classes, scores)
    model = {
        "means": means,
        "distance": np.array(distance),
        # Stored, since the report might round them differently.
        "valid_distances": to_means,
    }
    artifacts.publish({artifacts.BASELINE: model, artifacts.BASELINE_METRICS: measured})
