"""What differs between two revisions, and how far it is chance."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.evaluation import metrics
from stages.plumbing.progress import progress
from tools.compare.revision import Floats, Integers, Side

RESAMPLES, SEED = 9999, 0
LEVEL = 0.05


class Difference(NamedTuple):
    """A mean difference, second minus first, and its 95 % interval."""

    mean: float
    low: float
    high: float


class Chance(NamedTuple):
    """How two models differ on the same images: McNemar's test, and intervals."""

    only_first: int
    """Images that only the first model gets right."""
    only_second: int
    p: float
    accuracy: Difference
    log_loss: Difference


class Comparison(NamedTuple):
    """What differs between two revisions."""

    first: Side
    second: Side
    pairs: Integers
    """(M, 2), the indices on both sides of each image that both have."""
    relabelled: int
    """How many images both have, but with different classes: not among the M."""
    chance: Chance | None
    """None if M is 0."""
    changed: Integers
    """(C, 2), the pairs with another predicted class, the most confident first."""


def compare(first: Side, second: Side) -> Comparison:
    """Compare two sides on the images that both have."""
    pairs, relabelled = match(first, second)
    names, scores, right, losses = [], [], [], []
    for side, rows in zip((first, second), pairs.T, strict=True):
        names.append(np.array(side.model.classes)[side.predicted[rows]])
        scores.append(side.of_predicted[rows])
        right.append(side.predicted[rows] == side.labels[rows])
        of_actual = np.clip(side.of_actual[rows], np.finfo(np.float64).eps, 1)
        losses.append(-np.log(of_actual))  # its mean is metrics.log_loss
    chance = None
    if len(pairs):
        differences = np.stack(
            [np.subtract(*right[::-1], dtype=float), losses[1] - losses[0]]
        )
        # Where an image stands in a block decides the last digits.
        chance = Chance(*metrics.mcnemar(*right), *bootstrap(differences.round(12)))
    changed = np.flatnonzero(names[0] != names[1])
    order = np.argsort(-(scores[0] + scores[1])[changed], kind="stable")
    return Comparison(first, second, pairs, relabelled, chance, pairs[changed[order]])


def match(first: Side, second: Side) -> tuple[Integers, int]:
    """Pair the images of two sides that have the same pixels and the same class.

    Returns the pairs of indices (M, 2), and how many of the others have the same
    pixels, but another class. Of an image that is there twice, each is paired once.
    """
    places: dict[tuple[bytes, str], deque[int]] = defaultdict(deque)
    for i, key in enumerate(_keys(first)):
        places[key].append(i)
    pairs: list[tuple[int, int]] = []
    unpaired: Counter[bytes] = Counter()
    for j, key in enumerate(_keys(second)):
        if places[key]:
            pairs.append((places[key].popleft(), j))
        else:
            unpaired[key[0]] += 1
    left = Counter(digest for (digest, _), rows in places.items() for _ in rows)
    return np.array(pairs, np.int64).reshape(-1, 2), (left & unpaired).total()


def _keys(side: Side) -> Iterator[tuple[bytes, str]]:
    names = (side.model.classes[label] for label in side.labels)
    return zip(side.digests, names, strict=True)


def bootstrap(differences: Floats) -> list[Difference]:
    """Return the means of differences (K, N) over N images, with their 95 % intervals.

    Percentiles of the means of random resamples of the images (Efron 1979), the same
    for each row. SciPy's `bootstrap` returns the same numbers, but takes four times as
    long, and a second to be imported.
    """
    rng, n = np.random.default_rng(SEED), differences.shape[1]
    means = [
        differences.take(rng.integers(0, n, n), axis=1).mean(1)
        for _ in progress(range(RESAMPLES), "bootstrap", "resamples")
    ]
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    columns = differences.mean(1).tolist(), low.tolist(), high.tolist()
    return [Difference(*row) for row in zip(*columns, strict=True)]
