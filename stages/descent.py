"""A linear model, and minibatch stochastic gradient descent to train it."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray
from tqdm import trange

from stages.devices import alike, blocks, everywhere, spread
from stages.linear import cut
from stages.losses import LOSSES, correct

BLOCK = 32 * 2**20
"""How many bytes of images are taken to the devices at a time, so that more can be trained on than fit there."""


class Params(NamedTuple):
    """The linear model: weights (H·W, C) and bias (C,), float32; C is 1 for a pair of classes, else K."""

    weights: Any
    bias: Any


class Split(NamedTuple):
    """Images, uint8 (N, H, W), and labels, uint8 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def predictions(params: Params, images: Array) -> Array:
    """The raw predictions (N, C) of a linear model for images (N, H, W) of bytes, whose pixels it takes as 0 to 1."""
    return images.reshape(len(images), -1) / 255 @ params.weights + params.bias


def as_targets(labels: Array, outputs: int) -> Array:
    """Targets float32 (N, C) for labels (N,): 1 for the class, 0 for the rest."""
    return (labels[:, None] == jnp.arange(outputs)).astype(jnp.float32)


def optimizer(rates: Mapping[str, Any], schedule: str, steps: int) -> optax.GradientTransformation:
    """Gradient descent with learning_rate, momentum and l2; l2 / 2 times the squared weights add to the loss."""
    rate = rates["learning_rate"]
    rate = optax.cosine_decay_schedule(rate, steps) if schedule == "cosine" else rate
    decay = optax.add_decayed_weights(rates["l2"], mask=Params(weights=True, bias=False))
    return optax.chain(decay, optax.sgd(rate, rates["momentum"]))


@partial(jax.jit, static_argnames=("loss", "schedule", "steps"))
def descend(
    state: tuple[Params, Any], images: Array, labels: Array, rates: Mapping[str, Any], *,
    loss: str, schedule: str, steps: int,
) -> tuple[Params, Any]:  # fmt: skip
    """Take a step for each batch of images (S, B, H, W) and labels (S, B); `steps` are those of the whole training.

    The state is the params and the optimizer's. Devices that share the batches add up their gradients.
    """
    descent = optimizer(rates, schedule, steps)

    def mean_loss(params: Params, images: Array, labels: Array) -> Array:
        return LOSSES[loss](predictions(params, images), as_targets(labels, len(params.bias))).mean()

    def step(state: tuple[Params, Any], batch: tuple[Array, Array]) -> tuple[tuple[Params, Any], None]:
        params, memory = state
        updates, memory = descent.update(jax.grad(mean_loss)(params, *batch), memory, params)
        return (optax.apply_updates(params, updates), memory), None

    return alike(jax.lax.scan(step, state, (images, labels))[0])


@partial(jax.jit, static_argnames="loss")
def measure(params: Params, images: Array, labels: Array, count: int, *, loss: str) -> Array:
    """The sum of the losses, and the number of correct predictions, of the first `count` images: (2,)."""
    raw, targets = predictions(params, images), as_targets(labels, len(params.bias))
    each = jnp.stack([LOSSES[loss](raw, targets), correct(raw, targets, cut(loss))])
    return alike(jnp.where(jnp.arange(len(images)) < count, each, 0).sum(1))


def evaluate(params: Params, split: Split, loss: str) -> NDArray[np.float64]:
    """The mean loss and the accuracy: (2,)."""
    sums = [measure(params, *block, loss=loss) for block in blocks(*split)]
    return np.array(sums, np.float64).sum(0) / len(split.images)


@partial(jax.jit, static_argnames=("epochs", "images"))
def shuffled(key: Array, epoch: int, *, epochs: int, images: int) -> Array:
    """The order of the images (N,) in an epoch."""
    return jax.random.permutation(jax.random.split(key, epochs)[epoch], images)


def fit(
    params: Params, train: Split, valid: Split, key: Array, rates: Mapping[str, Any], *,
    loss: str, schedule: str, batch_size: int, epochs: int,
) -> tuple[Params, NDArray[np.float64]]:  # fmt: skip
    """Train by minibatches, in a new random order each epoch, whose last, incomplete batch is left out.

    `rates` are those of the optimizer. Returns the params and the history (epochs + 1, 4): train loss, train
    accuracy, valid loss and valid accuracy, at first of the untrained model.
    """
    batches = len(train.images) // batch_size
    parts = min(batches, -(-batches * batch_size * math.prod(train.images.shape[1:]) // BLOCK))
    steps = epochs * batches
    take_steps = partial(descend, rates=rates, loss=loss, schedule=schedule, steps=steps)
    state = everywhere((params, optimizer(rates, schedule, steps).init(params)))
    history = []
    hidden = True if jax.process_index() else None  # None: unless on a terminal
    for epoch in trange(epochs + 1, desc="train", unit=" epochs", delay=1, disable=hidden):
        if epoch:
            order = np.asarray(shuffled(key, epoch - 1, epochs=epochs, images=len(train.images)))
            for part in np.array_split(order[: batches * batch_size].reshape(batches, batch_size), parts):
                state = take_steps(state, spread(train.images, part), spread(train.labels, part))
                jax.block_until_ready(state)  # or the next parts would pile up in memory
        history.append(np.concatenate([evaluate(state[0], split, loss) for split in (train, valid)]))
    return Params(*map(np.asarray, state[0])), np.stack(history)
