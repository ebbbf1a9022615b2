"""The baseline: which class's mean image is an image nearest to?"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from stages import metrics, parameters
from stages.artifacts import BASELINE, BASELINE_METRICS, load_tensors, publish


def mean_images(images: Array, labels: Array, count: int) -> Array:
    """The mean image of each class, float32 (count, H, W) in [0, 1]: the perfect 3 and the perfect 7.

    Sums of bytes are whole numbers, so their order cannot matter.
    """
    sums = jax.ops.segment_sum(images.astype(jnp.int32), labels, count)
    return sums / (255 * jnp.bincount(labels, length=count)[:, None, None])


def distances(images: Array, means: Array, distance: Literal["l1", "l2"]) -> Array:
    """The distance of each image (N, H, W), uint8, to each mean (K, H, W): float32 (N, K).

    l1 is the mean absolute difference of the pixels, l2 the root of the mean squared difference.
    """

    def to_mean(mean: Array) -> Array:
        difference = images / 255 - mean
        return jnp.abs(difference).mean((1, 2)) if distance == "l1" else jnp.sqrt((difference**2).mean((1, 2)))

    return jax.lax.map(to_mean, means).T


@partial(jax.jit, static_argnames=("count", "distance"))
def fit_and_compare(
    images: Array, labels: Array, valid: Array, count: int, distance: Literal["l1", "l2"]
) -> tuple[Array, Array]:
    """The mean images of the training set, and the distances of the validation images to them."""
    means = mean_images(images, labels, count)
    return means, distances(valid, means, distance)


def main() -> None:
    """Write models/baseline.npz and metrics/baseline.json from data/tensors.npz."""
    chosen = parameters.load(parameters.Baseline)
    tensors = load_tensors()
    classes = tensors.classes.tolist()
    means, far = fit_and_compare(
        tensors.train_images, tensors.train_labels, tensors.valid_images, len(classes), chosen.distance
    )
    far = np.asarray(far)
    scores = far[:, 1] - far[:, 0] if len(classes) == 2 else None
    measures = metrics.measures(tensors.valid_labels, far.argmin(1), classes, scores)
    publish({BASELINE: {"means": np.asarray(means)}, BASELINE_METRICS: measures})


if __name__ == "__main__":
    main()
