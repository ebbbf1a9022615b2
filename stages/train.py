"""Train a linear model by stochastic gradient descent: the lesson's second half."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray

from stages.evaluation import model_file, outputs
from stages.plumbing import artifacts, devices, parameters, tensors
from stages.plumbing.errors import UserError
from stages.plumbing.progress import progress
from stages.plumbing.tensors import Split

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
def init_params(seed: int, pixels: int, outputs: int, std: float) -> Params:
    """Draw weights and bias from a normal distribution, as the notebook does."""
    key, weights_key = jax.random.split(jax.random.key(seed))
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
    state: State, batches: devices.Batches, hyperparams: Hyperparams,
    *, config: parameters.Train, steps: int,
) -> State:  # fmt: skip
    """Run one SGD step per valid batch of images (S, B, H, W) and labels (S, B).

    `steps` is the total, for the schedule.
    """
    optimizer = sgd(hyperparams, config.schedule, steps)

    def loss_fn(params: Params, images: Array, labels: Array) -> Array:
        targets = jax.nn.one_hot(labels, len(params.bias))
        return LOSSES[config.loss](predict(params, images), targets).mean()

    def train_step(state: State, batch: devices.Batches) -> tuple[State, None]:
        (params, opt_state), (images, labels, is_valid) = state, batch
        grads = jax.grad(loss_fn)(params, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        new_state = optax.apply_updates(params, updates), opt_state
        return jax.tree.map(partial(jnp.where, is_valid), new_state, state), None

    return devices.replicate(jax.lax.scan(train_step, state, batches)[0])


@partial(jax.jit, static_argnames="loss")
def eval_step(params: Params, images: Array, labels: Array, n: int, loss: str) -> Array:
    """Sum the losses and the correct predictions of the first `n` images: (2,)."""
    logits, count = predict(params, images), len(params.bias)
    correct = (
        outputs.predicted_labels(logits, outputs.outputs_of(loss, count)) == labels
    )
    rows = jnp.stack([LOSSES[loss](logits, jax.nn.one_hot(labels, count)), correct])
    return devices.replicate(jnp.where(jnp.arange(len(images)) < n, rows, 0).sum(1))


def evaluate(params: Params, blocks: devices.Blocks, loss: str) -> NDArray[np.float64]:
    """Return the mean loss and the accuracy on a split: (2,)."""
    params = devices.replicate(params)
    sums = [eval_step(params, *block, loss=loss) for block in blocks]
    return np.array(sums, np.float64).sum(0) / blocks.image_count


def fit(
    params: Params, train: Split, valid: Split, config: parameters.Train
) -> tuple[Params, NDArray[np.float64]]:
    """Train on shuffled minibatches, dropping an incomplete last one.

    Returns the params, and a history (epochs + 1, 4) that begins with the untrained
    model: train loss, train accuracy, valid loss, valid accuracy.
    """
    count, epochs, size = len(train.images), config.epochs, config.batch_size
    steps = count // size  # per epoch
    hyperparams = Hyperparams(config.learning_rate, config.momentum, config.l2)
    run_steps = partial(train_steps, config=config, steps=epochs * steps)
    optimizer = sgd(hyperparams, config.schedule, epochs * steps)
    state = devices.replicate((params, jax.jit(optimizer.init)(params)))
    splits, history = [devices.Blocks(split) for split in (train, valid)], []
    for epoch in progress(range(epochs + 1), "train", "epochs"):
        if epoch:  # 0 is the untrained model
            order = np.random.default_rng([config.seed, epoch]).permutation(count)
            order = order[: steps * size].reshape(steps, size)
            for batches in devices.batches(train, order):
                jax.block_until_ready(state)  # else the queued batches fill the memory
                state = run_steps(state, batches, hyperparams)
        history.append([evaluate(state[0], split, config.loss) for split in splits])
    return Params(*map(np.asarray, state[0])), np.reshape(history, (epochs + 1, 4))


def sensitivity(params: Params, train: Split, loss: str) -> dict[str, float]:
    """Compare loss and accuracy before and after a weight, not 0, grows by 0.01 %."""
    pixel = train.images.sum(0, dtype=np.int64).argmax()
    nudged = np.array(params.weights)
    nudged[pixel] *= np.float32(1.0001)
    blocks, nudged_params = devices.Blocks(train), params._replace(weights=nudged)
    before, after = (evaluate(p, blocks, loss) for p in (params, nudged_params))
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
    verify = jax.process_count() == 1
    train, valid, classes, _, decoding = tensors.load_tensors(verify=verify)
    shape = train.images[0].size, 1 if len(classes) == 2 else len(classes)
    meaning = outputs.outputs_of(config.loss, shape[1])
    devices.check_batch_size(config.batch_size, len(train.images))
    untrained = init_params(np.uint32(config.seed), *shape, config.init_std or 1.0)
    params = untrained if config.init_std else jax.tree.map(np.zeros_like, untrained)
    params, history = fit(params, train, valid, config)
    if not all(np.isfinite(array).all() for array in (*params, history)):
        raise UserError(
            f"train.learning_rate: {config.learning_rate} and train.l2: {config.l2} "
            f"make {config.loss} diverge to NaN or infinity: lower one of them"
        )
    model = model_file.Linear(
        *params, classes, meaning, train.images.shape[1:], decoding
    )
    rows = [(epoch, *row) for epoch, row in enumerate(history)]
    files = {
        artifacts.MODEL: model.to_arrays(),
        artifacts.HISTORY: [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        artifacts.SENSITIVITY: sensitivity(untrained, train, config.loss),
    }
    if jax.process_index() == 0:
        artifacts.publish(files)
        if worse := int((history[1:, 0] > history[0, 0]).sum()):
            print(
                f"after {worse} of {config.epochs} epochs, the training loss was above "
                "that of the untrained model: lower train.learning_rate"
            )
