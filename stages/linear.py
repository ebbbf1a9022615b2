"""The linear model after training: its predictions, in float64, so that every machine rounds to the same."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


BLOCK = 2**22


def by_blocks(function: Callable[[Floats], Floats], images: NDArray[np.uint8]) -> Floats:
    """What a function gives for images (N, H, W) of pixels in [0, 1], called for some at a time.

    In float64 images take eight times the memory; here 2^22 pixels do at most, or a single image.
    """
    count = max(BLOCK // images[0].size, 1)
    return np.concatenate([function(images[i : i + count] / 255.0) for i in range(0, len(images), count)])


def raw_predictions(images: NDArray[np.uint8], weights: NDArray[np.float32], bias: NDArray[np.float32]) -> Floats:
    """Pixels in [0, 1] times weights (H·W, C) plus bias (C,), for images (N, H, W): float64 (N, C)."""
    return by_blocks(lambda block: block.reshape(len(block), -1) @ weights.astype(np.float64) + bias, images)


def probabilities(raw: Floats, loss: str) -> Floats:
    """What raw predictions (N, C) say of each class, (N, K), by the loss that the model was trained with.

    A sigmoid of the logit, or softmax for log_loss and more than two classes; squared_error predicts the
    target itself, cut to [0, 1]. One versus rest is scaled to a sum of 1.
    """
    if loss == "log_loss" and raw.shape[1] > 1:
        powers = np.exp(raw - raw.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    if raw.shape[1] == 1:
        raw = np.hstack([raw, 1 - raw if loss == "squared_error" else -raw])
    each = raw if loss == "squared_error" else np.exp(-np.logaddexp(0, -raw))
    each = np.clip(each, np.finfo(np.float64).tiny, 1)
    return each / each.sum(1, keepdims=True)


def cut(loss: str) -> float:
    """The raw prediction from which on a pair's image is of the first class: a target's middle, or a logit of 0."""
    return 0.5 if loss == "squared_error" else 0.0


def predicted_classes(raw: Floats, loss: str) -> NDArray[np.int64]:
    """The class of each raw prediction (N, C), as an index (N,)."""
    return np.where(raw[:, 0] > cut(loss), 0, 1) if raw.shape[1] == 1 else raw.argmax(1)
