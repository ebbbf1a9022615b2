"""Say in words and tables how two revisions differ."""

import json
import textwrap
from typing import Any

from stages.plumbing import artifacts
from tools.compare.difference import LEVEL, Comparison, Difference, compare
from tools.compare.revision import load

FEW = 20
"""Of fewer images, a bootstrap interval is too short."""
LISTED = 5
"""How many of the changed predictions are listed."""


def sentence(first: str, second: str) -> str:
    """Say whether two revisions or experiments differ by more than chance.

    Raises UserError as `load` does.
    """
    return format_chance(compare(load(first), load(second)))


def format_text(comparison: Comparison) -> str:
    """Format a comparison for a terminal."""
    revs = comparison.first.rev, comparison.second.rev
    lines = []
    for path, rows in differing(comparison).items():
        lines += [*align([[path, *revs, "change"][: len(rows[0])], *rows]), ""]
    for text in [format_chance(comparison), *caveats(comparison)]:
        lines += textwrap.wrap(text, 88, break_on_hyphens=False)
    if rows := changed_predictions(comparison, LISTED):
        count = f"{len(comparison.changed):,}"
        lines += ["", f"Predictions that changed: {count}, the most confident first"]
        lines += align([["image", "actual", *revs], *rows])
    return "\n".join(lines)


def format_chance(comparison: Comparison) -> str:
    """Say whether the difference is more than chance, in one line."""
    first, second, pairs, _, chance, _ = comparison
    if not chance:
        return (
            f"Nothing can be compared: {first.name} and {second.name} have no "
            "validation image in common, of the same pixels and the same class."
        )
    same = len(pairs) == len(first.labels) == len(second.labels)
    images = f"{len(pairs):,} validation images"
    text = f"On the same {images}," if same else f"On the {images} that both have,"
    only_first, only_second, p, accuracy, log_loss = chance
    if only_first or only_second:
        p_text = "< 0.0001" if p < 0.0001 else f"= {p:.2g}"
        points = Difference(*(100 * share for share in accuracy))
        text += (
            f" the difference in accuracy {_verdict(p < LEVEL)}: only {first.name} "
            f"gets {only_first:,} right, only {second.name} {only_second:,} (McNemar's "
            f"exact test, p {p_text}). In percentage points, it is {_interval(points)}."
        )
    else:
        text += " both get the same ones right."
    if not any(log_loss):
        return f"{text} The log loss is the same."
    if len(pairs) < FEW:
        return f"{text} They are too few for an interval of the log loss."
    verdict = _verdict(log_loss.low > 0 or log_loss.high < 0)
    return f"{text} The difference in log loss {verdict}: {_interval(log_loss)}."


def _verdict(significant: bool) -> str:
    return "is more than chance" if significant else "may be chance"


def _interval(difference: Difference) -> str:
    mean, low, high = (f"{x:+.2g}" if x else "0" for x in difference)
    return f"{mean} (95 % interval {low} to {high})"


def caveats(comparison: Comparison) -> list[str]:
    """Say which images are not compared, and whether the classes differ."""
    first, second, pairs, relabelled, _, _ = comparison
    sides = first, second
    rest = {s.name: len(s.labels) - len(pairs) - relabelled for s in sides}
    parts = [f"{count:,} that only {name} has" for name, count in rest.items() if count]
    parts += [f"{relabelled:,} of other classes there"] * bool(relabelled)
    lines = [f"Images that are not compared: {', '.join(parts)}."] * bool(parts)
    if first.model.classes != second.model.classes:
        names = (f"{s.rev}: {', '.join(s.model.classes)}" for s in sides)
        lines.append(f"The classes differ. {'; '.join(names)}.")
    return lines


def differing(comparison: Comparison) -> dict[str, list[list[str]]]:
    """Return the parameters and metrics that differ, by file.

    Rows of the key, both values, and the change of a metric.
    """
    first, second = comparison.first.recorded, comparison.second.recorded
    tables: dict[str, list[list[str]]] = {}
    for path in {**first, **second}:
        old, new = first.get(path, {}), second.get(path, {})
        rows = [
            [key, *_change(old.get(key), new.get(key))][: 3 + path.endswith(".json")]
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        tables |= {path: rows} if rows else {}
    return tables


def _change(old: Any, new: Any) -> list[str]:
    texts = [x if isinstance(x, str) else json.dumps(x) for x in (old, new)]
    if isinstance(old, int | float) and isinstance(new, int | float):
        return [*texts, f"{round(new - old, artifacts.DECIMALS):+.6g}"]
    return [*texts, ""]


def changed_predictions(comparison: Comparison, count: int) -> list[list[str]]:
    """Describe the first of the changed predictions.

    Rows of the index in the second side, the actual class, and both answers.
    """
    first, second = comparison.first, comparison.second
    rows = []
    for pair in comparison.changed[:count]:
        answers = [
            f"{side.model.classes[side.predicted[i]]} ({side.of_predicted[i]:.4f})"
            for side, i in zip((first, second), pair, strict=True)
        ]
        actual = second.model.classes[second.labels[pair[1]]]
        rows.append([str(pair[1]), actual, *answers])
    return rows


def align(rows: list[list[str]]) -> list[str]:
    """Align columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]
