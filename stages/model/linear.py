"""The trained linear model: from pixels to logits, probabilities and classes.

In float64 and NumPy, so that every machine rounds to the same decimals.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BLOCK_PIXELS = 2**22
"""Pixels that are float64 at the same time: 32 MiB, or a single image."""


def in_blocks(apply: Callable[[Floats], Floats], images: NDArray[np.uint8]) -> Floats:
    """Apply a function to images (N, H, W) scaled to [0, 1], some at a time."""
    size = max(BLOCK_PIXELS // images[0].size, 1)
    starts = range(0, len(images), size)
    return np.concatenate([apply(images[i : i + size] / 255.0) for i in starts])


def logits(
    images: NDArray[np.uint8],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> Floats:
    """Return the logits (N, C) of images (N, H, W) for weights (H·W, C), bias (C,).

    A model trained on squared error predicts the target itself, not a logit.
    """

    def apply(block: Floats) -> Floats:
        return block.reshape(len(block), -1) @ weights.astype(np.float64) + bias

    return in_blocks(apply, images)


def probabilities(logits: Floats, loss: str) -> Floats:
    """Return the probability of each class (N, K), for a model trained on `loss`.

    A pair of classes has one logit, whose sigmoid is the probability of the first.
    Several classes have a softmax (log loss), or sigmoids scaled to a sum of 1 (the
    other losses, which train one versus rest). squared_error predicts the target
    itself, which is clipped to [0, 1].
    """
    if loss == "log_loss" and logits.shape[1] > 1:
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    if logits.shape[1] == 1:
        rest = 1 - logits if loss == "squared_error" else -logits
        logits = np.hstack([logits, rest])
    if loss != "squared_error":
        logits = np.exp(-np.logaddexp(0, -logits))  # the sigmoid
    clipped = np.clip(logits, np.finfo(np.float64).tiny, 1)
    return clipped / clipped.sum(1, keepdims=True)


def threshold(loss: str) -> float:
    """Return the logit above which a pair's image is of the first class.

    Halfway between the targets for squared_error, a probability of 0.5 for the rest.
    """
    return 0.5 if loss == "squared_error" else 0.0


def predicted_labels(logits: Any, loss: str) -> Any:
    """Return the label (N,) predicted by logits (N, C), of NumPy or of JAX."""
    if logits.shape[1] == 1:
        return 1 - (logits[:, 0] > threshold(loss))
    return logits.argmax(1)
