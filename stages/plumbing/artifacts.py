"""What the stages pass on: checked when read, each file written completely or not."""

import csv
import errno
import fcntl
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.plumbing.errors import UserError
from stages.plumbing.hermetic import temporary

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


class Split(NamedTuple):
    """The images and labels of one split."""

    images: NDArray[np.uint8]
    """(N, H, W), memory-mapped: read from disk on access."""
    labels: NDArray[np.uint8]
    """(N,), indices into the classes."""


class Decoding(NamedTuple):
    """How image files became pixels: the arguments of images.decode."""

    size: tuple[int, int] | None
    grayscale: bool
    background: int | None


class Tensors(NamedTuple):
    """The content of data/tensors.npz."""

    train: Split
    valid: Split
    classes: list[str]
    valid_in_train: NDArray[np.bool_]
    """(N,), which validation images are among the training images, too."""
    decoding: Decoding


def load_tensors(*, verify: bool = True) -> Tensors:
    """Load the tensors; raise UserError if the file is damaged or inconsistent.

    With `verify=False` the images are not read to check them.
    """
    images, labels = ("train_images", "valid_images"), ("train_labels", "valid_labels")
    dtypes = dict.fromkeys((*images, *labels, "valid_in_train"), "uint8")
    dtypes |= {"classes": "str", "decoding": "str"}
    arrays = load_arrays(TENSORS, dtypes, mapped=images, verify=verify)
    train, valid = (
        Split(arrays[i], arrays[j]) for i, j in zip(images, labels, strict=True)
    )
    tensors = Tensors(
        train,
        valid,
        classes=arrays["classes"].tolist(),
        valid_in_train=arrays["valid_in_train"].astype(bool),
        decoding=parse_decoding(TENSORS, arrays["decoding"]),
    )
    for split in (train, valid):
        fits = (
            split.images.ndim == 3
            and split.images.size
            and split.images.shape[1:] == train.images.shape[1:]
            and split.labels.shape == split.images.shape[:1]
            and split.labels.max() < len(tensors.classes)
        )
        if not fits:
            raise damaged(TENSORS, "its shapes or labels do not fit together")
    if tensors.valid_in_train.shape != valid.labels.shape:
        raise damaged(TENSORS, "valid_in_train does not fit the validation images")
    return tensors


def format_decoding(decoding: Decoding) -> NDArray[np.str_]:
    """Return a decoding as JSON, to be stored in an npz file."""
    return np.array(json.dumps(decoding._asdict()))


def parse_decoding(path: str, array: NDArray[np.str_]) -> Decoding:
    """Parse what `format_decoding` made; raise UserError if it is damaged."""
    try:
        fields = json.loads(str(array))
        size = fields.pop("size")
        return Decoding(size=tuple(size) if size else None, **fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise damaged(path, f"decoding: {error}") from None


def load_arrays(
    path: str,
    dtypes: Mapping[str, str],
    mapped: Collection[str] = (),
    *,
    verify: bool = True,
) -> dict[str, Any]:
    """Load the arrays named in `dtypes` from an npz file, without pickle.

    Those in `mapped` are memory-mapped. Raises UserError if the file is missing, is
    damaged (with `verify=False` mapped arrays are not checked) or holds other dtypes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if verify and (member := file.zip.testzip()):
                raise ValueError(f"Bad CRC-32 of {member}")
            arrays = {
                name: _map(path, file.zip.getinfo(f"{name}.npy"))
                if name in mapped
                else file[name]
                for name in dtypes
            }
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run dvc repro") from None
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise many types
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise damaged(path, str(error)) from None
    for name, dtype in dtypes.items():
        if not np.issubdtype(arrays[name].dtype, dtype):
            found = arrays[name].dtype
            raise damaged(path, f"{name} is of type {found}, not {dtype}")
    return arrays


def _map(path: str, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Memory-map an array that an npz file stores without compression.

    np.load maps npy files only. A member begins with a header of 30 bytes, which ends
    with the lengths of the name and the extra field that follow it (APPNOTE 4.3.7).
    """
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        start = file.tell()
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
        array = np.memmap(file, dtype, "r", offset, shape)
        if offset - start + array.nbytes != member.file_size:
            raise ValueError(f"{member.filename} has another size than it claims")
    return np.asarray(array)


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


def damaged(path: str, reason: str) -> UserError:
    """Return the error to raise for a damaged file."""
    return UserError(f"{path} is damaged ({reason}): delete it and run dvc repro")


def publish(outputs: Mapping[str, Any]) -> None:
    """Write all outputs of a stage to temporary files, then rename them into place.

    The suffix decides the format: `.npz` takes a mapping of arrays, `.json` a mapping,
    `.csv` a sequence of rows (mappings with the same keys), any other suffix bytes, a
    string, or the Path of a file to copy. The same content makes the same bytes.
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
def _one_writer(folder: str) -> Iterator[None]:
    """Lock `folder`, in case a stage whose dvc was killed is still writing to it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: str, content: Any, file: IO[bytes]) -> None:
    if path.endswith(".npz"):
        # Not np.savez, whose bytes differ between versions of Python.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in content.items():
                info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980
                large = array.nbytes > 2**31 - 2**20
                with archive.open(info, "w", force_zip64=large) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    elif path.endswith(".json"):
        rounded = _rounded(content)
        text = json.dumps(rounded, indent=2, ensure_ascii=False, allow_nan=False)
        file.write(f"{text}\n".encode())
    elif path.endswith(".csv"):
        text_file = io.TextIOWrapper(file, "utf-8", newline="")
        rows = csv.DictWriter(text_file, list(content[0]), lineterminator="\n")
        rows.writeheader()
        rows.writerows(_rounded(row) for row in content)
        text_file.detach()
    elif isinstance(content, Path):
        with content.open("rb") as source:
            shutil.copyfileobj(source, file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return round(float(value), DECIMALS) + 0.0  # no -0.0
    return value
