"""Learn a linear model by stochastic gradient descent: a weight for each pixel, and a bias."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from stages import parameters
from stages.artifacts import HISTORY, LINEAR, SENSITIVITY, load_tensors, publish
from stages.descent import Params, Split, fit, predictions
from stages.linear import cut
from stages.losses import LOSSES, accuracy
from stages.running import Refusal

RATES = ("learning_rate", "momentum", "l2")
CHOICES = ("loss", "schedule", "batch_size", "epochs")
"""Another choice is another program to compile; another rate runs the same one."""


def init_params(key: Array, pixels: int, outputs: int, std: float | Array) -> Params:
    """Normally distributed weights and bias, each with a new key, split off as in the notebook."""
    key, weights_key = jax.random.split(key)
    key, bias_key = jax.random.split(key)
    return Params(
        std * jax.random.normal(weights_key, (pixels, outputs)), std * jax.random.normal(bias_key, (outputs,))
    )


@partial(jax.jit, static_argnames=("loss", "threshold"))
def sensitivity(params: Params, train: Split, *, loss: str, threshold: float) -> dict[str, Array]:
    """Why accuracy is no loss: both of them before and after one weight grows by a ten-thousandth.

    The notebook's experiment, with the weight of the pixel that is brightest on average.
    """
    pixel = train.images.mean(0).argmax()
    nudged = params._replace(weights=params.weights.at[pixel].multiply(1.0001))
    result = {"pixel": pixel}
    for name, each in {"before": params, "after": nudged}.items():
        raw = predictions(each, train.images)
        result[f"accuracy_{name}"] = accuracy(raw, train.targets, threshold)
        result[f"loss_{name}"] = LOSSES[loss](raw, train.targets)
    return result


@partial(jax.jit, static_argnames="count")
def split(images: Array, labels: Array, count: int) -> Split:
    """Images (N, H, W) and labels (N,), both uint8, as training wants them."""
    targets = (labels[:, None] == jnp.arange(1 if count == 2 else count)).astype(jnp.float32)
    return Split(images.reshape(len(images), -1) / 255, targets)


@partial(jax.jit, static_argnames=("count", *CHOICES))
def learn(
    tensors: tuple[Array, ...], seed: Array, init_std: float, rates: dict[str, float], *, count: int, **choices: Any
) -> tuple[Params, Array, dict[str, Array]]:
    """The trained params, the history and the experiment, as one program: compiling five takes twice as long.

    `tensors` are the images and labels to train, then those to validate.
    """
    train, valid = split(*tensors[:2], count), split(*tensors[2:], count)
    key, size = jax.random.key(seed), (train.images.shape[1], train.targets.shape[1])
    params = init_params(key, *size, init_std)
    params, history = fit(params, train, valid, jax.random.fold_in(key, 1), **rates, **choices)
    # The lesson is about a model that still has to learn; one of zeros has no weight to nudge.
    untrained = init_params(key, *size, jnp.where(init_std == 0, 1.0, init_std))
    loss = choices["loss"]
    return params, history, sensitivity(untrained, train, loss=loss, threshold=cut(loss))


def main() -> None:
    """Write models/linear.npz, metrics/history.csv and metrics/sensitivity.json from data/tensors.npz."""
    chosen = parameters.load(parameters.Train)
    *tensors, classes = load_tensors()
    if chosen.batch_size > (images := len(tensors[0])):
        msg = f"train.batch_size: {chosen.batch_size} is more than the training images: allowed are 1 to {images}"
        raise Refusal(msg)
    rates, choices = ({name: getattr(chosen, name) for name in names} for names in (RATES, CHOICES))
    params, history, nudge = learn(
        tuple(tensors), np.uint32(chosen.seed), chosen.init_std, rates, count=len(classes), **choices
    )
    if not all(np.isfinite(array).all() for array in (*params, history)):
        msg = f"train.learning_rate: {chosen.learning_rate} makes {chosen.loss} diverge to NaN or infinity: lower it"
        raise Refusal(msg)
    columns = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")
    rows = [{"epoch": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(np.asarray(history))]
    publish(
        {
            LINEAR: {name: np.asarray(array) for name, array in params._asdict().items()},
            HISTORY: rows,
            SENSITIVITY: {name: np.asarray(nudge[name]).item() for name in sorted(nudge, reverse=True)},
        }
    )


if __name__ == "__main__":
    main()
