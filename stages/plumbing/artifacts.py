"""The files that stages exchange: checked when read, written whole or not at all."""

import csv
import errno
import fcntl
import io
import itertools
import json
import numbers
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hermetic import temporary
from stages.plumbing.errors import damaged
from stages.plumbing.runtime import SCRATCH

ARCHIVE = "data/archive"
TENSORS = "data/tensors.npz"
BASELINE = "models/baseline.npz"
MODEL = "models/model.npz"
BASELINE_METRICS = "metrics/baseline.json"
MODEL_METRICS = "metrics/model.json"
HISTORY = "metrics/history.csv"
SENSITIVITY = "metrics/sensitivity.json"
PREDICTIONS = "metrics/predictions.csv"
REPORT = "metrics/report.html"
DECIMALS = 6  # the digits beyond can differ between machines


def load_json(path: str) -> dict[str, Any]:
    """Load a JSON file; raise UserError if it is damaged."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise damaged(path, str(error)) from None


def load_csv(path: str) -> list[dict[str, float]]:
    """Load a CSV file of numbers, one dict per row; raise UserError if damaged."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            return [{name: float(row[name]) for name in row} for row in rows]
    except (ValueError, TypeError) as error:
        raise damaged(path, str(error)) from None


def numbered(folder: str, count: int) -> list[str]:
    """Return the paths of files that are numbered in their order."""
    return [f"{folder}/{i:04}" for i in range(count)]


def publish(outputs: Mapping[str, Any]) -> None:
    """Write all outputs of a stage to temporary files, then rename them into place.

    The suffix decides the format: `.npz` takes a mapping of arrays, `.json` a mapping,
    `.csv` an iterable of rows (mappings with the same keys, at least one), any other
    suffix bytes, a string, or the Path of a file to copy. The same content gives
    the same bytes. Rows are written one by one, so an iterator may exceed memory.
    Floats in JSON and CSV are rounded to six decimals.
    """
    for path in outputs:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    with _one_writer(os.path.dirname(next(iter(outputs)))):
        path = ""
        try:
            for path, content in outputs.items():
                with open(temporary(path), "wb") as file:
                    _write(path, content, file)
            # Only now that all are complete: a failure leaves no partial output.
            for path in outputs:
                os.replace(temporary(path), path)
        except OSError as error:
            if error.errno and not error.filename:  # for example, a full disk
                error.filename = path
            raise
        finally:
            for path in outputs:
                with suppress(OSError):
                    os.remove(temporary(path))


@contextmanager
def scratch() -> Iterator[IO[bytes]]:
    """Open an unnamed temporary file, deleted when closed.

    It is on the repository's disk, since /tmp may be in memory, but not in an output's
    folder, where a stage may read only what it declares.
    """
    os.makedirs(SCRATCH, exist_ok=True)
    with name_full_disk(SCRATCH), tempfile.TemporaryFile(dir=SCRATCH) as file:
        yield file


@contextmanager
def name_full_disk(path: str) -> Iterator[None]:
    """Attach the path to a disk-full error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = error.filename or path
        raise


@contextmanager
def _one_writer(folder: str) -> Iterator[None]:
    """Lock a folder: a stage whose dvc was killed may still be writing to it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # the file system may not support locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: str, content: Any, file: IO[bytes]) -> None:
    if path.endswith(".npz"):
        from stages.plumbing import npz  # deferred: download needs no NumPy

        npz.write(content, file)
    elif path.endswith(".json"):
        # ASCII, since DVC takes a file for binary if over 30 % of its start is not.
        text = json.dumps(_rounded(content), indent=2, allow_nan=False)
        file.write(f"{text}\n".encode())
    elif path.endswith(".csv"):
        text_file = io.TextIOWrapper(file, "utf-8", newline="")
        rows = iter(content)
        first = next(rows)  # names the columns
        # The default line end is \r\n.
        writer = csv.DictWriter(text_file, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rounded(row) for row in itertools.chain([first], rows))
        text_file.detach()  # flushes, and leaves `file` open
    elif isinstance(content, Path):
        with content.open("rb") as source:
            shutil.copyfileobj(source, file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return round(float(value), DECIMALS) + 0.0  # turns -0.0 into 0.0
    return value
