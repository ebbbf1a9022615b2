"""Choose the defaults of `train` in params.yaml by cross-validation.

Run `python -m tools.cross_validation` after `dvc repro`. The whole grid takes a quarter
of an hour; `--quick` or fewer losses (`--losses log_loss`) take less. Only the training
images are used. Settings that differ only in learning rate, momentum and l2 are trained
together, on all folds, by `jax.vmap` over the stage's own training function.

Each image is scored by the model trained without its fold. The standard error of the
difference between two settings is that of its mean over the images; a setting within
two standard errors of the best counts as equally good.
"""

# ruff: noqa: E402
import argparse
from functools import partial
from itertools import product
from typing import NamedTuple

from stages.plumbing import artifacts, npz, parameters, runtime

runtime.pin()  # before importing JAX, which reads the environment

import jax
import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.evaluation.outputs import outputs_of, predicted_labels, probabilities
from stages.model import Params, forward, init
from stages.plumbing.tensors import Split
from stages.train import LOSSES, Hyperparams, sgd, train_steps

SCHEDULES, BATCH_SIZES, EPOCHS = ["cosine", "constant"], [32, 64, 256], [10, 20]
LEARNING_RATES, MOMENTUMS = [0.01, 0.03, 0.1, 0.2, 0.3, 1.0], [0.0, 0.9]
L2S = [0.0, 1e-4, 3e-4, 5e-4, 1e-3]
COLUMNS = ["loss", "schedule", "batch_size", "epochs", *Hyperparams._fields]
EPSILON = float(np.finfo(np.float64).eps)


class Result(NamedTuple):
    """A setting, and how its models did on each held-out image: (N,)."""

    config: parameters.Train
    log_losses: NDArray[np.float32]
    correct: NDArray[np.bool_]


def make_folds(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Shuffle a split and divide it into K folds of equal size, dropping the remainder.

    Returns the images outside each fold, (K, N, …), and inside it, (K, M, …).
    """
    order = np.random.default_rng(seed).permutation(len(split.images))
    folds = order[: len(order) // count * count].reshape(count, -1)
    others = np.stack([np.delete(folds, i, axis=0).ravel() for i in range(count)])
    outside, inside = (Split(*(array[i] for array in split)) for i in (others, folds))
    return outside, inside


def train_all(
    train: Split, params: Params, config: parameters.Train, trials: list[Hyperparams]
) -> Params:
    """Train on K splits (K, N, …), each trial on each: arrays (K, len(trials), …)."""
    fold_count, images = train.labels.shape
    size, epochs = config.batch_size, config.epochs
    steps = images // size  # per epoch
    run_steps = partial(train_steps, config=config, steps=epochs * steps)
    # vmap turns a function of one trial on one fold into one of all trials and folds.
    over_trials = jax.vmap(run_steps, in_axes=(0, None, 0))
    over_folds = jax.jit(jax.vmap(over_trials, in_axes=(0, 0, None)))
    hyperparams = Hyperparams(*np.array(trials).T)
    optimizer = sgd(trials[0], config.schedule, epochs * steps)
    state, shape = (params, optimizer.init(params)), (fold_count, len(trials))
    state = jax.tree.map(lambda a: np.broadcast_to(a, (*shape, *a.shape)), state)
    fold = np.arange(fold_count)[:, None, None]
    generator = np.random.default_rng(config.seed)
    for _ in range(epochs):
        orders = [generator.permutation(images) for _ in range(fold_count)]
        rows = np.stack(orders)[:, : steps * size].reshape(fold_count, steps, size)
        batches = train.images[fold, rows], train.labels[fold, rows]
        state = over_folds(state, batches, hyperparams)
    return jax.tree.map(np.asarray, state[0])


@np.errstate(all="ignore")  # of models that diverged
def score(held_out: Split, params: Params, config: parameters.Train) -> Result:
    """Score K models, arrays (K, …), each on the fold that was held out from it."""
    log_losses, correct = [], []
    for fold, (images, labels) in enumerate(zip(*held_out, strict=True)):
        own = {name: array[fold] for name, array in params.items()}
        logits = np.asarray(forward(own, images / np.float32(255)), np.float64)
        meaning = outputs_of(config.loss, logits.shape[1])
        p_actual = probabilities(logits, meaning)[np.arange(len(labels)), labels]
        log_loss = -np.log(np.clip(p_actual, EPSILON, 1))
        converged = np.isfinite(logits).all()
        log_losses.append(np.where(converged, log_loss, np.inf))
        correct.append(converged & (predicted_labels(logits, meaning) == labels))
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
    best_of_loss = {result.config.loss: result for result in reversed(by_accuracy)}
    show("Best of each loss by accuracy", list(best_of_loss.values()), best)
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
    quick_help = "keep the current schedule, batch size and number of epochs"
    parser.add_argument("--quick", action="store_true", help=quick_help)
    losses_help = "default: all that can learn the classes"
    parser.add_argument("--losses", nargs="+", choices=LOSSES, help=losses_help)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--tensors", default=artifacts.TENSORS, help="training images")
    parser.add_argument("--top", type=int, default=12, help="settings to show")
    arguments = parser.parse_args()
    dtypes = {"train_images": "uint8", "train_labels": "uint8"}
    split = Split(*npz.load_arrays(arguments.tensors, dtypes).values())
    classes = int(split.labels.max()) + 1
    outputs = 1 if classes == 2 else classes
    defaults = parameters.load(parameters.Train)
    able = [loss for loss in LOSSES if outputs == 1 or loss != "absolute"]
    axes = [arguments.losses or able, SCHEDULES, BATCH_SIZES, EPOCHS]
    grid = product(*axes[: 1 if arguments.quick else None])
    settings = [dict(zip(COLUMNS, values, strict=False)) for values in grid]
    configs = [msgspec.structs.replace(defaults, **setting) for setting in settings]
    configs = list(dict.fromkeys([*configs, defaults]))
    for config in configs:
        outputs_of(config.loss, outputs)  # raises if unsuitable
    own = Hyperparams(defaults.learning_rate, defaults.momentum, defaults.l2)
    trials = [Hyperparams(*t) for t in product(LEARNING_RATES, MOMENTUMS, L2S)]
    trials = list(dict.fromkeys([*trials, own]))

    train, held_out = make_folds(split, arguments.folds, defaults.seed)
    key, shape = jax.random.key(np.uint32(defaults.seed)), split.images.shape[1:]
    initial = msgspec.structs.asdict(parameters.load(parameters.settings(init)))
    params = init(key, shape, outputs, **initial)
    results = []
    for config in tqdm(configs, "cross-validation", unit=" programs"):
        trained = train_all(train, params, config, trials)
        for i, trial in enumerate(trials):
            setting = msgspec.structs.replace(config, **trial._asdict())
            one = {name: array[:, i] for name, array in trained.items()}
            results.append(score(held_out, one, setting))
    images = held_out.labels.size
    print(f"{len(results)} settings, {images} images in {arguments.folds} folds")
    rank(results, defaults, arguments.top)


if __name__ == "__main__":
    runtime.explain_errors("cross_validation")
    main()
