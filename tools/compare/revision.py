"""Read a revision through DVC, and let its model answer to its validation images."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from stages.evaluation import outputs
from stages.evaluation.model_file import Linear
from stages.plumbing import artifacts, npz, parameters, runtime
from stages.plumbing.errors import UserError
from hermetic import values
from stages.plumbing.progress import progress

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

WORKSPACE = "workspace"
LOCK = "dvc.lock"
BLOCK = 1024
"""Images that are classified at a time."""

Integers = NDArray[np.integer]
Floats = NDArray[np.float64]


class Side(NamedTuple):
    """A revision, and what its model answers to its N validation images."""

    rev: str
    recorded: Mapping[str, Mapping[str, Any]]
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
        reason = error if isinstance(error, DvcException) else "it is no commit"
        raise UserError(
            f"DVC cannot read revision {rev} ({reason}): take one that git log or "
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
        with reading(fs, rev, artifacts.MODEL):
            model = Linear.load(find_file(fs, artifacts.MODEL, folder))
        dtypes = {"valid_images": "uint8", "valid_labels": "uint8", "classes": "str"}
        with reading(fs, rev, artifacts.TENSORS):
            file = find_file(fs, artifacts.TENSORS, folder)
            # Once mapped, they can be read without the folder.
            arrays = npz.load_arrays(file, dtypes, ["valid_images"], verify=False)
    images, labels, classes = arrays.values()
    if (model.classes, model.image_size) != (classes.tolist(), images.shape[1:]):
        raise UserError(
            f"{artifacts.MODEL} of {rev} is not for its {artifacts.TENSORS}: check it "
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
