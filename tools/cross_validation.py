"""Choose the defaults of `train` in params.yaml by cross-validation.

Run `python -m tools.cross_validation` after `dvc repro`: it takes two minutes on two
cores. It uses only the training images, and the stage's own training function.

Each image is scored by the model trained without its fold. The standard error of the
difference between two settings is that of its mean over the images; a setting within
two standard errors of the best counts as equally good.
"""

# ruff: noqa: E402
import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from stages.plumbing import artifacts, npz, parameters, runtime

runtime.pin()  # before importing JAX, which reads the environment

import jax
import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.evaluation.outputs import (
    output_count,
    outputs_of,
    predicted_labels,
    probabilities,
)
from stages.model import Params, forward, init
from stages.plumbing.tensors import Split
from stages.train import LOSSES, fit, mean_image

GRID = {
    "learning_rate": [0.1, 0.2, 0.4, 0.8],
    "momentum": [0.0, 0.9],
    "l2": [1e-4, 3e-4, 5e-4, 1e-3],
    "batch_size": [64, 256],
}
COLUMNS = ["loss", *GRID]
EPSILON = float(np.finfo(np.float64).eps)


class Result(NamedTuple):
    """A setting, and how its models did on each held-out image: (N,)."""

    config: parameters.Train
    log_losses: NDArray[np.float32]
    correct: NDArray[np.bool_]


def make_folds(split: Split, count: int, seed: int) -> Iterator[tuple[Split, Split]]:
    """Shuffle a split; yield the images outside and inside of each of its folds."""
    order = np.random.default_rng(seed).permutation(len(split.images))
    folds = np.array_split(order, count)
    for i, inside in enumerate(folds):
        outside = np.concatenate(folds[:i] + folds[i + 1 :])
        yield (
            Split(*(array[outside] for array in split)),
            Split(*(array[inside] for array in split)),
        )


@np.errstate(all="ignore")  # of models that diverged
def score(
    folds: list[tuple[Split, Split]], params: Params, config: parameters.Train
) -> Result:
    """Train a model without each fold, and score it on that fold."""
    log_losses, correct = [], []
    for outside, inside in folds:
        mean = mean_image(outside.images) * config.subtract_mean
        trained, _ = fit(params, outside, inside, config, mean)
        x = inside.images / np.float32(255) - mean
        logits = np.asarray(forward(trained, x), np.float64)
        meaning, labels = outputs_of(config.loss, logits.shape[1]), inside.labels
        p_actual = probabilities(logits, meaning)[np.arange(len(labels)), labels]
        log_loss = -np.log(np.clip(p_actual, EPSILON, 1))
        finite = np.isfinite(logits).all()  # else it diverged
        log_losses.append(np.where(finite, log_loss, np.inf))
        correct.append(finite & (predicted_labels(logits, meaning) == labels))
    joined = np.concatenate(log_losses).astype(np.float32), np.concatenate(correct)
    return Result(config, *joined)


@np.errstate(invalid="ignore")  # infinite where a model diverged
def difference(values: NDArray, others: NDArray) -> tuple[float, float]:
    """Return the mean difference of values (N,), and its standard error."""
    differences = values.astype(np.float64) - others
    return differences.mean(), differences.std() / np.sqrt(len(differences))


def show(title: str, results: list[Result], best: Result) -> None:
    """Print a table of log loss and accuracy, with their differences from the best."""
    less = f"{'minus the best':>19}"
    columns = [f"{name:>13}" for name in COLUMNS]
    print(f"\n{title}\nlog loss", less, "accuracy", less, *columns)
    for result in results:
        cells = []
        for values, others in zip(result[1:], best[1:], strict=True):
            mean, error = difference(values, others)
            cells.append(f"{values.mean():8.5f} {mean:+9.5f} ± {error:.5f}")
        print(*cells, *(f"{getattr(result.config, name):>13}" for name in COLUMNS))


def rank(results: list[Result], defaults: parameters.Train, top: int) -> None:
    """Print the best settings, and how the defaults compare with them."""
    by_log_loss = sorted(results, key=lambda result: float(result.log_losses.mean()))
    by_accuracy = sorted(results, key=lambda result: -float(result.correct.mean()))
    best = by_log_loss[0]
    show("Best by log loss", by_log_loss[:top], best)
    show("Best by accuracy", by_accuracy[:top], best)
    position = [result.config for result in by_log_loss].index(defaults)
    default = by_log_loss[position]
    title = f"The defaults of params.yaml, number {position + 1} by log loss"
    show(title, [default], best)
    mean, error = difference(default.log_losses, best.log_losses)
    verdict = "within two standard errors of" if mean <= 2 * error else "worse than"
    setting = ", ".join(f"{name}: {getattr(best.config, name)}" for name in COLUMNS)
    print(f"\nThe defaults are {verdict} the best ({setting}).")


def main() -> None:
    """Cross-validate the grid and the current defaults, and print the ranking."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    losses_help = "default: that of params.yaml"
    parser.add_argument("--losses", nargs="+", choices=LOSSES, help=losses_help)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--tensors", default=artifacts.TENSORS, help="training images")
    parser.add_argument("--top", type=int, default=12, help="settings to show")
    arguments = parser.parse_args()
    dtypes = {"train_images": "uint8", "train_labels": "uint8"}
    split = Split(*npz.load_arrays(arguments.tensors, dtypes).values())
    outputs = output_count(int(split.labels.max()) + 1)
    defaults = parameters.load(parameters.Train)
    axes: list[Any] = [arguments.losses or [defaults.loss], *GRID.values()]
    settings = [dict(zip(COLUMNS, values, strict=True)) for values in product(*axes)]
    configs = [msgspec.structs.replace(defaults, **setting) for setting in settings]
    configs = list(dict.fromkeys([*configs, defaults]))
    for config in configs:
        outputs_of(config.loss, outputs)  # raises if unsuitable

    key, shape = jax.random.key(np.uint32(defaults.seed)), split.images.shape[1:]
    initial = msgspec.structs.asdict(parameters.load(parameters.settings(init)))
    params = init(key, shape, outputs, **initial)
    folds = list(make_folds(split, arguments.folds, defaults.seed))
    named = tqdm(configs, "cross-validation", unit=" settings")
    results = [score(folds, params, config) for config in named]
    images = len(split.labels)
    print(f"{len(results)} settings, {images} images in {len(folds)} folds")
    rank(results, defaults, arguments.top)


if __name__ == "__main__":
    runtime.explain_errors("cross_validation")
    main()
