"""The baseline: which class's mean image is an image nearest to?"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from stages import devices, metrics, parameters
from stages.artifacts import BASELINE, BASELINE_METRICS, load_tensors, publish


@partial(jax.jit, static_argnames="classes")
def sums(images: Array, labels: Array, count: int, classes: int) -> Array:
    """The sum of the first `count` images (N, H, W) of each class, int32 (classes, H, W).

    Sums of bytes are whole numbers, so their order cannot matter.
    """
    chosen = jnp.where(jnp.arange(len(images)) < count, labels, classes)  # a class too many is left out
    return jax.ops.segment_sum(images.astype(jnp.int32), chosen, classes)


def mean_images(images: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """The mean image of each class, float32 (classes, H, W) in [0, 1]: the perfect 3 and the perfect 7."""
    totals = np.zeros((classes, *images.shape[1:]), np.int64)
    for block in devices.blocks(images, labels):
        totals += np.asarray(sums(*block, classes=classes))
    return (totals / (255 * np.bincount(labels, minlength=classes)[:, None, None])).astype(np.float32)


@partial(jax.jit, static_argnames="distance")
def distances(images: Array, means: Array, distance: Literal["l1", "l2"]) -> Array:
    """The distance of each image (N, H, W), uint8, to each mean (K, H, W): float32 (N, K).

    l1 is the mean absolute difference of the pixels, l2 the root of the mean squared difference.
    """

    def to_mean(mean: Array) -> Array:
        difference = images / 255 - mean
        return jnp.abs(difference).mean((1, 2)) if distance == "l1" else jnp.sqrt((difference**2).mean((1, 2)))

    return jax.lax.map(to_mean, means).T


def main() -> None:
    """Write models/baseline.npz and metrics/baseline.json from data/tensors.npz."""
    chosen = parameters.load(parameters.Baseline)
    tensors = load_tensors()
    classes = tensors.classes.tolist()
    means = mean_images(tensors.train_images, tensors.train_labels, len(classes))
    valid = devices.blocks(tensors.valid_images, tensors.valid_labels)
    far = np.concatenate([distances(images, means, chosen.distance)[:count] for images, _, count in valid])
    scores = far[:, 1] - far[:, 0] if len(classes) == 2 else None
    measures = metrics.measures(tensors.valid_labels, far.argmin(1), classes, scores)
    publish({BASELINE: {"means": means}, BASELINE_METRICS: measures})


if __name__ == "__main__":
    main()
