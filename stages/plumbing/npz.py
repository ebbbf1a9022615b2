"""Arrays in npz files, the tensors and the models: checked when they are read."""

import errno
import json
import os
import struct
import zipfile
from collections.abc import Collection, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.plumbing.artifacts import TENSORS, damaged
from stages.plumbing.errors import UserError

HEADER = struct.Struct("<4s22xHH")  # of a zip's member (APPNOTE 4.3.7)


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

    np.load maps npy files only.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    with open(path, "rb") as file:
        start = find_content(file.fileno(), member)
        file.seek(start)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
        array = np.memmap(file, dtype, "r", offset, shape)
        if offset - start + array.nbytes != member.file_size:
            raise ValueError(f"{member.filename} has another size than it claims")
    return np.asarray(array)


def find_content(file: int, member: zipfile.ZipInfo) -> int:
    """Return where the content of a zip's member starts in an open file.

    A header precedes it, and its name and extra field. Raises BadZipFile or
    struct.error if the header is damaged.
    """
    header = os.pread(file, HEADER.size, member.header_offset)
    magic, name_size, extra_size = HEADER.unpack(header)
    if magic != b"PK\3\4":
        raise zipfile.BadZipFile(f"Bad magic number for file {member.filename!r}")
    return member.header_offset + HEADER.size + name_size + extra_size


def write(arrays: Mapping[str, NDArray[Any]], file: IO[bytes]) -> None:
    """Write arrays, one by one; the same arrays make the same bytes."""
    # Not np.savez, whose bytes differ between versions of Python.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980
            large = array.nbytes > 2**31 - 2**20
            with archive.open(info, "w", force_zip64=large) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
