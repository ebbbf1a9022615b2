"""What training makes small, and the accuracy that it is after, for raw predictions and targets (N, C).

C is 1 for a pair of classes, whose target is 1 for the first, and K for more, one target of 1 in each row.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def squared_error(raw: Array, targets: Array) -> Array:
    """The notebook's first loss: the mean of (prediction - target) squared, on raw predictions."""
    return optax.squared_error(raw, targets).mean()


def brier(raw: Array, targets: Array) -> Array:
    """The notebook's last loss: the same on probabilities, that is after a sigmoid (Brier 1950)."""
    return optax.squared_error(jax.nn.sigmoid(raw), targets).mean()


def absolute(raw: Array, targets: Array) -> Array:
    """The book's loss: how far the probability is from the target, on average."""
    return jnp.abs(jax.nn.sigmoid(raw) - targets).mean()


def log_loss(raw: Array, targets: Array) -> Array:
    """Minus the log of the probability of the actual class: a sigmoid's for a pair, a softmax's for more classes.

    The three other losses treat more than two classes as one versus rest.
    """
    if raw.shape[1] == 1:
        return optax.sigmoid_binary_cross_entropy(raw, targets).mean()
    return optax.softmax_cross_entropy(raw, targets).mean()


LOSSES = {f.__name__: f for f in (squared_error, brier, absolute, log_loss)}


def accuracy(raw: Array, targets: Array, threshold: float) -> Array:
    """The share of raw predictions (N, C) that name the target's class."""
    if raw.shape[1] == 1:
        return ((raw > threshold) == (targets > 0.5)).mean()
    return (raw.argmax(1) == targets.argmax(1)).mean()
