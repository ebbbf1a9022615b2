"""Report what changed between two revisions, and whether it is significant.

`python -m tools.compare [REV] [REV] [--html FILE]` compares HEAD with the workspace, a
revision with the workspace, or two revisions: commits, branches, tags or experiments.
It reads the stored results of both and runs no model, so any two can be compared.
"""

import argparse
import csv
import glob
import io
import json
import os
import tempfile
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.evaluation import metrics
from stages.plumbing import artifacts, npz, parameters, runtime, tensors
from stages.plumbing.errors import UserError
from stages.plumbing.progress import progress
from tools import git

WORKSPACE, LOCK = "workspace", "dvc.lock"
RESAMPLES, SEED, LEVEL = 9999, 0, 0.05
FEW = 20  # with fewer images, a bootstrap interval is too narrow
LISTED, SHOWN = 5, 48  # changed predictions in the text and on the page
COLUMNS = {"index": int, "name": str, "digest": str, "actual": str, "predicted": str}
COLUMNS |= {"p_predicted": float, "p_actual": float}

Floats = NDArray[np.float64]
Rows = Any  # of metrics/predictions.csv, a np.recarray


class Revision(NamedTuple):
    """The stored files and results of a revision."""

    rev: str
    fs: Any  # its files, a DVCFileSystem
    values: dict[str, dict[str, Any]]  # parameters and metrics, by file and dotted key
    predictions: Rows
    prefix: str = ""  # of the project's paths in `fs`, in a repository of several


def load(rev: str) -> Revision:
    """Load a revision, or "workspace"; raise UserError if it cannot be compared."""
    # Deferred: DVC wraps stdout on import, so runtime.explain_errors must run first.
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path, values, prefix = "", {}, git.prefix()
    try:
        if not rev:  # DVC would take the workspace
            raise ValueError("its name is empty")
        if rev == WORKSPACE:
            prefix = ""
            parameters.read("")  # names the line that is not valid YAML
            fs = DVCFileSystem()
            if stale := ", ".join(fs.repo.status()):
                raise UserError(
                    f"the {rev} is out of date ({stale}): run dvc repro first"
                )
        else:
            git.fetch_missing(rev)
            fs = DVCFileSystem(rev=rev, subrepos=True)
        metrics_files = sorted(fs.glob(f"{glob.escape(prefix)}metrics/*.json"))
        files = [name.removeprefix(prefix) for name in metrics_files]
        for path in [parameters.FILE, *files, LOCK]:
            parse = json.loads if path.endswith(".json") else YAML(typ="safe").load
            values[path] = dict(flatten(parse(fs.read_text(prefix + path, "utf-8"))))
        path = artifacts.PREDICTIONS
        text = fs.read_text(prefix + path, "utf-8", newline="")
        predictions = parse_predictions(text)
    except FileNotFoundError:
        reason = "does not exist: compare a later revision"
        if fs.isdvc(prefix + path):
            reason = "is neither in DVC's cache nor in a remote: run dvc fetch "
            reason += "--all-commits, or check it out and run dvc repro"
        raise UserError(f"{path} of {rev} {reason}") from None
    except (DvcException, YAMLError, AttributeError, ValueError, csv.Error) as error:
        reason = "no commit" if isinstance(error, AttributeError) else str(error)
        what, remedy = f"revision {rev}", "use one that git log or dvc exp show lists"
        if rev == WORKSPACE:
            what, remedy = f"the {rev}", "correct the file, or restore it from Git"
        elif path:
            what, remedy = f"{path} of {rev}", "compare a later revision"
        raise UserError(f"DVC cannot read {what} ({reason}): {remedy}") from error
    params = values[parameters.FILE]
    for name, value in values.pop(LOCK).items():
        key = name.partition(f".params.{parameters.FILE}.")[2]
        if params.get(key, value) != value:
            raise UserError(
                f"{rev} has {key}: {params[key]}, but its results are of {value}: "
                "check it out, run dvc repro and commit"
            )
    return Revision(rev, fs, values, predictions, prefix)


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with dotted keys."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, item in value.items():
        yield from flatten(item, f"{key}.{name}" if key else str(name))


def parse_predictions(text: str) -> Rows:
    """Parse metrics/predictions.csv; raise ValueError or csv.Error if it is damaged."""
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    if header == [name for name in COLUMNS if name != "name"]:  # an older format
        header, rows = [*COLUMNS], [[row[0], *row] for row in rows]
    if header != list(COLUMNS):
        raise ValueError(f"another format, with the columns {', '.join(header)}")
    columns = zip(zip(*[header, *rows], strict=True), COLUMNS.values(), strict=True)
    arrays: Any = [np.array(values, kind) for (_, *values), kind in columns]
    if not all(((p >= 0) & (p <= 1)).all() for p in arrays[-2:]):
        raise ValueError("a probability is not between 0 and 1")
    return np.rec.fromarrays(arrays, names=header)  # type: ignore[call-overload]


def match(first: Rows, second: Rows) -> tuple[Rows, Rows, int]:
    """Pair the rows (M,) of images with the same digest and the same actual class.

    An image that occurs twice in both makes two pairs. Also returns the number of
    images that occur in both, but with different classes.
    """
    sides = []
    for rows in (first, second):
        copies: defaultdict[tuple[str, str], Iterator[int]] = defaultdict(count)
        keys = zip(rows.digest, rows.actual, strict=True)
        sides.append({(*key, next(copies[key])): i for i, key in enumerate(keys)})
    both = [key for key in sides[1] if key in sides[0]]
    i, j = ([side[key] for key in both] for side in sides)
    old, new = (Counter(key[0] for key in side.keys() - set(both)) for side in sides)
    return first[i], second[j], (old & new).total()


def compare(first: Revision, second: Revision) -> tuple[str, Rows, Rows]:
    """Return the differences as text, and both rows (C,) of changed predictions."""
    old, new, relabelled = match(first.predictions, second.predictions)
    names, rest, classes = [], [], []
    for rev, _, _, rows, _ in (first, second):
        names.append(f"the {rev}" if rev == WORKSPACE else rev)
        classes.append(", ".join(dict.fromkeys(rows.actual)))
        if n := len(rows) - len(old) - relabelled:
            rest.append(f"{n:,} that only {names[-1]} has")
    rest += [f"{relabelled:,} with different classes"] * bool(relabelled)
    paragraphs = [sentence(names, old, new, whole=not rest)]
    paragraphs += [f"Images that are not compared: {', '.join(rest)}."] * bool(rest)
    if classes[0] != classes[1]:
        lists = f"{first.rev}: {classes[0]}; {second.rev}: {classes[1]}"
        paragraphs.append(f"The classes differ. {lists}.")
    # Not if nothing can be compared: with other data, almost every parameter differs.
    lines = differing(first, second) if len(old) else []
    for text in paragraphs:
        lines += textwrap.wrap(text, 88, break_on_hyphens=False)
    changed = np.flatnonzero(old.predicted != new.predicted)
    sure = (old.p_predicted + new.p_predicted)[changed]
    changed = changed[np.argsort(-sure, kind="stable")]  # most confident first
    old, new = old[changed], new[changed]
    if len(changed):
        title = f"Predictions that changed: {len(changed):,}, the most confident first"
        rows = [["image", "actual", first.rev, second.rev]]
        for name, *answer in answers(old[:LISTED], new[:LISTED]):
            rows.append([tensors.shorten(name), *answer])
        lines += ["", title, *align(rows)]
    return "\n".join(lines), old, new


def sentence(names: list[str], old: Rows, new: Rows, whole: bool) -> str:
    """Say whether two models differ significantly on the same images (M,)."""
    if not len(old):
        return (
            f"Nothing can be compared: {' and '.join(names)} have no validation image "
            "in common, with the same pixels and the same class."
        )
    right, other_right = (rows.predicted == rows.actual for rows in (old, new))
    # Clipped as in metrics.log_loss.
    logs = [np.log(np.maximum(r.p_actual, np.finfo(float).eps)) for r in (old, new)]
    differences = [100.0 * other_right - 100.0 * right, logs[0] - logs[1]]
    points, log_loss = bootstrap(np.stack(differences))
    only_first, only_second, p = metrics.mcnemar(right, other_right)
    verdict = {True: "is more than chance", False: "may be chance"}
    images = f"{len(old):,} validation images"
    text = f"On the same {images}," if whole else f"On the {images} that both have,"
    if only_first or only_second:
        p_text = "< 0.0001" if p < 0.0001 else f"= {p:.2g}"
        text += (
            f" the difference in accuracy {verdict[p < LEVEL]}: only {names[0]} gets "
            f"{only_first:,} right, only {names[1]} {only_second:,} (McNemar's exact "
            f"test, p {p_text}). In percentage points, it is {interval(points)}."
        )
    else:
        text += " both get the same ones right."
    if not log_loss.any():
        return f"{text} The log loss is the same."
    if len(old) < FEW:
        return f"{text} They are too few for an interval of the log loss."
    significant = bool(log_loss[1] > 0 or log_loss[2] < 0)
    text += f" The difference in log loss {verdict[significant]}:"
    return f"{text} {interval(log_loss)}."


def interval(estimate: Floats) -> str:
    """Format a mean and the ends of its 95 % interval."""
    mean, low, high = (f"{x:+.2g}" if x else "0" for x in estimate)
    return f"{mean} (95 % interval {low} to {high})"


def bootstrap(differences: Floats) -> Floats:
    """Return means (K, 3) of differences (K, N) over N images, with 95 % intervals.

    Percentiles of the means of random resamples of the images (Efron 1979). SciPy's
    `bootstrap` returns the same, but takes four times as long, and a second to import.
    """
    rng, n = np.random.default_rng(SEED), differences.shape[1]
    means = [
        differences.take(rng.integers(0, n, n), axis=1).mean(1)
        for _ in progress(range(RESAMPLES), "bootstrap", "resamples")
    ]
    bounds = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    return np.column_stack([differences.mean(1), *bounds])


def differing(first: Revision, second: Revision) -> list[str]:
    """Format the parameters and metrics that differ, a table for each file."""
    lines = []
    for path in first.values | second.values:
        old, new = (side.values.get(path, {}) for side in (first, second))
        rows = [[path, first.rev, second.rev, "change"]]
        for key in old | new:
            pair: list[Any] = [old.get(key), new.get(key)]
            # Keep a string as it is, and write null and true as in YAML.
            texts = [x if isinstance(x, str) else json.dumps(x) for x in pair]
            if all(type(x) in (int, float) for x in pair):  # bool is an int, too
                texts.append(f"{round(pair[1] - pair[0], artifacts.DECIMALS):+.6g}")
            rows += [[key, *texts, ""][:4]] * (pair[0] != pair[1])
        lines += [*align(rows), ""] * (len(rows) > 1)
    return lines


def answers(old: Rows, new: Rows) -> list[list[str]]:
    """Format the file, the actual class and both predictions of each image (N,)."""
    return [
        [pair[1]["name"], pair[1].actual]
        + [f"{row.predicted} ({row.p_predicted:.4f})" for row in pair]
        for pair in zip(old, new, strict=True)
    ]


def align(rows: list[list[str]]) -> list[str]:
    """Align columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])] for r in rows)
    return ["  ".join(line).rstrip() for line in lines]


def draw(side: Revision, rows: Rows) -> list[str]:
    """Return images as PNG data URIs; none if the revision's tensors lack any."""
    from stages.page import pictures

    dtypes = {"valid_images": "uint8"}
    with (
        suppress(OSError, UserError, IndexError),
        tempfile.TemporaryDirectory() as folder,
    ):
        source = side.prefix + artifacts.TENSORS
        side.fs.get_file(source, path := f"{folder}/tensors.npz")
        (valid,) = npz.load_arrays(path, dtypes, dtypes, verify=False).values()
        valid = valid.reshape(*valid.shape[:3], -1)  # earlier: gray, (N, H, W)
        if all(tensors.digest_image(valid[row.index]) == row.digest for row in rows):
            images = pictures.shrink((valid[row.index] for row in rows), pictures.SIDE)
            return list(map(pictures.data_uri, pictures.to_images(images)))
    return []


def main() -> None:
    """Print a comparison, and write it as a page if requested."""
    parser = argparse.ArgumentParser(
        "python -m tools.compare", description=__doc__.splitlines()[0]
    )
    revision = parser.add_argument_group("commits, branches, tags or experiments")
    revision.add_argument("first", metavar="REV", nargs="?", default="HEAD")
    revision.add_argument("second", metavar="REV", nargs="?", default=WORKSPACE)
    page_help = "also write a page, with pictures"
    parser.add_argument("--html", metavar="FILE.html", help=page_help)
    arguments = parser.parse_args()
    if arguments.html is not None and not arguments.html.endswith(".html"):
        parser.error("the name of the page has to end in .html")
    first, second = load(arguments.first), load(arguments.second)
    text, old, new = compare(first, second)
    if arguments.html:
        from stages.page.render import load_template  # here, since it takes 0.1 s

        old, new = old[:SHOWN], new[:SHOWN]
        page = load_template("compare.html.j2", Path(__file__).parent).render(
            revs=(first.rev, second.rev),
            text=text,
            changed=answers(old, new),
            shorten=tensors.shorten,
            images=len(new) and (draw(second, new) or draw(first, old)),
        )
        artifacts.publish({os.path.abspath(arguments.html): page})
    print(text)


if __name__ == "__main__":
    runtime.explain_errors("compare")
    main()
