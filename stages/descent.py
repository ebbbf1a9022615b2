"""A linear model, and minibatch stochastic gradient descent to train it."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from stages.linear import cut
from stages.losses import LOSSES, accuracy


class Params(NamedTuple):
    """The linear model: weights (H·W, C) and bias (C,), float32; C is 1 for a pair of classes, else K."""

    weights: Array
    bias: Array


class Split(NamedTuple):
    """Images as float32 rows (N, H·W) in [0, 1], and targets float32 (N, C): 1 for the class, 0 for the rest."""

    images: Array
    targets: Array


def predictions(params: Params, images: Array) -> Array:
    """The raw predictions (N, C) of a linear model for images (N, H·W)."""
    return images @ params.weights + params.bias


@partial(jax.jit, static_argnames=("loss", "schedule", "batch_size", "epochs"))
def fit(
    params: Params,
    train: Split,
    valid: Split,
    key: Array,
    learning_rate: float,
    momentum: float,
    l2: float,
    *,
    loss: str,
    schedule: str,
    batch_size: int,
    epochs: int,
) -> tuple[Params, Array]:
    """Train by minibatches, in a new random order each epoch, whose last, incomplete batch is left out.

    Returns the params and the history (epochs + 1, 4): train loss, train accuracy, valid loss and valid
    accuracy, at first of the untrained model. The gradient is that of the loss plus l2 / 2 times the
    squared weights (not the bias).
    """
    batches = len(train.images) // batch_size
    # Each device takes an equal share of every batch; one device is the smallest case of the same program.
    devices = math.gcd(batch_size, jax.device_count())
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    share = NamedSharding(mesh, PartitionSpec("batch"))
    rate = optax.cosine_decay_schedule(learning_rate, epochs * batches) if schedule == "cosine" else learning_rate
    decay = optax.add_decayed_weights(l2, mask=Params(weights=True, bias=False))  # type: ignore[arg-type]
    optimizer = optax.chain(decay, optax.sgd(rate, momentum))
    gradient = jax.grad(lambda params, images, targets: LOSSES[loss](predictions(params, images), targets))

    def step(state: tuple[Params, Any], batch: Array) -> tuple[tuple[Params, Any], None]:
        params, optimizer_state = state
        images, targets = (jax.lax.with_sharding_constraint(each[batch], share) for each in train)
        slope = gradient(params, images, targets)
        updates, optimizer_state = optimizer.update(slope, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), None

    def evaluate(params: Params) -> Array:
        raws = [(predictions(params, split.images), split.targets) for split in (train, valid)]
        return jnp.stack([f for r, t in raws for f in (LOSSES[loss](r, t), accuracy(r, t, cut(loss)))])

    def epoch(state: tuple[Params, Any], key: Array) -> tuple[tuple[Params, Any], Array]:
        order = jax.random.permutation(key, len(train.images))[: batches * batch_size]
        state, _ = jax.lax.scan(step, state, order.reshape(batches, batch_size))
        return state, evaluate(state[0])

    before = evaluate(params)
    (params, _), history = jax.lax.scan(epoch, (params, optimizer.init(params)), jax.random.split(key, epochs))
    return params, jnp.vstack([before, history])
