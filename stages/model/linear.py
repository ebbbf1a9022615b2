"""The trained linear model: from pixels to logits, probabilities and classes.

In float64 and NumPy, so that every machine rounds to the same decimals.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stages.plumbing import artifacts, npz
from stages.plumbing.errors import UserError
from stages.plumbing.npz import Decoding

Floats = NDArray[np.float64]

BLOCK_PIXELS = 2**22
"""Pixels that are float64 at the same time: 32 MiB, or a single image."""
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


class Linear(NamedTuple):
    """A trained model and all that is needed to use it: models/linear.npz."""

    weights: NDArray[np.float32]
    """(H·W, C); C is 1 for a pair of classes, else the number of classes."""
    bias: NDArray[np.float32]
    """(C,)"""
    classes: list[str]
    """(K,)"""
    outputs: str
    """What the C outputs mean: of PAIR_OUTPUTS or of CLASS_OUTPUTS."""
    image_size: tuple[int, int]
    """Height and width."""
    decoding: Decoding
    """How image files become pixels."""

    @classmethod
    def load(cls, path: str) -> Self:
        """Load a model; raise UserError if the file is damaged or inconsistent."""
        dtypes = {"weights": "float32", "bias": "float32", "classes": "str"}
        dtypes |= {"outputs": "str", "image_size": "int64", "decoding": "str"}
        arrays = npz.load_arrays(path, dtypes)
        model = cls(
            arrays["weights"],
            arrays["bias"],
            classes=arrays["classes"].ravel().tolist(),
            outputs=str(arrays["outputs"]),
            image_size=tuple(arrays["image_size"].ravel().tolist()),
            decoding=npz.parse_decoding(path, arrays["decoding"]),
        )
        count = 1 if len(model.classes) == 2 else len(model.classes)
        fits = (
            len(model.classes) > 1
            and len(model.image_size) == 2
            and model.weights.shape == (math.prod(model.image_size), count)
            and model.bias.shape == (count,)
            and model.outputs in (PAIR_OUTPUTS if count == 1 else CLASS_OUTPUTS)
            and model.decoding.size in (None, model.image_size)
        )
        if not fits:
            raise artifacts.damaged(path, "its arrays do not fit together")
        return model

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the content of the npz file that `load` reads."""
        return {
            "weights": self.weights,
            "bias": self.bias,
            "classes": np.array(self.classes),
            "outputs": np.array(self.outputs),
            "image_size": np.array(self.image_size, np.int64),
            "decoding": npz.format_decoding(self.decoding),
        }


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
