"""Train a linear model by stochastic gradient descent: the lesson's second half."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray
from tqdm import trange

from stages.model import devices, linear
from stages.plumbing import artifacts, parameters
from stages.plumbing.artifacts import Split
from stages.plumbing.errors import UserError

COLUMNS = ("epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy")


class Params(NamedTuple):
    """The model, float32; C is 1 for a pair of classes, else the number of classes."""

    weights: Any  # (H·W, C)
    bias: Any  # (C,)


class Hyperparams(NamedTuple):
    """Traced numbers, so that tools/cross_validation.py can vmap over them."""

    learning_rate: Any
    momentum: Any
    l2: Any


State = tuple[Params, Any]  # the params, and the optimizer's opt_state


@partial(jax.jit, static_argnames=("pixels", "outputs"))
def init_params(key: Array, pixels: int, outputs: int, std: float) -> Params:
    """Draw weights and bias from a normal distribution, as the notebook does."""
    key, weights_key = jax.random.split(key)
    key, bias_key = jax.random.split(key)
    weights = std * jax.random.normal(weights_key, (pixels, outputs))
    return Params(weights, std * jax.random.normal(bias_key, (outputs,)))


def predict(params: Params, images: Array) -> Array:
    """Return the logits (N, C) of images, uint8 (N, H, W)."""
    return images.reshape(len(images), -1) / 255 @ params.weights + params.bias


# Losses on logits and one-hot targets (N, C): one value per image, (N,). All but
# log_loss treat more than two classes as one versus rest.


def squared_error(logits: Array, targets: Array) -> Array:
    """The notebook's first loss: the squared difference of prediction and target."""
    return optax.squared_error(logits, targets).mean(1)


def brier(logits: Array, targets: Array) -> Array:
    """The notebook's last loss: squared error after a sigmoid (Brier 1950)."""
    return optax.squared_error(jax.nn.sigmoid(logits), targets).mean(1)


def absolute(logits: Array, targets: Array) -> Array:
    """The book's loss: the absolute difference of probability and target."""
    return jnp.abs(jax.nn.sigmoid(logits) - targets).mean(1)


def log_loss(logits: Array, targets: Array) -> Array:
    """Cross-entropy of a sigmoid for a pair of classes, of a softmax for more."""
    if logits.shape[1] == 1:
        return optax.sigmoid_binary_cross_entropy(logits, targets)[:, 0]
    return optax.softmax_cross_entropy(logits, targets)


LOSSES = {f.__name__: f for f in (squared_error, brier, absolute, log_loss)}


def sgd(hyperparams: Hyperparams, schedule: str, steps: int) -> Any:
    """SGD with momentum; l2 acts as l2 / 2 times the squared weights in the loss."""
    rate, momentum, l2 = hyperparams
    rate = optax.cosine_decay_schedule(rate, steps) if schedule == "cosine" else rate
    mask = Params(weights=True, bias=False)
    return optax.chain(optax.add_decayed_weights(l2, mask), optax.sgd(rate, momentum))


@partial(jax.jit, static_argnames=("config", "steps"))
def train_steps(
    state: State, images: Array, labels: Array, hyperparams: Hyperparams,
    *, config: parameters.Train, steps: int,
) -> tuple[State, Array]:  # fmt: skip
    """Run one SGD step per batch of images (S, B, H, W) and labels (S, B).

    `steps` is the total, for the schedule. Also returns the loss of each batch, (S,).
    """
    optimizer = sgd(hyperparams, config.schedule, steps)

    def loss_fn(params: Params, images: Array, labels: Array) -> Array:
        targets = jax.nn.one_hot(labels, len(params.bias))
        return LOSSES[config.loss](predict(params, images), targets).mean()

    def train_step(state: State, batch: tuple[Array, Array]) -> tuple[State, Array]:
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return devices.replicate(jax.lax.scan(train_step, state, (images, labels)))


@partial(jax.jit, static_argnames="loss")
def eval_step(params: Params, images: Array, labels: Array, n: int, loss: str) -> Array:
    """Sum the losses and the correct predictions of the first `n` images: (2,)."""
    logits, count = predict(params, images), len(params.bias)
    correct = linear.predicted_labels(logits, linear.outputs_of(loss, count)) == labels
    rows = jnp.stack([LOSSES[loss](logits, jax.nn.one_hot(labels, count)), correct])
    return devices.replicate(jnp.where(jnp.arange(len(images)) < n, rows, 0).sum(1))


def evaluate(params: Params, split: Split, loss: str) -> NDArray[np.float64]:
    """Return the mean loss and the accuracy on a split: (2,)."""
    params = devices.replicate(params)
    sums = [eval_step(params, *block, loss=loss) for block in devices.blocks(split)]
    return np.array(sums, np.float64).sum(0) / len(split.images)


def fit(
    params: Params, train: Split, valid: Split, key: Array, config: parameters.Train
) -> tuple[Params, NDArray[np.float64]]:
    """Train on shuffled minibatches, dropping an incomplete last one.

    Returns the params, and a history (epochs + 1, 4) that begins with the untrained
    model: train loss, train accuracy, valid loss, valid accuracy.
    """
    count, epochs, size = len(train.images), config.epochs, config.batch_size
    steps = count // size  # per epoch
    hyperparams = Hyperparams(config.learning_rate, config.momentum, config.l2)
    run_steps = partial(train_steps, config=config, steps=epochs * steps)
    opt_state = sgd(hyperparams, config.schedule, epochs * steps).init(params)
    state = devices.replicate((params, opt_state))
    keys, history = jax.random.split(key, epochs), []
    hide = jax.process_index() > 0 or None  # None: show on a terminal only
    for epoch in trange(epochs + 1, desc="train", unit="epoch", delay=1, disable=hide):
        if epoch:  # 0 is the untrained model
            order = np.asarray(jax.random.permutation(keys[epoch - 1], count))
            order = order[: steps * size].reshape(steps, size)
            for images, labels in devices.batches(train, order):
                state, losses = run_steps(state, images, labels, hyperparams)
                losses.block_until_ready()  # else the queued batches fill the memory
        history.append([evaluate(state[0], s, config.loss) for s in (train, valid)])
    return Params(*map(np.asarray, state[0])), np.reshape(history, (epochs + 1, 4))


def sensitivity(params: Params, train: Split, loss: str) -> dict[str, float]:
    """Compare loss and accuracy before and after a weight grows by 0.01 %."""
    pixel = train.images.sum(0, dtype=np.int64).argmax()
    nudged = np.array(params.weights)
    nudged[pixel] *= np.float32(1.0001)
    before = evaluate(params, train, loss)
    after = evaluate(params._replace(weights=nudged), train, loss)
    return {
        "pixel": int(pixel),
        "loss_before": before[0],
        "loss_after": after[0],
        "accuracy_before": before[1],
        "accuracy_after": after[1],
    }


@devices.distributed()
def main() -> None:
    """Write the model, its history and the sensitivity test from data/tensors.npz."""
    config = parameters.load(parameters.Train)
    tensors = artifacts.load_tensors(verify=jax.process_count() == 1)
    train, valid, classes, _, decoding = tensors
    shape = train.images[0].size, 1 if len(classes) == 2 else len(classes)
    outputs = linear.outputs_of(config.loss, shape[1])
    devices.check_batch_size(config.batch_size, len(train.images))
    key = jax.random.key(config.seed)
    params = init_params(key, *shape, config.init_std)
    params, history = fit(params, train, valid, jax.random.fold_in(key, 1), config)
    if not all(np.isfinite(array).all() for array in (*params, history)):
        raise UserError(
            f"train.learning_rate: {config.learning_rate} and train.l2: {config.l2} "
            f"make {config.loss} diverge to NaN or infinity: lower one of them"
        )
    model = linear.Linear(*params, classes, outputs, train.images.shape[1:], decoding)
    rows = [(epoch, *row) for epoch, row in enumerate(history)]
    untrained = init_params(key, *shape, config.init_std or 1.0)  # 0 cannot be nudged
    files = {
        artifacts.LINEAR: model.to_arrays(),
        artifacts.HISTORY: [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        artifacts.SENSITIVITY: sensitivity(untrained, train, config.loss),
    }
    if jax.process_index() == 0:
        artifacts.publish(files)
