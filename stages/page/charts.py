"""The page's charts: lines, bars and ticks in SVG coordinates."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.evaluation import metrics

SIZE = (300, 200)  # of a chart without its labels, as in template.html.j2
MAX_DOTS = 30  # lines with more points get no dots
MAX_EPOCHS = 200  # longer histories are thinned
DIAGONAL = ((0.0, 1.0), (0.0, 1.0))

Floats = NDArray[np.floating]
Values = Sequence[float] | Floats
Chart = dict[str, Any]  # returned by `chart`, drawn by the template


def pair_charts(
    rankings: Mapping[str, Floats], p_first: Floats, is_first: NDArray[np.bool_]
) -> list[Chart]:
    """Draw the ROC curve of each ranking (N,), and the calibration of `p_first` (N,).

    `p_first` are the trained model's probabilities of the first class of a pair.
    """
    rates = ("false positive rate", "true positive rate")
    roc = {name: metrics.roc(ranking, is_first) for name, ranking in rankings.items()}
    probability, hits, totals = metrics.calibration(p_first, is_first)
    counts = zip(hits.tolist(), totals.tolist(), strict=True)
    low, high = np.transpose([metrics.wilson(*count) for count in counts])
    return [
        chart("ROC", rates, {"chance": DIAGONAL, **roc}),
        chart("ROC, upper left", rates, roc, ((0, 0.2), (0.8, 1))),
        chart(
            "Calibration",
            ("probability", "share, 95 % interval"),
            {"ideal": DIAGONAL, "model": (probability, hits / totals)},
            DIAGONAL,
            (probability, low, high),
        ),
    ]


def epoch_charts(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Draw loss and accuracy by epoch, leaving out the untrained model."""
    # Not np.unique, which would import numpy.ma.
    drawn = sorted({*np.linspace(1, len(history) - 1, MAX_EPOCHS).astype(int)})

    def column(name: str) -> list[float]:
        return [history[i][name] for i in drawn]

    return [
        chart(
            f"{measure.capitalize()} by epoch",
            ("epoch", measure),
            {
                s: (column("epoch"), column(f"{s}_{measure}"))
                for s in ("train", "valid")
            },
        )
        for measure in ("loss", "accuracy")
    ]


def chart(
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, tuple[Values, Values]],
    ranges: Sequence[tuple[float, float]] = (),
    bars: tuple[Values, Values, Values] = ((), (), ()),
) -> Chart:
    """Scale lines (x, y), and vertical bars (x, low y, high y), to SIZE.

    The ranges of x and y are those of the lines unless given.
    """
    if not ranges:
        joined = [
            np.concatenate(values) for values in zip(*lines.values(), strict=True)
        ]
        ranges = [(values.min(), values.max()) for values in joined]

    def scaled(axis: int, values: Values) -> Floats:
        low, high = ranges[axis]
        # 1 avoids 0 / 0 for a constant line. SVG's y axis points down.
        fractions = (np.asarray(values) - low) / ((high - low) or 1)
        return np.round(SIZE[axis] * (1 - fractions if axis else fractions), 1)

    points = {n: np.stack([scaled(0, x), scaled(1, y)]) for n, (x, y) in lines.items()}
    dotted = {name for name, line in points.items() if line.shape[1] <= MAX_DOTS}
    x, *ends = bars
    axes = [(axis, ticks(*ranges[axis])) for axis in (0, 1)]
    return {
        "title": title,
        "labels": labels,
        "ticks": [
            [*zip(scaled(a, v), map("{:.10g}".format, v), strict=True)] for a, v in axes
        ],
        "lines": {n: (p if n in dotted else corners(p)).T for n, p in points.items()},
        "dotted": dotted - {"chance", "ideal"},  # these show no data
        "bars": np.transpose([scaled(0, x), *(scaled(1, y) for y in ends)]),
    }


def ticks(low: float, high: float) -> list[float]:
    """Return the multiples of a round step in a range: 2 to 6, or 1 if it is empty.

    The step is 1, 2 or 5 times a power of ten. Uses decimals, where 3 * 0.1 is 0.3.
    """
    first, last = Decimal(str(float(low))), Decimal(str(float(high)))
    if first == last:
        return [low]
    finest = (last - first) / 5
    steps = [Decimal(digit).scaleb(finest.adjusted()) for digit in (1, 2, 5, 10)]
    step = min(step for step in steps if step >= finest)
    multiples = range(math.ceil(first / step), math.floor(last / step) + 1)
    return [float(multiple * step) for multiple in multiples]


def corners(points: Floats) -> Floats:
    """Drop the points (2, M) inside straight horizontal or vertical runs.

    An ROC curve has a point for every score, most of them inside runs.
    """
    points = points[:, np.r_[True, (np.diff(points) != 0).any(0)]]  # no repeated point
    still = np.diff(points) == 0
    inside = (still[:, 1:] & still[:, :-1]).any(0)
    return points[:, np.r_[True, ~inside, True][: points.shape[1]]]
