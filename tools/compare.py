"""Say what changed between two revisions, and whether it is more than chance.

`python -m tools.compare [REV] [REV] [--html FILE]` compares HEAD with the workspace, a
revision with the workspace, or two revisions: commits, branches, tags or experiments.
The models of both classify the validation images that both have. Nothing is trained:
models and tensors come from DVC's cache, or from a remote.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from stages.model import linear, metrics
from stages.model.linear import Linear
from stages.plumbing import artifacts, npz, parameters, runtime
from stages.plumbing.errors import UserError
from stages.plumbing.hermetic import values
from stages.plumbing.progress import progress

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

WORKSPACE = "workspace"
LOCK = "dvc.lock"
BLOCK = 1024
"""Images that are classified at a time."""
RESAMPLES, SEED = 9999, 0
LEVEL = 0.05
FEW = 20
"""Of fewer images, a bootstrap interval is too short."""
LISTED, SHOWN = 5, 48
"""How many of the changed predictions are listed as text, and shown as pictures."""

Integers = NDArray[np.integer]
Floats = NDArray[np.float64]


class Side(NamedTuple):
    """A revision, and what its model answers to its N validation images."""

    rev: str
    values: Mapping[str, Mapping[str, Any]]
    """Parameters and metrics, by file and dotted key."""
    model: Linear
    images: NDArray[np.uint8]
    """(N, H, W), memory-mapped."""
    labels: Integers
    """(N,), indices into model.classes."""
    predicted: Integers
    """(N,), indices into model.classes."""
    of_predicted: Floats
    """(N,), the probability of the predicted class."""
    of_actual: Floats
    """(N,), the probability of the actual class."""
    digests: list[bytes]
    """(N,), of the size and the pixels."""

    @property
    def name(self) -> str:
        """How a sentence names it."""
        return f"the {WORKSPACE}" if self.rev == WORKSPACE else self.rev


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


def load(rev: str) -> Side:
    """Load a revision, or "workspace", and let its model classify its images.

    Raises UserError if DVC does not know the revision, if a file is missing, damaged or
    of another format, or if its results do not follow from its parameters.
    """
    # Here, since DVC wraps stdout: runtime.explain_errors has to be first.
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    if rev == WORKSPACE:
        check_workspace()
    try:
        if not rev:  # DVC would take the workspace
            raise DvcException("its name is empty")
        fs = DVCFileSystem(rev=None if rev == WORKSPACE else rev)
        files = [parameters.FILE, *sorted(fs.glob("metrics/*.json"))]
    except (DvcException, AttributeError) as error:  # the latter for HEAD:FILE
        raise UserError(
            f"DVC cannot read revision {rev} ({error}): take one that git log or "
            "dvc exp show lists"
        ) from error
    flat = {file: dict(flatten(read_values(fs, rev, file))) for file in files}
    check_lock(rev, flat[parameters.FILE], read_values(fs, rev, LOCK))
    model, images, labels = read_arrays(fs, rev)
    columns = classify(model, images, labels)
    return Side(rev, flat, model, images, labels, *columns, digest(images))


def check_workspace() -> None:
    """Raise UserError unless all outputs in the workspace are up to date."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"dvc status fails: {done.stderr}")
    if stale := ", ".join(json.loads(done.stdout)):
        raise UserError(f"the workspace is out of date ({stale}): run dvc repro first")


def check_lock(rev: str, params: Mapping[str, Any], lock: Any) -> None:
    """Raise UserError if the results of a revision are of other parameters (flat)."""
    for stage in lock.get("stages", {}).values():
        locked = stage.get("params", {}).get(parameters.FILE, {})
        for key, value in flatten(locked):
            if params.get(key, value) != value:
                raise UserError(
                    f"{rev} has {key}: {params[key]}, but its results are of {value}: "
                    "check it out, run dvc repro and commit"
                )


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with dotted keys."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, item in value.items():
        yield from flatten(item, f"{key}.{name}" if key else str(name))


def read_values(fs: "DVCFileSystem", rev: str, path: str) -> Any:
    """Read a YAML or JSON file of a revision."""
    with reading(fs, rev, path):
        return values.parse(fs.read_text(path, encoding="utf-8"), path)


def read_arrays(
    fs: "DVCFileSystem", rev: str
) -> tuple[Linear, NDArray[np.uint8], Integers]:
    """Return the model of a revision, its validation images and their labels."""
    os.makedirs(runtime.SCRATCH, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runtime.SCRATCH) as folder:
        with reading(fs, rev, artifacts.LINEAR):
            model = Linear.load(find_file(fs, artifacts.LINEAR, folder))
        dtypes = {"valid_images": "uint8", "valid_labels": "uint8", "classes": "str"}
        with reading(fs, rev, artifacts.TENSORS):
            file = find_file(fs, artifacts.TENSORS, folder)
            # Once mapped, they can be read without the folder.
            arrays = npz.load_arrays(file, dtypes, ["valid_images"], verify=False)
    images, labels, classes = arrays.values()
    if (model.classes, model.image_size) != (classes.tolist(), images.shape[1:]):
        raise UserError(
            f"{artifacts.LINEAR} of {rev} is not for its {artifacts.TENSORS}: check it "
            "out, run dvc repro and commit"
        )
    return model, images, labels


def find_file(fs: "DVCFileSystem", path: str, folder: str) -> str:
    """Return where a file lies, in the cache or the workspace, or copy it to a folder.

    Raises FileNotFoundError if it is in no remote either.
    """
    with fs.open(path, "rb") as file:
        if isinstance(file, io.BufferedReader):  # on this machine
            return str(file.name)
        with Path(folder, Path(path).name).open("wb") as copy:
            shutil.copyfileobj(file, copy)
            return copy.name


@contextmanager
def reading(fs: "DVCFileSystem", rev: str, path: str) -> Iterator[None]:
    """Raise a UserError that names revision and file where it cannot be read."""
    try:
        yield
    except FileNotFoundError:
        reason = (
            "is neither in DVC's cache nor in a remote: run dvc fetch --all-commits"
        )
        reason += ", or check it out and run dvc repro"
        if not fs.isdvc(path):
            reason = "does not exist: compare a later revision"
        raise UserError(f"{path} of {rev} {reason}") from None
    except (UserError, ValueError, yaml.YAMLError) as error:
        reason = re.sub(r".* is damaged \((.*)\): .*", r"\1", str(error))
        raise UserError(
            f"{path} of {rev} is damaged or of another format ({reason}): "
            "compare a later revision"
        ) from error


def classify(
    model: Linear, images: NDArray[np.uint8], labels: Integers
) -> tuple[Integers, Floats, Floats]:
    """Return the predicted labels, their probabilities and those of the labels (N,)."""
    predicted: list[Integers] = []
    scores: list[Floats] = []
    for start in progress(range(0, len(images), BLOCK), "compare", "blocks"):
        block, actual = images[start : start + BLOCK], labels[start : start + BLOCK]
        logits = linear.logits(block, model.weights, model.bias)
        probabilities = linear.probabilities(logits, model.outputs)
        predicted.append(linear.predicted_labels(logits, model.outputs))
        columns, rows = np.stack([predicted[-1], actual]), np.arange(len(block))
        scores.append(probabilities[rows, columns])
    return np.concatenate(predicted), *np.hstack(scores)


def digest(images: NDArray[np.uint8]) -> list[bytes]:
    """Return a digest (16 bytes) of the size and the pixels of each image (N, H, W)."""
    size = repr(images.shape[1:]).encode()
    return [
        hashlib.blake2b(size + image.tobytes(), digest_size=16).digest()
        for image in images
    ]


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


def sentence(first: str, second: str) -> str:
    """Say whether two revisions or experiments differ by more than chance.

    Raises UserError as `load` does.
    """
    return format_chance(compare(load(first), load(second)))


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
        return f"{text} These are too few images to say so of the log loss."
    verdict = _verdict(log_loss.low > 0 or log_loss.high < 0)
    return f"{text} The difference in log loss {verdict}: {_interval(log_loss)}."


def _verdict(significant: bool) -> str:
    return "is more than chance" if significant else "may be chance"


def _interval(difference: Difference) -> str:
    mean, low, high = (f"{x:+.2g}" if x else "0" for x in difference)
    return f"{mean} (95 % interval {low} to {high})"


def left_out(comparison: Comparison) -> list[str]:
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
    first, second = comparison.first.values, comparison.second.values
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


def format_text(comparison: Comparison) -> str:
    """Format a comparison for a terminal."""
    revs = comparison.first.rev, comparison.second.rev
    lines = []
    for path, rows in differing(comparison).items():
        lines += [*align([[path, *revs, "change"][: len(rows[0])], *rows]), ""]
    for text in [format_chance(comparison), *left_out(comparison)]:
        lines += textwrap.wrap(text, 88, break_on_hyphens=False)
    if rows := changed_predictions(comparison, LISTED):
        count = f"{len(comparison.changed):,}"
        lines += ["", f"Predictions that changed: {count}, the most confident first"]
        lines += align([["image", "actual", *revs], *rows])
    return "\n".join(lines)


def align(rows: list[list[str]]) -> list[str]:
    """Align columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]


def draw_weights(comparison: Comparison) -> list[list[Any]]:
    """Draw the weights of both models and their difference in one scale of color.

    Rows of three pictures, one for each output; none if classes or sizes differ.
    """
    from stages.page import pictures  # here, as in render_html

    models = comparison.first.model, comparison.second.model
    if len({(*model.classes, model.image_size) for model in models}) > 1:
        return []
    old, new = (model.weights.T.reshape(-1, *model.image_size) for model in models)
    columns = np.stack([old, new, new - old])
    limit = float(np.abs(columns).max())
    drawn = (pictures.diverging(column, limit) for column in columns)
    return [list(map(pictures.data_uri, row)) for row in zip(*drawn, strict=True)]


def render_html(comparison: Comparison) -> str:
    """Return the comparison as a page that needs nothing else."""
    # Here, since the text needs neither: 0.1 s.
    from jinja2 import Environment, FileSystemLoader

    from stages.page import pictures

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([folder, folder.parent / "stages/page"]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    images = comparison.second.images[comparison.changed[:SHOWN, 1]]
    uris = map(pictures.data_uri, pictures.grayscale(images))
    rows = changed_predictions(comparison, SHOWN)
    return environment.get_template("compare.html.j2").render(
        comparison._asdict(),
        sentence=format_chance(comparison),
        left_out=left_out(comparison),
        tables=differing(comparison),
        predictions=list(zip(uris, rows, strict=True)),
        weights=draw_weights(comparison),
    )


def main() -> None:
    """Print a comparison, and write it as a page if that is asked for."""
    parser = argparse.ArgumentParser(
        "python -m tools.compare", description=__doc__.splitlines()[0]
    )
    rev_help = "a commit, branch, tag or experiment; HEAD and workspace unless given"
    parser.add_argument("revs", nargs="*", metavar="REV", help=rev_help)
    html_help = "write the comparison as a page, too, with pictures"
    parser.add_argument("--html", metavar="FILE.html", help=html_help)
    arguments = parser.parse_args()
    if len(arguments.revs) > 2:
        parser.error("more than two revisions")
    if not (arguments.html or ".html").endswith(".html"):
        parser.error("the name of the page has to end in .html")
    first, second = [*(arguments.revs or ["HEAD"]), WORKSPACE][:2]
    comparison = compare(load(first), load(second))
    if arguments.html:
        page = render_html(comparison)
        artifacts.publish({os.path.abspath(arguments.html): page})
    print(format_text(comparison))


if __name__ == "__main__":
    runtime.explain_errors("compare")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    main()
