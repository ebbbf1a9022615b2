"""Learn a linear model by stochastic gradient descent: a weight for each pixel, and a bias."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from stages import devices, parameters
from stages.artifacts import HISTORY, LINEAR, SENSITIVITY, load_tensors, publish
from stages.descent import Params, Split, evaluate, fit
from stages.running import Refusal

RATES = ("learning_rate", "momentum", "l2")
CHOICES = ("loss", "schedule", "batch_size", "epochs")
"""Another choice is another program to compile; another rate runs the same one."""


@partial(jax.jit, static_argnames=("pixels", "outputs"))
def init_params(key: Array, pixels: int, outputs: int, std: float) -> Params:
    """Normally distributed weights and bias, each with a new key, split off as in the notebook."""
    key, weights_key = jax.random.split(key)
    key, bias_key = jax.random.split(key)
    return Params(
        std * jax.random.normal(weights_key, (pixels, outputs)), std * jax.random.normal(bias_key, (outputs,))
    )


@jax.jit
def pixel_sums(images: Array, count: int) -> Array:
    """The sum of each pixel (H·W,) over the first `count` images (N, H, W)."""
    chosen = jnp.where(jnp.arange(len(images))[:, None] < count, images.reshape(len(images), -1), 0)
    return devices.alike(chosen.astype(jnp.int32).sum(0))


def sensitivity(params: Params, train: Split, loss: str) -> dict[str, float]:
    """Why accuracy is no loss: both of them before and after one weight grows by a ten-thousandth.

    The notebook's experiment, with the weight of the pixel that is brightest on average.
    """
    sums = [pixel_sums(images, count) for images, _, count in devices.blocks(*train)]
    pixel = np.array(sums, np.int64).sum(0).argmax()
    nudged = np.array(params.weights)
    nudged[pixel] *= np.float32(1.0001)
    result: dict[str, float] = {"pixel": int(pixel)}
    for name, each in {"before": params, "after": params._replace(weights=nudged)}.items():
        result[f"loss_{name}"], result[f"accuracy_{name}"] = evaluate(devices.everywhere(each), train, loss).tolist()
    return result


def learn(train: Split, valid: Split, count: int, chosen: parameters.Train) -> tuple[Params, NDArray, dict[str, float]]:
    """The trained params for `count` classes, the history that `fit` returns, and the experiment."""
    rates, choices = ({name: getattr(chosen, name) for name in names} for names in (RATES, CHOICES))
    key, size = jax.random.key(chosen.seed), (train.images[0].size, 1 if count == 2 else count)
    params = init_params(key, *size, chosen.init_std)
    params, history = fit(params, train, valid, jax.random.fold_in(key, 1), rates, **choices)
    # The lesson is about a model that still has to learn; one of zeros has no weight to nudge.
    untrained = init_params(key, *size, chosen.init_std or 1.0)
    return params, history, sensitivity(untrained, train, chosen.loss)


@devices.joined()
def main() -> None:
    """Write models/linear.npz, metrics/history.csv and metrics/sensitivity.json from data/tensors.npz."""
    chosen = parameters.load(parameters.Train)
    tensors = load_tensors(whole=jax.process_count() == 1)
    train, valid = Split(*tensors[:2]), Split(*tensors[2:4])
    batch, images, count = chosen.batch_size, len(train.images), jax.device_count()
    if batch > images:
        msg = f"train.batch_size: {batch} is more than the training images: allowed are 1 to {images}"
        raise Refusal(msg)
    if batch % count:
        msg = f"train.batch_size: {batch} cannot be divided among {count} devices: take a multiple of {count}"
        raise Refusal(msg)
    params, history, experiment = learn(train, valid, len(tensors.classes), chosen)
    if not all(np.isfinite(array).all() for array in (*params, history)):
        msg = f"train.learning_rate: {chosen.learning_rate} makes {chosen.loss} diverge to NaN or infinity: lower it"
        raise Refusal(msg)
    columns = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")
    rows = [{"epoch": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(history)]
    if jax.process_index() == 0:
        publish({LINEAR: params._asdict(), HISTORY: rows, SENSITIVITY: dict(sorted(experiment.items(), reverse=True))})


if __name__ == "__main__":
    main()
