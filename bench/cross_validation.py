"""Choose the defaults of params.yaml's `train` by cross-validation, on the training images alone.

Run it with `python -m bench.cross_validation` where `dvc repro` has made data/tensors.npz: a quarter of an hour for
the whole grid, less with `--quick` or for one of the losses (`--losses log_loss`). Settings that differ in numbers
only (learning rate, momentum, l2) are trained at once, on all folds at once: `jax.vmap` over the very function that
the stage trains with.

Each image is judged by the model whose fold it was left out of. A difference between two settings has the standard
error of its mean over the images, on which both were judged; what is within two of them of the best is as good.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np
from numpy.typing import NDArray

from stages import artifacts, linear, parameters
from stages.descent import Split, descend, optimizer, shuffled
from stages.train import init_params

LEARNING_RATES = [0.01, 0.03, 0.1, 0.2, 0.3, 1.0]
MOMENTUMS = [0.0, 0.9]
L2S = [0.0, 1e-4, 3e-4, 5e-4, 1e-3]
LOSSES = ["log_loss", "brier", "absolute", "squared_error"]
SCHEDULES = ["cosine", "constant"]
BATCH_SIZES = [32, 64, 256]
EPOCHS = [10, 20]
EPS = float(np.finfo(np.float64).eps)

Floats = NDArray[np.float64]


class Judged(NamedTuple):
    """A setting, and for each image the log loss and whether the model was right."""

    setting: dict[str, Any]
    log_losses: NDArray[np.float32]
    right: NDArray[np.bool_]


class Folds(NamedTuple):
    """Equal parts of the training images: to train on, (k, n, …), and to be judged on, (k, m, …)."""

    train: Split
    held: Split


def make_folds(path: Path, count: int, seed: int) -> Folds:
    """The training images of a file of tensors in random order, in `count` folds; a remainder is left out."""
    with np.load(path) as file:
        images, labels = file["train_images"], file["train_labels"]
    order = np.random.default_rng(seed).permutation(len(images))[: len(images) // count * count].reshape(count, -1)
    others = np.stack([np.delete(order, i, axis=0).ravel() for i in range(count)])
    return Folds(Split(images[others], labels[others]), Split(images[order], labels[order]))


def train_all(
    folds: Folds, defaults: parameters.Train, fixed: dict[str, Any], free: list[dict[str, float]]
) -> tuple[NDArray, NDArray]:
    """The weights (folds, settings, …) and biases of a model for every fold and every setting of `free`."""
    classes, pixels = int(folds.train.labels.max()) + 1, folds.train.images[0, 0].size
    size, epochs = fixed["batch_size"], fixed["epochs"]
    images = folds.train.images.shape[1]
    batches = images // size
    params = init_params(jax.random.key(defaults.seed), pixels, 1 if classes == 2 else classes, defaults.init_std)
    steps = partial(descend, loss=fixed["loss"], schedule=fixed["schedule"], steps=epochs * batches)
    over_settings = jax.vmap(steps, in_axes=(0, None, None, 0))
    over_folds = jax.jit(jax.vmap(over_settings, in_axes=(0, 0, 0, None)))
    rates = {name: np.array([setting[name] for setting in free]) for name in free[0]}
    start = params, optimizer(free[0], fixed["schedule"], epochs * batches).init(params)
    state = jax.tree.map(lambda each: np.broadcast_to(each, (len(folds.held.labels), len(free), *each.shape)), start)
    keys = jax.random.split(jax.random.key(defaults.seed), len(folds.held.labels))
    for epoch in range(epochs):
        orders = [np.asarray(shuffled(key, epoch, epochs=epochs, images=images))[: batches * size] for key in keys]
        order = np.stack(orders).reshape(len(keys), batches, size)
        fold = np.arange(len(keys))[:, None, None]
        state = over_folds(state, folds.train.images[fold, order], folds.train.labels[fold, order], rates)
    return np.asarray(state[0].weights), np.asarray(state[0].bias)


def judge(
    folds: Folds, defaults: parameters.Train, fixed: dict[str, Any], free: list[dict[str, float]]
) -> list[Judged]:
    """Train with every setting of `free` on every fold at once, and judge each on what was held out."""
    weights, bias = train_all(folds, defaults, fixed, free)
    images = folds.held.images.reshape(*folds.held.images.shape[:2], -1) / np.float32(255)
    judged = []
    for i, setting in enumerate(free):
        losses, right = [], []
        for fold, labels in enumerate(folds.held.labels):
            raw = (images[fold] @ weights[fold, i] + bias[fold, i]).astype(np.float64)
            if np.isfinite(raw).all():
                chosen = linear.probabilities(raw, fixed["loss"])[np.arange(len(labels)), labels]
                losses.append(-np.log(np.clip(chosen, EPS, 1)))
                right.append(linear.predicted_classes(raw, fixed["loss"]) == labels)
            else:  # it diverged
                losses.append(np.full(len(labels), np.inf))
                right.append(np.zeros(len(labels), bool))
        judged.append(Judged(fixed | setting, np.concatenate(losses).astype(np.float32), np.concatenate(right)))
    return judged


def error(values: NDArray) -> float:
    """The standard error of the mean of values (N,)."""
    return float(values.std() / np.sqrt(len(values)))


def row(judged: Judged, best: Judged) -> str:
    """A line for a setting: log loss and accuracy, each with its difference from the best setting's."""
    more = judged.log_losses.astype(np.float64) - best.log_losses
    hits = judged.right.astype(np.float64) - best.right
    setting = " ".join(f"{value:>13}" for value in judged.setting.values())
    return (
        f"{judged.log_losses.mean():8.5f} {more.mean():+9.5f} ± {error(more):.5f} "
        f"{judged.right.mean():9.5f} {hits.mean():+9.5f} ± {error(hits):.5f} {setting}"
    )


def show(title: str, judged: list[Judged], best: Judged) -> None:
    """Print a table of settings."""
    print(f"\n{title}\n{'log loss':>8} {'more than the best':>19} {'accuracy':>9} {'more than the best':>19}", end=" ")
    print(" ".join(f"{name:>13}" for name in best.setting))
    for each in judged:
        print(row(each, best))


def main() -> None:
    """Judge the grid and the current defaults; print the ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the current schedule, batch size and epochs")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--tensors", type=Path, default=Path(artifacts.TENSORS), help="what preprocess wrote")
    parser.add_argument("--top", type=int, default=12, help="how many settings to show")
    arguments = parser.parse_args()
    defaults = parameters.load(parameters.Train)
    current = {k: v for k, v in msgspec.structs.asdict(defaults).items() if k not in ("seed", "init_std")}
    names = ("loss", "schedule", "batch_size", "epochs")
    own = tuple(current[name] for name in names)
    grid: list[list[Any]] = [[value] for value in own[1:]] if arguments.quick else [SCHEDULES, BATCH_SIZES, EPOCHS]
    combinations = list(dict.fromkeys([*itertools.product(arguments.losses, *grid), own]))
    free = [
        {"learning_rate": rate, "momentum": momentum, "l2": l2}
        for rate, momentum, l2 in itertools.product(LEARNING_RATES, MOMENTUMS, L2S)
    ]
    if (numbers := {name: current[name] for name in free[0]}) not in free:
        free.append(numbers)

    folds = make_folds(arguments.tensors, arguments.folds, defaults.seed)
    judged: list[Judged] = []
    for i, values in enumerate(combinations):
        judged += judge(folds, defaults, dict(zip(names, values, strict=True)), free)
        print(f"\r{i + 1} of {len(combinations)}", end="", flush=True)
    by_log_loss = sorted(judged, key=lambda each: float(each.log_losses.mean()))
    by_accuracy = sorted(judged, key=lambda each: -float(each.right.mean()))
    best = by_log_loss[0]
    print(f"\n{len(judged)} settings, {folds.held.labels.size} images in {arguments.folds} folds")
    show("Best by log loss", by_log_loss[: arguments.top], best)
    show("Best by accuracy", by_accuracy[: arguments.top], best)
    losses = dict.fromkeys(each.setting["loss"] for each in by_accuracy)
    show(
        "Best of each loss by accuracy",
        [next(each for each in by_accuracy if each.setting["loss"] == loss) for loss in losses],
        best,
    )
    place = next(i for i, each in enumerate(by_log_loss) if each.setting == current)
    show(f"The defaults of params.yaml, number {place + 1} by log loss", [by_log_loss[place]], best)
    more = by_log_loss[place].log_losses.astype(np.float64) - best.log_losses
    verdict = "are within two standard errors of" if more.mean() <= 2 * error(more) else "are worse than"
    print(f"\nThe defaults {verdict} the best: {best.setting}")


if __name__ == "__main__":
    main()
