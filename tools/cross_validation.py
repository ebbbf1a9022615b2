"""Choose the defaults of params.yaml's `train` by cross-validation.

Run `python -m tools.cross_validation` after `dvc repro`: a quarter of an hour for the
whole grid, less with `--quick` or for some losses only (`--losses log_loss`). It uses
the training images alone. Settings that differ in their learning rate, momentum and l2
are trained at the same time, on all folds at the same time: `jax.vmap` of the function
that the stage trains with.

An image is scored by the model that was trained without the image's fold. The
difference of two settings has the standard error of its mean over the images; a setting
within two standard errors of the best is as good.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.evaluation import outputs
from stages.plumbing import artifacts, npz, parameters, runtime
from stages.plumbing.tensors import Split
from stages.train import Hyperparams, Params, init_params, sgd, train_steps

LOSSES = ["log_loss", "brier", "absolute", "squared_error"]
SCHEDULES = ["cosine", "constant"]
BATCH_SIZES = [32, 64, 256]
EPOCHS = [10, 20]
LEARNING_RATES = [0.01, 0.03, 0.1, 0.2, 0.3, 1.0]
MOMENTUMS = [0.0, 0.9]
L2S = [0.0, 1e-4, 3e-4, 5e-4, 1e-3]
COLUMNS = ["loss", "schedule", "batch_size", "epochs", *Hyperparams._fields]
EPSILON = float(np.finfo(np.float64).eps)


class Result(NamedTuple):
    """A setting, and how its models did on the images of the held-out folds."""

    config: parameters.Train
    log_losses: NDArray[np.float32]
    """(N,)"""
    correct: NDArray[np.bool_]
    """(N,)"""


class Folds(NamedTuple):
    """The training images in K folds of equal size."""

    train: Split
    """Everything outside a fold: (K, N, …)."""
    held_out: Split
    """The fold: (K, M, …)."""


def make_folds(split: Split, count: int, seed: int) -> Folds:
    """Shuffle a split and divide it into `count` folds; a remainder is left out."""
    order = np.random.default_rng(seed).permutation(len(split.images))
    folds = order[: len(order) // count * count].reshape(count, -1)
    others = np.stack([np.delete(folds, i, axis=0).ravel() for i in range(count)])
    train, held_out = (
        Split(split.images[rows], split.labels[rows]) for rows in (others, folds)
    )
    return Folds(train, held_out)


def train_all(
    folds: Folds, config: parameters.Train, candidates: list[Hyperparams]
) -> Params:
    """Train a model for every fold and candidate: params (K, len(candidates), …)."""
    fold_count, images = folds.train.labels.shape
    size, epochs = config.batch_size, config.epochs
    steps = images // size  # in an epoch
    classes = int(folds.train.labels.max()) + 1
    pixels, outputs = folds.train.images[0, 0].size, 1 if classes == 2 else classes
    params = init_params(np.uint32(config.seed), pixels, outputs, config.init_std)
    opt_state = sgd(candidates[0], config.schedule, epochs * steps).init(params)
    state = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (fold_count, len(candidates), *leaf.shape)),
        (params, opt_state),
    )
    hyperparams = Hyperparams(*np.array(candidates).T)
    run_steps = partial(train_steps, config=config, steps=epochs * steps)
    over_candidates = jax.vmap(run_steps, in_axes=(0, None, 0))
    over_folds = jax.jit(jax.vmap(over_candidates, in_axes=(0, 0, None)))
    fold = np.arange(fold_count)[:, None, None]
    is_valid = np.ones((fold_count, steps), bool)
    generator = np.random.default_rng(config.seed)
    for _ in range(epochs):
        orders = [generator.permutation(images) for _ in range(fold_count)]
        rows = np.stack(orders)[:, : steps * size].reshape(fold_count, steps, size)
        batches = folds.train.images[fold, rows], folds.train.labels[fold, rows]
        state = over_folds(state, (*batches, is_valid), hyperparams)
    return Params(*map(np.asarray, state[0]))


def cross_validate(
    folds: Folds, config: parameters.Train, candidates: list[Hyperparams]
) -> list[Result]:
    """Train all candidates on all folds, and score them on what was held out."""
    weights, bias = train_all(folds, config, candidates)
    pixels = folds.held_out.images.reshape(*folds.held_out.labels.shape, -1)
    images = pixels / np.float32(255)
    results = []
    for i, candidate in enumerate(candidates):
        losses, correct = [], []
        outputs = linear.outputs_of(config.loss, bias.shape[-1])
        for fold, labels in enumerate(folds.held_out.labels):
            logits = images[fold] @ weights[fold, i] + bias[fold, i]
            logits = logits.astype(np.float64)
            if np.isfinite(logits).all():
                probabilities = linear.probabilities(logits, outputs)
                actual = probabilities[np.arange(len(labels)), labels]
                losses.append(-np.log(np.clip(actual, EPSILON, 1)))
                correct.append(linear.predicted_labels(logits, outputs) == labels)
            else:  # it diverged
                losses.append(np.full(len(labels), np.inf))
                correct.append(np.zeros(len(labels), bool))
        setting = msgspec.structs.replace(config, **candidate._asdict())
        log_losses = np.concatenate(losses).astype(np.float32)
        results.append(Result(setting, log_losses, np.concatenate(correct)))
    return results


def standard_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean of values (N,)."""
    with np.errstate(invalid="ignore"):  # infinite where a model diverged
        return float(values.std() / np.sqrt(len(values)))


def difference(values: NDArray, others: NDArray) -> str:
    """Format the mean difference of values (N,), and its standard error."""
    differences = values.astype(np.float64) - others
    return f"{differences.mean():+9.5f} ± {standard_error(differences):.5f}"


def show(title: str, results: list[Result], best: Result) -> None:
    """Print a table of log loss and accuracy, with their differences from the best."""
    header = (
        f"{'log loss':>8} {'minus the best':>19} {'accuracy':>9} {'minus the best':>19}"
    )
    print(f"\n{title}\n{header}", *(f"{name:>13}" for name in COLUMNS))
    for config, log_losses, correct in results:
        print(
            f"{log_losses.mean():8.5f} {difference(log_losses, best.log_losses)}",
            f"{correct.mean():9.5f} {difference(correct, best.correct)}",
            *(f"{getattr(config, name):>13}" for name in COLUMNS),
        )


def rank(results: list[Result], defaults: parameters.Train, top: int) -> None:
    """Print the best settings, and how the defaults compare with them."""
    by_log_loss = sorted(results, key=lambda result: float(result.log_losses.mean()))
    by_accuracy = sorted(results, key=lambda result: -float(result.correct.mean()))
    best = by_log_loss[0]
    show("Best by log loss", by_log_loss[:top], best)
    show("Best by accuracy", by_accuracy[:top], best)
    best_of_loss: dict[str, Result] = {}
    for result in by_accuracy:
        best_of_loss.setdefault(result.config.loss, result)
    show("Best of each loss by accuracy", list(best_of_loss.values()), best)
    position = [result.config for result in by_log_loss].index(defaults)
    default = by_log_loss[position]
    title = f"The defaults of params.yaml, number {position + 1} by log loss"
    show(title, [default], best)
    more = default.log_losses.astype(np.float64) - best.log_losses
    as_good = more.mean() <= 2 * standard_error(more)
    verdict = "within two standard errors of" if as_good else "worse than"
    setting = ", ".join(f"{name}: {getattr(best.config, name)}" for name in COLUMNS)
    print(f"\nThe defaults are {verdict} the best ({setting}).")


def main() -> None:
    """Cross-validate the grid and the current defaults, and print the ranking."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="keep the current schedule, batch size and number of epochs",
    )
    losses_help = "by default, all that can learn the classes"
    parser.add_argument("--losses", nargs="+", choices=LOSSES, help=losses_help)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--tensors",
        type=Path,
        default=Path(artifacts.TENSORS),
        help="a file that preprocess wrote",
    )
    parser.add_argument("--top", type=int, default=12, help="how many settings to show")
    arguments = parser.parse_args()
    dtypes = {"train_images": "uint8", "train_labels": "uint8"}
    tensors = npz.load_arrays(str(arguments.tensors), dtypes)
    classes = int(tensors["train_labels"].max()) + 1
    outputs = 1 if classes == 2 else classes
    able = [loss for loss in LOSSES if outputs == 1 or loss != "absolute"]
    losses = arguments.losses or able
    defaults = parameters.load(parameters.Train)
    schedules, sizes, epochs = SCHEDULES, BATCH_SIZES, EPOCHS
    if arguments.quick:
        schedules, sizes = [defaults.schedule], [defaults.batch_size]
        epochs = [defaults.epochs]
    grid = itertools.product(losses, schedules, sizes, epochs)
    settings = [dict(zip(COLUMNS, values, strict=False)) for values in grid]
    configs = [msgspec.structs.replace(defaults, **setting) for setting in settings]
    configs = list(dict.fromkeys([*configs, defaults]))
    for config in configs:
        linear.outputs_of(config.loss, outputs)  # or refuse it
    product = itertools.product(LEARNING_RATES, MOMENTUMS, L2S)
    candidates = list(itertools.starmap(Hyperparams, product))
    own = Hyperparams(defaults.learning_rate, defaults.momentum, defaults.l2)
    if own not in candidates:
        candidates.append(own)

    folds = make_folds(Split(*tensors.values()), arguments.folds, defaults.seed)
    results: list[Result] = []
    for config in tqdm(configs, "cross-validation", unit=" programs"):
        results += cross_validate(folds, config, candidates)
    images = folds.held_out.labels.size
    print(f"{len(results)} settings, {images} images in {arguments.folds} folds")
    rank(results, defaults, arguments.top)


if __name__ == "__main__":
    runtime.explain_errors("cross_validation")
    main()
