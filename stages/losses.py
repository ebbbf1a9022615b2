"""What training makes small, and what it is after, for raw predictions and targets (N, C): one value an image, (N,).

C is 1 for a pair of classes, whose target is 1 for the first, and K for more, one target of 1 in each row.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def squared_error(raw: Array, targets: Array) -> Array:
    """The notebook's first loss: (prediction - target) squared, on raw predictions."""
    return optax.squared_error(raw, targets).mean(1)


def brier(raw: Array, targets: Array) -> Array:
    """The notebook's last loss: the same on probabilities, that is after a sigmoid (Brier 1950)."""
    return optax.squared_error(jax.nn.sigmoid(raw), targets).mean(1)


def absolute(raw: Array, targets: Array) -> Array:
    """The book's loss: how far the probability is from the target."""
    return jnp.abs(jax.nn.sigmoid(raw) - targets).mean(1)


def log_loss(raw: Array, targets: Array) -> Array:
    """Minus the log of the probability of the actual class: a sigmoid's for a pair, a softmax's for more classes.

    The three other losses treat more than two classes as one versus rest.
    """
    if raw.shape[1] == 1:
        return optax.sigmoid_binary_cross_entropy(raw, targets)[:, 0]
    return optax.softmax_cross_entropy(raw, targets)


LOSSES = {f.__name__: f for f in (squared_error, brier, absolute, log_loss)}


def correct(raw: Array, targets: Array, threshold: float) -> Array:
    """Whether a raw prediction names the target's class."""
    if raw.shape[1] == 1:
        return ((raw > threshold) == (targets > 0.5))[:, 0]
    return raw.argmax(1) == targets.argmax(1)
