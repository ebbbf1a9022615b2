"""Train the model by stochastic gradient descent: the lesson's second half."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from stages import model
from stages.evaluation.model_file import TrainedModel, pixel_weights
from stages.evaluation.outputs import output_count, outputs_of, predicted_labels
from stages.model import Params, forward
from stages.plumbing import artifacts, devices, parameters, tensors
from stages.plumbing.errors import UserError
from stages.plumbing.progress import progress
from stages.plumbing.tensors import Split

COLUMNS = ("epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy")
STEPS, TOLERANCE = 200, 1e-3
"""Training has converged once the loss falls by less than a share of TOLERANCE in STEPS
steps, or in two epochs if those take more steps."""
SAMPLE = 2**16
"""The most images of a split whose loss and accuracy are measured after each epoch."""

State = tuple[Params, Params]  # the params and, by name, their velocities


# Losses on outputs and one-hot targets (N, C): one value per image, (N,). All but
# log_loss treat more than two classes as one versus rest.


def squared_error(logits: Array, targets: Array) -> Array:
    """The notebook's first loss: the squared difference between output and target."""
    return ((logits - targets) ** 2).mean(1)


def brier(logits: Array, targets: Array) -> Array:
    """The notebook's last loss: squared error after a sigmoid (Brier 1950)."""
    return ((jax.nn.sigmoid(logits) - targets) ** 2).mean(1)


def absolute(logits: Array, targets: Array) -> Array:
    """The book's loss: the absolute difference between probability and target."""
    return jnp.abs(jax.nn.sigmoid(logits) - targets).mean(1)


def log_loss(logits: Array, targets: Array) -> Array:
    """Cross-entropy of a sigmoid for a pair of classes, of a softmax for more."""
    if logits.shape[1] == 1:  # shapes are static: no branch is compiled
        first, second = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -(targets * first + (1 - targets) * second)[:, 0]
    return -(targets * jax.nn.log_softmax(logits)).sum(1)


LOSSES = {f.__name__: f for f in (squared_error, brier, absolute, log_loss)}


def loss_fn(
    params: Params, images: Array, labels: Array, loss: str, mean: ArrayLike = 0
) -> Array:
    """Return the mean loss on images, uint8 (N, H, W, C), with labels (N,).

    `mean` (H, W, C) is subtracted from the images once they are divided by 255.
    """
    logits = forward(params, images / 255 - mean)
    # With a single output, one_hot maps label 0 to 1 and label 1 to 0.
    return LOSSES[loss](logits, jax.nn.one_hot(labels, logits.shape[1])).mean()


def sgd(
    state: State, grads: Params, rate: ArrayLike, config: parameters.Train
) -> State:
    """Take a step of SGD with momentum (Polyak 1964).

    l2 adds l2 / 2 * the squared weights to the loss.
    """

    def accelerate(velocity: Array, grad: Array, array: Array) -> Array:
        # Added to the gradient, it acts like a penalty in the loss (unlike in AdamW).
        decay = config.l2 * array if is_weights(array) else 0
        return config.momentum * velocity + (grad + decay)

    params, velocities = state
    velocities = jax.tree.map(accelerate, velocities, grads, params)
    return jax.tree.map(lambda a, v: a - rate * v, params, velocities), velocities


def is_weights(array: Array) -> bool:
    """Return whether an array holds weights, which decay, rather than biases."""
    return array.ndim > 1


# The config is static, as it selects the code to compile, by the loss.
@partial(jax.jit, static_argnames="config")
def train_steps(
    state: State, batches: devices.Rows, mean: ArrayLike, rate: ArrayLike,
    *, config: parameters.Train,
) -> State:  # fmt: skip
    """Run an SGD step for each batch of images (S, B, H, W, C) and labels (S, B)."""

    def train_step(state: State, batch: devices.Rows) -> tuple[State, None]:
        grads = jax.grad(loss_fn)(state[0], *batch, config.loss, mean)
        return sgd(state, grads, rate, config), None

    # scan runs the batches in one compiled loop; in Python, each step would cost a
    # dispatch. Every device needs the new params for its share of the next batches.
    state, _ = jax.lax.scan(train_step, state, batches)
    return jax.lax.with_sharding_constraint(state, devices.everywhere())


@partial(jax.jit, static_argnames="loss")
def eval_steps(
    params: Params, batches: devices.Rows, mean: ArrayLike, loss: str
) -> Array:
    """Return each image's loss, and 1 if it is classified correctly, else 0: (S, B, 2).

    `batches` are uint8 images (S, B, H, W, C) and labels (S, B).
    """

    def eval_step(batch: devices.Rows) -> Array:
        images, labels = batch
        logits = forward(params, images / 255 - mean)
        count = logits.shape[1]
        correct = predicted_labels(logits, outputs_of(loss, count)) == labels
        losses = LOSSES[loss](logits, jax.nn.one_hot(labels, count))
        return jnp.stack([losses, correct], axis=1)

    # Batch by batch, since the floats of all would not fit a processor's cache.
    rows = jax.lax.map(eval_step, batches)
    return jax.lax.with_sharding_constraint(rows, devices.everywhere())


def evaluate(
    params: Params, blocks: devices.Blocks, loss: str, mean: ArrayLike = 0
) -> NDArray[np.float64]:
    """Return the mean loss and the accuracy on a split: (2,)."""
    params = jax.device_put(params, devices.everywhere())
    # Each result awaited: JAX runs asynchronously, and blocks queued ahead would fill
    # the memory.
    rows = [np.asarray(eval_steps(params, x, mean, loss)) for x in blocks]
    images = np.concatenate(rows).reshape(-1, 2)[: blocks.count]
    # In float64: summing many float32 values would lose digits.
    return images.mean(0, dtype=np.float64)


def sample(split: Split, batch_size: int) -> devices.Blocks:
    """Return a split's images to evaluate: all, or SAMPLE drawn at random.

    Always the same ones: then the loss of two epochs differs only by the model.
    """
    rows = np.random.default_rng(0).permutation(len(split.images))[:SAMPLE]
    return devices.Blocks(split, batch_size, np.sort(rows))


def window(config: parameters.Train, count: int) -> int:
    """Return the number of epochs, at least two, that take STEPS steps."""
    return max(2, math.ceil(STEPS / (count // config.batch_size)))


def fall_per_epoch(losses: Sequence[float], window: int) -> float:
    """Return the share by which the loss fell per epoch; negative if it rose.

    Compares the means over the last `window` epochs and the `window` before, since
    minibatches make the loss fluctuate.
    """
    window = min(window, len(losses) // 2)
    before, last = np.mean(np.reshape(losses[-2 * window :], (2, window)), axis=1)
    return float((before - last) / before / window)


def converged(losses: Sequence[float], window: int) -> bool:
    """Return whether the loss falls by less than TOLERANCE in `window` epochs."""
    return not fall_per_epoch(losses, window) * window >= TOLERANCE  # or it is NaN


def constant_epochs(config: parameters.Train) -> int:
    """Return how many epochs at most have the full learning rate."""
    if config.schedule == "constant":
        return config.epochs
    return math.ceil(config.epochs * 2 / 3)


def learning_rates(
    config: parameters.Train, losses: Sequence[float], window: int
) -> Iterator[float]:
    """Yield the learning rate of each epoch; the caller appends its training loss.

    The rate is constant until the loss has converged or `constant_epochs` are over.
    With the schedule `cooldown`, it then falls linearly to 0 for half as many epochs,
    which averages out the noise of the minibatches (Hägele et al. 2024).
    """
    for epoch in range(1, constant_epochs(config) + 1):
        yield config.learning_rate
        if epoch >= 2 * window and converged(losses, window):
            break
    if config.schedule == "cooldown":
        rest = min(math.ceil(epoch / 2), config.epochs - epoch)
        yield from np.linspace(config.learning_rate, 0, rest + 2)[1:-1].tolist()


def fit(
    params: Params, train: Split, valid: Split, config: parameters.Train,
    mean: ArrayLike = 0,
) -> tuple[Params, NDArray[np.float64]]:  # fmt: skip
    """Train on shuffled minibatches, dropping an incomplete last one.

    Returns the params, and a history (epochs + 1, 4) that begins with the untrained
    model: loss and accuracy on a sample of the training images, then of the validation
    images.
    """
    count, size = len(train.images), config.batch_size
    state = params, jax.tree.map(np.zeros_like, params)
    state = jax.device_put(state, devices.everywhere())
    splits = [sample(split, size) for split in (train, valid)]
    history, losses = [], []

    def measure() -> None:
        history.append([evaluate(state[0], x, config.loss, mean) for x in splits])
        losses.append(history[-1][0][0])

    measure()
    rates = learning_rates(config, losses, window(config, count))
    for epoch, rate in enumerate(progress(rates, "train", "epochs", config.epochs), 1):
        # Seeded per epoch, so an epoch's order depends on no earlier one.
        order = np.random.default_rng([config.seed, epoch]).permutation(count)
        order = order[: count // size * size].reshape(-1, size)
        for batches in devices.batches(train, order):
            # JAX runs asynchronously: batches queued ahead would fill the memory.
            jax.block_until_ready(state)
            state = train_steps(state, batches, mean, rate, config=config)
        measure()
    return jax.tree.map(np.asarray, state[0]), np.reshape(history, (-1, 4))


def draw_params(
    seed: int, shape: tuple[int, ...], count: int, settings: Mapping[str, Any]
) -> Params:
    """Return the arrays of model.init, for images (H, W, C) and `count` outputs."""

    def init(seed: ArrayLike) -> Params:
        return model.init(jax.random.key(seed), shape, count, **settings)

    # One program: without jit, JAX would compile each operation by itself.
    return jax.jit(init)(np.uint32(seed))


def check_model(params: Params, shape: tuple[int, ...], count: int) -> None:
    """Raise UserError unless `init` and `forward` return what the stages need.

    That is a dict of float32 arrays, and outputs (N, count) for images (N, *shape).
    """
    arrays = params.values() if isinstance(params, dict) else [params]
    if any(getattr(array, "dtype", None) != jnp.float32 for array in arrays):
        raise UserError("stages/model.py: init has to return a dict of float32 arrays")
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    outputs = jax.eval_shape(forward, params, images)  # computes nothing
    if (found := getattr(outputs, "shape", None)) != (2, count):
        raise UserError(
            f"stages/model.py: forward has to return outputs of shape {(2, count)} for "
            f"2 images, not {found}"
        )


def check_symmetry(params: Params, shape: tuple[int, ...], loss: str) -> None:
    """Raise UserError if units start equal, get equal gradients and so stay equal.

    The gradients are those of random images of this shape, (H, W, C).
    """

    def equal_units(arrays: Params) -> set[str]:
        many = {k: a for k, a in arrays.items() if is_weights(a) and a.shape[-1] > 1}
        # The last axis holds the units.
        return {k for k, a in many.items() if (a == a[..., :1]).all()}

    # Equal units are no problem if gradients differ: a linear model may start at 0.
    if suspects := equal_units(params):
        images = np.random.default_rng(0).integers(0, 256, (64, *shape))
        grads = jax.grad(loss_fn)(params, jnp.asarray(images), np.arange(64) % 2, loss)
        if stuck := suspects & equal_units(grads):
            raise UserError(
                f"stages/model.py: all units of {min(stuck)} start equal, get equal "
                "gradients and so stay equal: draw it at random in init"
            )


def mean_image(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean (H, W, C), in [0, 1], of images (N, H, W, C)."""
    # Sums integers, so that the order of summation cannot matter.
    return (images.sum(0, dtype=np.int64) / (255 * len(images))).astype(np.float32)


def sensitivity(
    params: Params, train: Split, loss: str, mean: ArrayLike = 0, batch_size: int = 64
) -> dict[str, float]:
    """Compare loss and accuracy before and after one pixel's weights grow by 0.01 %.

    Returns {} for a model without a row of weights per pixel.
    """
    name = pixel_weights(params, train.images.shape[1:])
    if name is None:
        return {}
    # The brightest. A mean that is subtracted need not be computed again.
    pixel = np.argmax(mean if np.any(mean) else mean_image(train.images))
    nudged = np.array(params[name])
    nudged[pixel] *= np.float32(1.0001)
    blocks = sample(train, batch_size)
    before, after = (
        evaluate(p, blocks, loss, mean) for p in (params, params | {name: nudged})
    )
    return {
        "pixel": int(pixel),
        "loss_before": before[0],
        "loss_after": after[0],
        "accuracy_before": before[1],
        "accuracy_after": after[1],
    }


def advice(
    losses: Sequence[float], config: parameters.Train, images: int
) -> Iterator[str]:
    """Yield what to change if the training losses (epochs + 1,) rose or still fell."""
    epochs, width = len(losses) - 1, window(config, images)
    # The cooldown itself lowers the loss, and then hardly changes it.
    before = losses[: 1 + constant_epochs(config)]
    if worse := sum(loss > losses[0] for loss in losses[1:]):
        yield (
            f"after {worse} of {epochs} epochs, the training loss was above that of "
            "the untrained model: lower train.learning_rate"
        )
    elif epochs == config.epochs and not converged(before, width):
        yield (
            "not converged: the training loss was still falling by "
            f"{100 * fall_per_epoch(before, width):.2g} % per epoch: raise "
            "train.epochs or train.learning_rate"
        )


@devices.distributed()
def main() -> None:
    """Write the model, its history and the sensitivity test from data/tensors.npz."""
    config = parameters.load(parameters.Train)
    settings = msgspec.structs.asdict(parameters.load(parameters.settings(model.init)))
    # One of several processes reads only its share; verifying would read everything.
    verify = jax.process_count() == 1
    train, valid, classes, _, decoding, _ = tensors.load_tensors(verify=verify)
    devices.check_batch_size(config.batch_size, len(train.images))
    shape, count = train.images.shape[1:], output_count(len(classes))
    meaning = outputs_of(config.loss, count)
    draw = partial(draw_params, config.seed, shape, count)
    untrained = draw(settings)
    check_model(untrained, shape, count)
    check_symmetry(untrained, shape, config.loss)
    mean = np.zeros(shape, np.float32)
    if config.subtract_mean:
        mean = mean_image(train.images)
    params, history = fit(untrained, train, valid, config, mean)
    if not all(np.isfinite(array).all() for array in (*params.values(), history)):
        raise UserError(
            f"train.learning_rate: {config.learning_rate} and train.l2: {config.l2} "
            f"make {config.loss} diverge to NaN or infinity: lower one of them"
        )
    rows = [(epoch, *row) for epoch, row in enumerate(history)]
    trained = TrainedModel(params, mean, classes, meaning, decoding)
    # Scaling zeros would change nothing, but init's own defaults draw random weights.
    all_zero = not any(np.asarray(array).any() for array in untrained.values())
    nudged = draw({}) if all_zero else untrained
    files = {
        artifacts.MODEL: trained.to_arrays(),
        artifacts.HISTORY: [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        artifacts.SENSITIVITY: sensitivity(
            nudged, train, config.loss, mean, config.batch_size
        ),
    }
    if jax.process_index() == 0:  # all processes have the same results; one writes
        artifacts.publish(files)
        for line in advice(history[:, 0].tolist(), config, len(train.images)):
            print(line)
