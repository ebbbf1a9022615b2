"""What the stages pass to each other: read with checks, written as a whole or not at all."""

import csv
import errno
import fcntl
import io
import json
import math
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.hermetic import temporary
from stages.running import Refusal

ARCHIVE = "data/archive"
TENSORS = "data/tensors.npz"
BASELINE = "models/baseline.npz"
LINEAR = "models/linear.npz"
BASELINE_METRICS = "metrics/baseline.json"
LINEAR_METRICS = "metrics/linear.json"
HISTORY = "metrics/history.csv"
SENSITIVITY = "metrics/sensitivity.json"
PREDICTIONS = "metrics/predictions.csv"
REPORT = "metrics/report.html"
DECIMALS = 6


class Tensors(NamedTuple):
    """data/tensors.npz. Images are uint8 (N, H, W), labels uint8 (N,), an index into classes, str (K,).

    The images are the file itself, mapped into memory: read where and when they are used.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    valid_images: NDArray[np.uint8]
    valid_labels: NDArray[np.uint8]
    classes: NDArray[np.str_]


def load_tensors(*, whole: bool = True) -> Tensors:
    """The tensors; raises Refusal if the file is damaged or its arrays do not fit together.

    Unless `whole`, the images are not read to see whether they are damaged.
    """
    kinds = {**dict.fromkeys(Tensors._fields, "uint8"), "classes": "str"}
    tensors = Tensors(**load_arrays(TENSORS, kinds, ("train_images", "valid_images"), whole=whole))
    shape = tensors.train_images.shape[1:]
    for images, labels in [(tensors.train_images, tensors.train_labels), (tensors.valid_images, tensors.valid_labels)]:
        fits = images.ndim == 3 and images.size and images.shape[1:] == shape and labels.shape == images.shape[:1]
        if not (fits and labels.max() < len(tensors.classes)):
            raise _damaged(TENSORS, "its shapes or labels do not fit together")
    return tensors


def load_arrays(
    path: str, kinds: Mapping[str, str], mapped: Collection[str] = (), *, whole: bool = True
) -> dict[str, Any]:
    """Read the arrays that `kinds` names, with their dtypes, from an npz file, without pickle.

    Those that are `mapped`, arrays of bytes, are mapped into memory; if not `whole`, without looking for damage.
    Raises Refusal if the file is missing, damaged or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _mapped(file.zip, name, whole) if name in mapped else file[name] for name in kinds}
    except FileNotFoundError:
        msg = f"{path} is missing: run dvc repro"
        raise Refusal(msg) from None
    except MemoryError:
        raise
    except Exception as error:  # whatever NumPy, zipfile and zlib make of damaged bytes
        if getattr(error, "errno", None) not in (None, errno.EINVAL) or isinstance(error, PermissionError):
            raise
        raise _damaged(path, str(error)) from None
    for name, kind in kinds.items():
        if not np.issubdtype(arrays[name].dtype, kind):
            raise _damaged(path, f"{name} is of type {arrays[name].dtype}, not {kind}")
    return arrays


def _mapped(archive: zipfile.ZipFile, name: str, whole: bool) -> NDArray[np.uint8]:
    """The array of bytes `name` of an npz file, mapped into memory."""
    with archive.open(f"{name}.npy") as member, open(str(archive.filename), "rb") as file:
        info = archive.getinfo(f"{name}.npy")
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        file.seek(info.header_offset + 26)  # the local header: 30 bytes, the last four of which tell what follows them
        start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        size = member.tell() + math.prod(shape)
        if dtype != np.uint8:
            msg = f"{name} is of type {dtype}, not uint8"
            raise ValueError(msg)
        if size != info.file_size or info.compress_type != zipfile.ZIP_STORED:
            msg = f"{name} has another size than it claims"
            raise ValueError(msg)
        content = np.asarray(np.memmap(file, np.uint8, "r", start, (size,)))
        array = content[member.tell() :].reshape(shape)
    if whole and zlib.crc32(content) != info.CRC:  # type: ignore[arg-type]
        msg = f"Bad CRC-32 of {name}"
        raise ValueError(msg)
    return array


def load_json(path: str) -> dict[str, Any]:
    """Read a JSON file that `publish` wrote; raises Refusal if it is damaged."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def load_csv(path: str) -> list[dict[str, float]]:
    """Read a CSV file of numbers that `publish` wrote, a mapping a row; raises Refusal if it is damaged."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: str, reason: str) -> Refusal:
    return Refusal(f"{path} is damaged ({reason}): delete it and run dvc repro")


def publish(outputs: Mapping[str, Any]) -> None:
    """Write all outputs of a stage, each whole: to a temporary beside each target, and then all are renamed.

    The suffix tells the form: `.npz` takes a mapping of arrays, `.json` a mapping, `.csv` a sequence of rows
    (mappings with the same keys), anything else bytes, a string, or the path of a file to copy. The same content
    makes the same bytes. Floats in JSON and CSV are rounded to six decimals.
    """
    with open(__file__, "rb") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # a stage whose dvc was killed may still be writing
        path = ""
        try:
            for path, content in outputs.items():
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(temporary(path), "wb") as file:
                    _encode(path, content, file)
            for path in outputs:
                os.replace(temporary(path), path)
        except OSError as error:
            if error.errno and not error.filename:  # a full disk
                error.filename = path
            raise
        finally:
            for path in outputs:
                with suppress(OSError):
                    os.remove(temporary(path))


def _encode(path: str, content: Any, file: IO[bytes]) -> None:
    if path.endswith(".npz"):
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in content.items():
                entry = zipfile.ZipInfo(f"{name}.npy")  # of 1980
                entry.create_system, entry.file_size = 3, array.nbytes  # np.savez leaves Python's versions to differ
                with archive.open(entry, "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    elif path.endswith(".json"):
        file.write((json.dumps(_rounded(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    elif path.endswith(".csv"):
        text = io.TextIOWrapper(file, "utf-8", newline="")
        rows = csv.DictWriter(text, list(content[0]), lineterminator="\n")
        rows.writeheader()
        rows.writerows(_rounded(row) for row in content)
        text.detach()
    elif isinstance(content, Path):
        with content.open("rb") as source:
            shutil.copyfileobj(source, file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return round(float(value), DECIMALS) + 0.0 if isinstance(value, float | np.floating) else value
