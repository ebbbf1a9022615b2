"""Interpret a model's outputs as labels and probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.plumbing.errors import UserError

Floats = NDArray[np.float64]

PAIR_OUTPUTS = ("sigmoid", "target")
"""Possible meanings of the single output for a pair of classes.

sigmoid: a logit, whose sigmoid is the probability of the first class. target: the
target itself, 1 for the first class, 0 for the second.
"""
CLASS_OUTPUTS = ("softmax", "one_versus_rest", "target")
"""Possible meanings of the outputs for several classes, one output per class.

softmax: logits, whose softmax gives the probabilities. one_versus_rest: logits, whose
sigmoids, scaled to sum to 1, are the probabilities. target: the target itself, 1 for
the class, 0 for all others.
"""


def output_count(classes: int) -> int:
    """Return how many outputs a model needs for `classes` classes: one for a pair."""
    return 1 if classes == 2 else classes


def outputs_of(loss: str, count: int) -> str:
    """Return the meaning of a model's `count` outputs if trained on `loss`.

    Raises UserError if the loss cannot learn that many.
    """
    if loss == "absolute" and count > 1:
        # It fits the median of the targets, and with many classes, most are 0.
        raise UserError(
            "train.loss: absolute learns pairs of classes only: "
            f"use log_loss for {count} classes"
        )
    if loss == "squared_error":
        return "target"
    if count == 1:
        return "sigmoid"
    return "softmax" if loss == "log_loss" else "one_versus_rest"


def probabilities(logits: Floats, outputs: str) -> Floats:
    """Return the probability of each class (N, K) from logits (N, C).

    `outputs` says what the logits mean. Targets are clipped to [0, 1] and scaled to
    sum to 1.
    """
    if outputs == "softmax":
        # Subtracting the maximum changes nothing but avoids overflow.
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    if logits.shape[1] == 1:
        rest = 1 - logits if outputs == "target" else -logits
        logits = np.hstack([logits, rest])
    if outputs != "target":
        logits = np.exp(-np.logaddexp(0, -logits))  # a sigmoid that cannot overflow
    # Above 0, so that no sum is 0.
    clipped = np.clip(logits, np.finfo(np.float64).tiny, 1)
    return clipped / clipped.sum(1, keepdims=True)


def threshold(outputs: str) -> float:
    """Return the output above which an image belongs to a pair's first class.

    It is halfway between the targets, or at a probability of 0.5.
    """
    return 0.5 if outputs == "target" else 0.0


def predicted_labels(logits: Any, outputs: str) -> Any:
    """Return the labels (N,) that logits (N, C) predict, as NumPy or JAX arrays."""
    if logits.shape[1] == 1:
        return 1 - (logits[:, 0] > threshold(outputs))  # the first class has label 0
    return logits.argmax(1)
