"""The model, from pixels to outputs. To train another one, edit only this file."""

import math
from typing import Any

from stages.plumbing.parameters import NonNegative

Params = dict[str, Any]
"""Arrays by name, float32. Weight decay applies to those with two or more axes."""


def init(
    key: Any, shape: tuple[int, ...], outputs: int, init_std: NonNegative = 1.0
) -> Params:
    """Draw weights and bias from a normal distribution, as the notebook does.

    `shape` is the image shape, (H, W, C). `outputs` is 1 for a pair of classes, else
    the number of classes. Arguments with defaults are the keys of `model` in
    params.yaml.
    """
    from jax import random  # deferred: the report calls only `forward`, without JAX

    key, weights_key = random.split(key)
    _, bias_key = random.split(key)
    return {
        "weights": init_std * random.normal(weights_key, (math.prod(shape), outputs)),
        "bias": init_std * random.normal(bias_key, (outputs,)),
    }


def forward(params: Params, images: Any) -> Any:
    """Return outputs (N, outputs) for images (N, H, W, C).

    Images are floats in [0, 1], less the mean image if train.subtract_mean is true.

    Written for any array library: JAX trains it, NumPy runs it in float64 afterwards.
    """
    return images.reshape(len(images), -1) @ params["weights"] + params["bias"]
