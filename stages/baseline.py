"""The baseline: classify an image by the nearest mean image."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from stages.evaluation import metrics
from stages.plumbing import artifacts, devices, parameters, tensors
from stages.plumbing.tensors import Split


def mean_images(train: Split, classes: int) -> NDArray[np.float32]:
    """Average each class, (classes, H, W, C) in [0, 1]: the perfect 3, the perfect 7.

    Sums integers, so that the order of summation cannot matter.
    """
    totals = np.zeros((classes, *train.images.shape[1:]), np.int64)
    # In blocks, since the images are memory-mapped and may exceed memory.
    size = max(devices.BLOCK_BYTES // train.images[0].size, 1)
    for start in range(0, len(train.images), size):
        images, labels = (array[start : start + size] for array in train)
        for label in np.unique(labels):  # few: images are sorted by class
            totals[label] += images[labels == label].sum(0, dtype=np.int64)
    counts = np.bincount(train.labels, minlength=classes)
    return (totals / (255 * counts.reshape(-1, 1, 1, 1))).astype(np.float32)


@partial(jax.jit, static_argnames="distance")
def distances(images: Array, means: Array, distance: Literal["l1", "l2"]) -> Array:
    """Return the distances (N, K) from uint8 images (N, H, W, C) to means (K, H, W, C).

    l1 is the mean absolute difference of the pixels, l2 the root mean square.
    """
    # As rows: over a last axis of one channel, XLA would take twenty times as long.
    pixels, mean_pixels = (a.reshape(len(a), -1) for a in (images, means))

    def to_mean(mean: Array) -> Array:
        difference = pixels / 255 - mean
        if distance == "l1":  # static, so decided once, while JAX traces
            return jnp.abs(difference).mean(1)
        return jnp.sqrt((difference**2).mean(1))

    # One mean at a time: broadcasting would need an array of (N, K, H·W·C).
    return jax.lax.map(to_mean, mean_pixels).T


def main() -> None:
    """Write models/baseline.npz and metrics/baseline.json from data/tensors.npz."""
    distance = parameters.load(parameters.Baseline).distance
    train, valid, classes, *_ = tensors.load_tensors()
    means = mean_images(train, len(classes))
    blocks = [distances(images, means, distance) for images, _ in devices.Blocks(valid)]
    to_means = np.concatenate(blocks)
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
