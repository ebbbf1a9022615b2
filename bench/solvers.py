"""Time other trainers to the same log loss, and compare training with the hardware.

Run `python -m bench.solvers` after `dvc repro`: about five minutes. `--torch PYTHON`
adds PyTorch, run by a Python that has torch, NumPy, Pillow and scikit-learn; `--write`
also writes bench/solvers.md.

All get the pixels in the form they like, and the l2 of params.yaml. A scikit-learn
solver gets more iterations until its log loss on the validation images is at most two
per cent above the stage's; its time is the median of several runs with that many. An
epoch is one pass over the images: n_iter_ of scikit-learn's solvers, although some of
them pass over the images more than once per iteration.
"""

import argparse
import json
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, SGDClassifier

from bench.pipeline import ROOT
from bench.tables import machine, show, table
from stages.evaluation import linear, metrics
from stages.plumbing import npz, parameters
from stages.train import Params, fit, init_params

REPEATS = 5
ITERATIONS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
SLACK = 1.02
SOLVERS = ["lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga"]
# Prints the seconds of each run, and the last one's logits of the validation images.
TORCH = f"""
import json, time, torch
from bench.in_torch import read, train
images, labels = map(torch.from_numpy, read("train"))
valid = torch.from_numpy(read("valid")[0])
seconds = []
for _ in range({REPEATS + 1}):
    start = time.perf_counter()
    model = train(images, 1.0 - labels.float())
    seconds.append(time.perf_counter() - start)
with torch.no_grad():
    print(json.dumps([seconds[1:], model(valid)[:, 0].tolist()]))
"""


class Result(NamedTuple):
    """How long a trainer took, and what it learned."""

    name: str
    seconds: list[float]
    """Of each run; none if it did not reach the goal."""
    epochs: int
    logits: NDArray[np.floating]
    """Of the validation images, (N,)."""


def train_in_numpy(
    images: NDArray[np.float32], labels: NDArray[np.uint8], config: parameters.Train
) -> tuple[NDArray[np.float32], np.float32]:
    """Run the stage's steps on images (N, P) in NumPy: weights (P,) and bias."""
    batch_size, steps = config.batch_size, len(images) // config.batch_size
    momentum, l2 = np.float32(config.momentum), np.float32(config.l2)
    generator = np.random.default_rng(config.seed)
    targets = np.float32(1) - labels
    weights, bias = np.zeros(images.shape[1], np.float32), np.float32(0)
    velocity, bias_velocity = np.zeros_like(weights), np.float32(0)
    step = 0
    for _ in range(config.epochs):
        order = generator.permutation(len(images))[: steps * batch_size]
        for batch in order.reshape(steps, batch_size):
            rows = images[batch]
            probability = 1 / (1 + np.exp(-(rows @ weights + bias)))
            gradient = (probability - targets[batch]) / np.float32(batch_size)
            decay = (1 + np.cos(np.pi * step / (config.epochs * steps))) / 2
            rate = np.float32(config.learning_rate * decay)
            velocity = momentum * velocity + gradient @ rows + l2 * weights
            bias_velocity = momentum * bias_velocity + gradient.sum()
            weights, bias = weights - rate * velocity, bias - rate * bias_velocity
            step += 1
    return weights, bias


def timed(function: Callable[[], Any]) -> tuple[list[float], Any]:
    """Warm up, then return the seconds of each run, and what the last one returned."""
    result, seconds = function(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return seconds, result


def as_rows(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images (N, H, W) as rows of pixels in [0, 1]: (N, P)."""
    return np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)


def log_loss(logits: Any, labels: NDArray[np.uint8]) -> float:
    """Return the log loss of logits (N,) of the first class."""
    column = np.asarray(logits, np.float64)[:, None]
    probabilities = linear.probabilities(column, "sigmoid")
    return metrics.log_loss(probabilities[np.arange(len(labels)), labels])


def hardware_limits() -> tuple[float, float]:
    """Return bytes per second that NumPy reads, and FLOP/s of JAX's matrix product."""
    block = np.zeros(2**28, np.uint8)
    read_seconds, _ = timed(lambda: block.view(np.uint64).max())
    matrix = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul)
    product_seconds, _ = timed(lambda: product(matrix, matrix).block_until_ready())
    return block.nbytes / min(read_seconds), 2 * 2048**3 / min(product_seconds)


def measure(torch: str | None) -> tuple[list[Result], tensors.Tensors]:
    """Time all trainers, the stage's own first; also return what they trained on."""
    config = parameters.load(parameters.Train)
    tensors = tensors.load_tensors()
    train, valid = tensors.train, tensors.valid
    untrained = init_params(config.seed, train.images[0].size, 1, config.init_std)

    def fit_params() -> Params:
        return fit(untrained, train, valid, config)[0]

    seconds, params = timed(fit_params)
    logits = linear.logits(valid.images, *params)[:, 0]
    name = "this: JAX, evaluated after each epoch"
    results = [Result(name, seconds, config.epochs, logits)]
    goal = SLACK * log_loss(logits, valid.labels)

    pixels, valid_pixels = as_rows(train.images), as_rows(valid.images)
    run_numpy = partial(train_in_numpy, pixels, train.labels, config)
    seconds, (weights, bias) = timed(run_numpy)
    logits = valid_pixels @ weights + bias
    results.append(Result("NumPy, the same steps", seconds, config.epochs, logits))

    if torch:
        done = subprocess.run(
            [torch, "-c", TORCH], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds, listed = json.loads(done.stdout)
        logits = np.array(listed)
        name = "PyTorch, the same steps"
        results.append(Result(name, seconds, config.epochs, logits))

    for name, make in scikit_learn_models(config.l2, len(pixels)).items():

        def fit_model(iterations: int, make: Any = make) -> Any:
            return make(max_iter=iterations).fit(pixels, train.labels)

        for iterations in ITERATIONS:
            logits = -fit_model(iterations).decision_function(valid_pixels)
            if log_loss(logits, valid.labels) <= goal:
                seconds, model = timed(partial(fit_model, iterations))
                epochs = int(np.max(model.n_iter_))
                results.append(Result(name, seconds, epochs, logits))
                break
        else:
            results.append(Result(name, [], iterations, logits))
    return results, tensors


def scikit_learn_models(l2: float, images: int) -> dict[str, Callable[..., Any]]:
    """Return what makes a model, given max_iter, by the name of the solver."""
    models: dict[str, Callable[..., Any]] = {
        f"scikit-learn, {solver}": partial(
            LogisticRegression, C=1 / (l2 * images), solver=solver, random_state=0
        )
        for solver in SOLVERS
    }
    models["scikit-learn, SGDClassifier"] = partial(
        SGDClassifier, loss="log_loss", alpha=l2, tol=None, random_state=0, average=True
    )
    return models


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has torch")
    parser.add_argument(
        "--write", action="store_true", help="also write bench/solvers.md"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # few iterations are meant not to converge
    results, (train, valid, *_) = measure(arguments.torch)
    own = statistics.median(results[0].seconds)
    rows = []
    for name, seconds, epochs, logits in results:
        accuracy = ((logits > 0) == (valid.labels == 0)).mean()
        times = ["not reached", "", "", ""]
        if seconds:
            median = statistics.median(seconds)
            spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
            throughput = f"{len(train.images) * epochs / median / 1e6:.2f}"
            times = [f"{median:.2f}", spread, f"{median / own:.1f}", throughput]
        quality = [f"{log_loss(logits, valid.labels):.4f}", f"{accuracy:.4f}"]
        rows.append([name, *times, str(epochs), *quality])
    header = [
        *("", "seconds", "spread", "times this", "million images × epochs per second"),
        *("epochs", "log loss", "accuracy"),
    ]
    bandwidth, flops = hardware_limits()
    pixels_per_second = train.images.size * results[0].epochs / own
    lines = [
        f"Measured on {machine()}, by `python -m bench.solvers`.",
        "",
        *table(header, rows),
        "",
        f"This machine reads {bandwidth / 1e9:.1f} GB/s from memory and multiplies at "
        f"{flops / 1e9:.0f} GFLOP/s.",
        "In every epoch training reads one byte per pixel, "
        f"{pixels_per_second / bandwidth:.1%} of the former,",
        f"and takes four operations per pixel, {4 * pixels_per_second / flops:.1%} of "
        "the latter: at this size the steps",
        "cost time because they come one after the other, not because of their "
        "arithmetic.",
    ]
    show("Solvers", lines, ROOT / "bench/solvers.md" if arguments.write else None)


if __name__ == "__main__":
    main()
