"""What a model's outputs mean: labels and probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.plumbing.errors import UserError

Floats = NDArray[np.float64]

PAIR_OUTPUTS = ("sigmoid", "target")
"""What the one output for a pair of classes can mean.

sigmoid: a logit, whose sigmoid is the probability of the first class. target: the
target itself, 1 for the first class, 0 for the second.
"""
CLASS_OUTPUTS = ("softmax", "one_versus_rest", "target")
"""What the outputs for several classes can mean, one for each.

softmax: logits, whose softmax are the probabilities. one_versus_rest: logits, whose
sigmoids are the probabilities once they are scaled to a sum of 1. target: the target
itself, 1 for the class, 0 for all others.
"""


def outputs_of(loss: str, count: int) -> str:
    """Return what the `count` outputs of a model mean that is trained on `loss`.

    Raises UserError for a loss that cannot learn so many.
    """
    if loss == "absolute" and count > 1:
        # Nearly all targets are 0, and it fits the median.
        raise UserError(
            "train.loss: absolute learns pairs of classes only: "
            f"take log_loss for {count} classes"
        )
    if loss == "squared_error":
        return "target"
    if count == 1:
        return "sigmoid"
    return "softmax" if loss == "log_loss" else "one_versus_rest"


def probabilities(logits: Floats, outputs: str) -> Floats:
    """Return the probability of each class (N, K) from logits (N, C).

    `outputs` says what the logits mean. Targets are clipped to [0, 1], and scaled to a
    sum of 1.
    """
    if outputs == "softmax":
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    if logits.shape[1] == 1:
        rest = 1 - logits if outputs == "target" else -logits
        logits = np.hstack([logits, rest])
    if outputs != "target":
        logits = np.exp(-np.logaddexp(0, -logits))  # the sigmoid
    clipped = np.clip(logits, np.finfo(np.float64).tiny, 1)
    return clipped / clipped.sum(1, keepdims=True)


def threshold(outputs: str) -> float:
    """Return the logit above which a pair's image is of the first class.

    Halfway between the targets, or a probability of 0.5.
    """
    return 0.5 if outputs == "target" else 0.0


def predicted_labels(logits: Any, outputs: str) -> Any:
    """Return the label (N,) predicted by logits (N, C), of NumPy or of JAX."""
    if logits.shape[1] == 1:
        return 1 - (logits[:, 0] > threshold(outputs))
    return logits.argmax(1)
