"""The trained linear model: from pixels to logits, probabilities and classes.

In float64 and NumPy, so that every machine rounds to the same decimals.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stages.evaluation import outputs
from stages.plumbing import npz, tensors
from stages.plumbing.errors import damaged
from stages.plumbing.tensors import Decoding

Floats = NDArray[np.float64]

BLOCK_PIXELS = 2**22
"""Pixels that are float64 at the same time: 32 MiB, or a single image."""


class Linear(NamedTuple):
    """A trained model and all that is needed to use it: models/model.npz."""

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
            decoding=tensors.parse_decoding(path, arrays["decoding"]),
        )
        count = 1 if len(model.classes) == 2 else len(model.classes)
        fits = (
            len(model.classes) > 1
            and len(model.image_size) == 2
            and model.weights.shape == (math.prod(model.image_size), count)
            and model.bias.shape == (count,)
            and model.outputs
            in (outputs.PAIR_OUTPUTS if count == 1 else outputs.CLASS_OUTPUTS)
            and model.decoding.size in (None, model.image_size)
        )
        if not fits:
            raise damaged(path, "its arrays do not fit together")
        return model

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the content of the npz file that `load` reads."""
        return {
            "weights": self.weights,
            "bias": self.bias,
            "classes": np.array(self.classes),
            "outputs": np.array(self.outputs),
            "image_size": np.array(self.image_size, np.int64),
            "decoding": tensors.format_decoding(self.decoding),
        }


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
