"""The page's charts: lines, bars and ticks in the coordinates of an SVG drawing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 300, 200
"""The size of a chart without its labels, as in template.html.j2."""
MAX_DOTS = 30
"""A line of more points has no dot at each point."""
MAX_EPOCHS = 200
"""Of a longer training, this many epochs are drawn."""
DIAGONAL = ((0.0, 1.0), (0.0, 1.0))
REFERENCES = {"chance", "ideal"}
"""The lines that show no data, and have no dots."""

Floats = NDArray[np.floating]
Range = tuple[float, float]
Line = tuple[Sequence[float] | Floats, Sequence[float] | Floats]
"""The x and the y of its points."""
Point = tuple[str, str]


class Curves(NamedTuple):
    """How the scores for the first class of a pair do at every threshold."""

    roc: Mapping[str, tuple[Floats, Floats]]
    """By model: false and true positive rates."""
    calibration: Floats
    """(bins, 4): mean probability, share of the first class, its 95 % interval."""


class Chart(NamedTuple):
    """What the template draws; coordinates are strings."""

    title: str
    labels: tuple[str, str]
    """Of the x and the y axis."""
    ticks: tuple[list[tuple[str, str]], list[tuple[str, str]]]
    """On the x and the y axis: coordinate and text."""
    lines: dict[str, list[Point]]
    dots: list[str]
    """The names of the lines with a dot at each point."""
    bars: list[tuple[str, str, str]]
    """Vertical: x, the lower y, the upper y."""


def pair_charts(curves: Curves) -> list[Chart]:
    """Draw the ROC curves of both models and the calibration of the linear one."""
    rates = ("false positive rate", "true positive rate")
    probability, share, low, high = curves.calibration.T
    calibration: dict[str, Line] = {"ideal": DIAGONAL, "linear": (probability, share)}
    return [
        chart("ROC", rates, {"chance": DIAGONAL, **curves.roc}),
        chart("ROC, upper left", rates, curves.roc, ((0, 0.2), (0.8, 1))),
        chart(
            "Calibration",
            ("probability", "share, 95 % interval"),
            calibration,
            DIAGONAL,
            list(zip(probability, low, high, strict=True)),
        ),
    ]


def epoch_charts(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Draw loss and accuracy by epoch, without the untrained model's."""
    drawn = {int(i) for i in np.linspace(1, len(history) - 1, MAX_EPOCHS)}
    rows = [history[i] for i in sorted(drawn)]
    epochs = [row["epoch"] for row in rows]
    charts = []
    for measure in ("loss", "accuracy"):
        lines: dict[str, Line] = {
            split: (epochs, [row[f"{split}_{measure}"] for row in rows])
            for split in ("train", "valid")
        }
        title = f"{measure.capitalize()} by epoch"
        charts.append(chart(title, ("epoch", measure), lines))
    return charts


def chart(
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Line],
    ranges: tuple[Range, Range] | None = None,
    bars: Sequence[tuple[float, float, float]] = (),
) -> Chart:
    """Scale lines, and vertical bars at x from y to y, to the size of a chart.

    The ranges of x and y are those of the lines unless given.
    """
    x_range, y_range = ranges or (
        _range([x for x, _ in lines.values()]),
        _range([y for _, y in lines.values()]),
    )

    def x_at(value: float) -> str:
        return f"{WIDTH * _fraction(value, x_range):.1f}"

    def y_at(value: float) -> str:
        return f"{HEIGHT * (1 - _fraction(value, y_range)):.1f}"

    def points(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> list[Point]:
        if len(x) <= MAX_DOTS:
            return [(x_at(i), y_at(j)) for i, j in zip(x, y, strict=True)]
        turns = _turns(np.asarray(x), np.asarray(y))
        return _corners((x_at(x[i]), y_at(y[i])) for i in turns)

    dots = [
        name
        for name, (x, _) in lines.items()
        if len(x) <= MAX_DOTS and name not in REFERENCES
    ]
    return Chart(
        title,
        labels,
        (
            [(x_at(tick), f"{tick:.10g}") for tick in ticks(*x_range)],
            [(y_at(tick), f"{tick:.10g}") for tick in ticks(*y_range)],
        ),
        {name: points(*line) for name, line in lines.items()},
        dots,
        [(x_at(x), y_at(low), y_at(high)) for x, low, high in bars],
    )


def ticks(low: float, high: float) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten in a range: 2 to 6.

    An empty range has one tick. Computed in decimals, where 3 times 0.1 is 0.3.
    """
    first, last = Decimal(str(float(low))), Decimal(str(float(high)))
    if first == last:
        return [low]
    finest = (last - first) / 5
    steps = [Decimal(digit).scaleb(finest.adjusted()) for digit in (1, 2, 5, 10)]
    step = min(step for step in steps if step >= finest)
    multiples = range(math.ceil(first / step), math.floor(last / step) + 1)
    return [float(multiple * step) for multiple in multiples]


def _range(values: Sequence[Sequence[float] | Floats]) -> Range:
    joint = np.concatenate(values)
    return float(joint.min()), float(joint.max())


def _fraction(value: float, span: Range) -> float:
    return (value - span[0]) / ((span[1] - span[0]) or 1)


def _turns(x: Floats, y: Floats) -> list[int]:
    """Return the indices of the points that are not inside straight runs.

    What `_corners` does once points are scaled and rounded, but faster: a ROC curve has
    a point for every score, most of them inside runs.
    """
    moves = np.stack([np.diff(x) != 0, np.diff(y) != 0])
    inside = (moves[:, 1:] == moves[:, :-1]).all(0) & ~moves[:, 1:].all(0)
    return np.flatnonzero(np.concatenate([[True], ~inside, [True]])).tolist()


def _corners(points: Iterable[Point]) -> list[Point]:
    """Drop the points inside straight horizontal or vertical runs."""
    kept: list[Point] = []
    for point in points:
        if len(kept) > 1 and any(
            kept[-2][axis] == kept[-1][axis] == point[axis] for axis in (0, 1)
        ):
            kept.pop()
        kept.append(point)
    return kept
