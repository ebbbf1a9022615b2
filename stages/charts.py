"""The page's charts, as points for its template to draw in SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from stages import metrics

WIDTH, HEIGHT = 300, 200
"""The size of a chart without its labels."""
MARKED = 30
"""A line of so many points has a dot at each."""
TICKS = MaxNLocator(5, steps=[1, 2, 5, 10])

Floats = NDArray[np.floating]
Range = tuple[float, float]
Line = tuple[Sequence[float] | Floats, Sequence[float] | Floats]
DIAGONAL = ((0.0, 1.0), (0.0, 1.0))


def pair(positive: NDArray[np.bool_], scores: Mapping[str, Floats], probability: Floats) -> list[dict[str, Any]]:
    """ROC curves of models by their scores (N,), and the calibration of the linear one's probability (N,)."""
    curves: dict[str, Line] = {name: metrics.roc(each, positive) for name, each in scores.items()}
    rates, labels = ("false positive rate", "true positive rate"), ("probability", "share, 95 % interval")
    mean, hits, total = metrics.calibration(probability, positive)
    bars = [(at, *metrics.wilson(int(n), int(of))) for at, n, of in zip(mean, hits, total, strict=True)]
    return [
        chart("ROC", rates, {"chance": DIAGONAL, **curves}),
        chart("ROC, upper left", rates, curves, ((0, 0.2), (0.8, 1))),
        chart("Calibration", labels, {"ideal": DIAGONAL, "linear": (mean, hits / total)}, DIAGONAL, bars),
    ]


def epochs(history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Loss and accuracy from the first epoch on, at no more than 200 epochs."""
    rows = [history[i] for i in np.unique(np.linspace(1, len(history) - 1, 200).astype(int))]
    at = [row["epoch"] for row in rows]
    return [
        chart(
            f"{measure.capitalize()} by epoch",
            ("epoch", measure),
            {split: (at, [row[f"{split}_{measure}"] for row in rows]) for split in ("train", "valid")},
        )
        for measure in ("loss", "accuracy")
    ]


def chart(
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Line],
    ranges: tuple[Range, Range] | None = None,
    bars: Sequence[tuple[float, float, float]] = (),
) -> dict[str, Any]:
    """What the template needs to draw a chart: lines by name, and vertical bars at x from y to y.

    The ranges of x and y are those of the lines unless they are given.
    """
    x, y = ranges or (_range([line[0] for line in lines.values()]), _range([line[1] for line in lines.values()]))
    return {
        "title": title,
        "labels": labels,
        "ticks": [
            [(place(tick, span), f"{tick:.10g}") for tick in TICKS.tick_values(*span) if span[0] <= tick <= span[1]]
            for place, span in ((_across, x), (_down, y))
        ],
        "lines": {
            name: _corners([(_across(a, x), _down(b, y)) for a, b in zip(*line, strict=True)])
            for name, line in lines.items()
        },
        "bars": [(_across(at, x), _down(low, y), _down(high, y)) for at, low, high in bars],
    }


def _range(values: list[Sequence[float] | Floats]) -> Range:
    return float(np.min(np.concatenate(values))), float(np.max(np.concatenate(values)))


def _across(value: float, span: Range) -> str:
    return f"{WIDTH * (value - span[0]) / ((span[1] - span[0]) or 1):.1f}"


def _down(value: float, span: Range) -> str:
    return f"{HEIGHT * (span[1] - value) / ((span[1] - span[0]) or 1):.1f}"


def _corners(points: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The points of a long line without those inside a straight horizontal or vertical run."""
    kept: list[tuple[str, str]] = []
    for point in points:
        if len(points) > MARKED and len(kept) > 1 and any(kept[-2][i] == kept[-1][i] == point[i] for i in (0, 1)):
            kept.pop()
        kept.append(point)
    return kept
