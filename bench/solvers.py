"""How long other trainers take to the same log loss, and how close training comes to the machine's limits.

Run it with `python -m bench.solvers` where `dvc repro` has made data/tensors.npz; some five minutes. `--torch PYTHON`
names a Python that has torch, NumPy, Pillow and scikit-learn, `--write` puts the tables into bench/solvers.md too.

Every trainer gets the pixels as it likes them, and the l2 of params.yaml. One that iterates gets more iterations until
its log loss on the validation images is at most two per cent above that of the stage; the time is that of this run
alone, the median of several. An epoch is one pass over the images: n_iter_ for scikit-learn's solvers, although
some of them pass over them more than once an iteration.
"""

import argparse
import json
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression, SGDClassifier

from bench.pipeline import ROOT
from bench.tables import machine, show, table
from stages import artifacts, linear, metrics, parameters
from stages.descent import Params, Split, fit
from stages.train import CHOICES, RATES, init_params

REPEATS = 5
ITERATIONS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
SLACK = 1.02
SOLVERS = ["lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga"]
# Prints the seconds of each run, and the raw predictions of the validation images after the last one.
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


class Row(NamedTuple):
    """A trainer: seconds of each run, passes over the images, and raw predictions of the validation images."""

    name: str
    seconds: list[float]
    epochs: int
    raw: Any


def in_numpy(images: Any, labels: Any, chosen: parameters.Train) -> tuple[Any, float]:
    """The same steps as the stage's, in NumPy: weights (P,) and bias, for images (N, P) in [0, 1]."""
    batches = len(images) // chosen.batch_size
    generator = np.random.default_rng(chosen.seed)
    targets, steps, taken = np.float32(1) - labels, chosen.epochs * batches, 0
    weights, bias = np.zeros(images.shape[1], np.float32), np.float32(0)
    speed, bias_speed = np.zeros_like(weights), np.float32(0)
    for _ in range(chosen.epochs):
        for batch in generator.permutation(len(images))[: batches * chosen.batch_size].reshape(batches, -1):
            rows = images[batch]
            slope = (1 / (1 + np.exp(-(rows @ weights + bias))) - targets[batch]) / np.float32(len(batch))
            rate = np.float32(chosen.learning_rate * (1 + np.cos(np.pi * taken / steps)) / 2)
            speed = np.float32(chosen.momentum) * speed + slope @ rows + np.float32(chosen.l2) * weights
            bias_speed = np.float32(chosen.momentum) * bias_speed + slope.sum()
            weights, bias, taken = weights - rate * speed, bias - rate * bias_speed, taken + 1
    return weights, float(bias)


def timed(function: Callable[[], Any]) -> tuple[list[float], Any]:
    """The seconds of each of several runs after a first one, and what the last one returned."""
    result, seconds = function(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return seconds, result


def log_loss(raw: Any, labels: Any) -> float:
    """Of raw predictions (N,) that are logits of the first class."""
    return metrics.log_loss(linear.probabilities(np.asarray(raw, np.float64)[:, None], "log_loss"), labels)


def limits() -> tuple[float, float]:
    """What the machine can do: bytes a second that NumPy reads, and operations a second of a matrix product of JAX."""
    block = np.zeros(2**28, np.uint8)
    seconds, _ = timed(lambda: block.view(np.uint64).max())
    matrix = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul)
    flop_seconds, _ = timed(lambda: product(matrix, matrix).block_until_ready())
    return block.nbytes / min(seconds), 2 * 2048**3 / min(flop_seconds)


def measure(torch: str | None) -> tuple[list[Row], Any, int]:
    """A row for each trainer that comes to the log loss of the first one; labels to validate; images trained on."""
    chosen = parameters.load(parameters.Train)
    tensors = artifacts.load_tensors()
    train, valid = Split(*tensors[:2]), Split(*tensors[2:4])
    rates, choices = ({name: getattr(chosen, name) for name in names} for names in (RATES, CHOICES))
    key = jax.random.key(chosen.seed)
    start = init_params(key, train.images[0].size, 1, chosen.init_std)
    rows = []

    def ours() -> Params:
        return fit(start, train, valid, jax.random.fold_in(key, 1), rates, **choices)[0]

    seconds, params = timed(ours)
    raw = linear.raw_predictions(valid.images, params.weights, params.bias)[:, 0]
    rows.append(Row("this: JAX, evaluated after each epoch", seconds, chosen.epochs, raw))
    goal = SLACK * log_loss(raw, valid.labels)

    pixels, unseen = (s.images.reshape(len(s.images), -1) / np.float32(255) for s in (train, valid))
    seconds, (weights, bias) = timed(lambda: in_numpy(pixels, train.labels, chosen))
    rows.append(Row("NumPy, the same steps", seconds, chosen.epochs, unseen @ weights + bias))

    if torch:
        done = subprocess.run([torch, "-c", TORCH], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, raw = json.loads(done.stdout)
        rows.append(Row("PyTorch, the same steps", seconds, chosen.epochs, raw))

    weight = 1 / (chosen.l2 * len(pixels))
    makers: dict[str, Callable[[int], Any]] = {
        f"scikit-learn, {solver}": lambda n, solver=solver: LogisticRegression(  # type: ignore[misc]
            C=weight, solver=solver, max_iter=n, random_state=0
        )
        for solver in SOLVERS
    }
    makers["scikit-learn, SGDClassifier"] = lambda n: SGDClassifier(
        loss="log_loss", alpha=chosen.l2, max_iter=n, tol=None, random_state=0, average=True
    )
    for name, make in makers.items():
        for count in ITERATIONS:
            model = make(count).fit(pixels, train.labels)
            raw = -model.decision_function(unseen)
            if log_loss(raw, valid.labels) <= goal:
                seconds, model = timed(lambda make=make, count=count: make(count).fit(pixels, train.labels))  # type: ignore[misc]
                rows.append(Row(name, seconds, int(np.max(model.n_iter_)), -model.decision_function(unseen)))
                break
        else:
            rows.append(Row(name, [], count, raw))
    return rows, valid.labels, len(pixels)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has torch")
    parser.add_argument("--write", action="store_true", help="write bench/solvers.md too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # scikit-learn says that it has not converged, which is meant
    rows, labels, images = measure(arguments.torch)
    ours = statistics.median(rows[0].seconds)
    cells = []
    for name, seconds, epochs, raw in rows:
        right = f"{((np.asarray(raw) > 0) == (labels == 0)).mean():.4f}"
        quality = [f"{log_loss(raw, labels):.4f}", right]
        if seconds:
            median = statistics.median(seconds)
            spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
            times = [f"{median:.2f}", spread, f"{median / ours:.1f}", f"{images * epochs / median / 1e6:.2f}"]
        else:
            times = ["not reached", "", "", ""]
        cells.append([name, *times, str(epochs), *quality])
    header = ["", "seconds", "spread", "times this", "million images × epochs a second", "epochs"]
    bandwidth, flops = limits()
    pixels = 28 * 28
    rate = images * rows[0].epochs / ours
    lines = [
        f"Measured on {machine()}, by `python -m bench.solvers`.",
        "",
        *table([*header, "log loss", "accuracy"], cells),
        "",
        f"The machine reads {bandwidth / 1e9:.1f} GB/s from memory and multiplies at {flops / 1e9:.0f} GFLOP/s.",
        f"Training has to read a byte a pixel and an epoch, {rate * pixels / bandwidth:.1%} of the former, and to take",
        f"four operations a pixel and an epoch, {4 * rate * pixels / flops:.1%} of the latter: at this size it is the",
        "steps that cost, one after the other, and not their arithmetic.",
    ]
    show("Solvers", lines, ROOT / "bench/solvers.md" if arguments.write else None)


if __name__ == "__main__":
    main()
