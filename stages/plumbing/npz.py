"""Read and write npz files: checked when read, reproducible when written."""

import errno
import os
import struct
import zipfile
from collections.abc import Collection, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from stages.plumbing.errors import UserError, damaged

HEADER = struct.Struct("<4s22xHH")  # of a zip member (APPNOTE 4.3.7)


def load_arrays(
    path: str,
    dtypes: Mapping[str, str],
    mapped: Collection[str] = (),
    *,
    verify: bool = True,
) -> dict[str, Any]:
    """Load the arrays named in `dtypes` from an npz file, without pickle.

    A name that ends with a slash selects every array with that prefix. Arrays
    in `mapped` are memory-mapped. Raises UserError if the file is missing or damaged
    (`verify=False` skips the checksums of mapped arrays), or if a dtype differs.
    """
    try:
        with np.load(path, allow_pickle=False) as file:  # a pickle can run any code
            # Reading an array checks its CRC, but mapping one does not.
            if verify and (member := file.zip.testzip()):
                raise ValueError(f"Bad CRC-32 of {member}")
            dtypes = {
                found: dtype
                for name, dtype in dtypes.items()
                for found in _expand(name, file.files)
            }
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
        # An I/O error does not mean that the file is damaged.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise damaged(path, str(error)) from None
    for name, dtype in dtypes.items():
        if not np.issubdtype(arrays[name].dtype, dtype):
            found = arrays[name].dtype
            raise damaged(path, f"{name} is of type {found}, not {dtype}")
    return arrays


def _expand(name: str, names: list[str]) -> list[str]:
    return [n for n in names if n.startswith(name)] if name.endswith("/") else [name]


def _map(path: str, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Memory-map an uncompressed array of an npz file; np.load maps only npy files."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    with open(path, "rb") as file:
        # A stored member is a plain npy file somewhere inside the zip.
        start = find_content(file.fileno(), member)
        file.seek(start)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
        array = np.memmap(file, dtype, "r", offset, shape)
        if offset - start + array.nbytes != member.file_size:
            raise ValueError(f"{member.filename} does not have the size it claims")
    return np.asarray(array)


def find_content(file: int, member: zipfile.ZipInfo) -> int:
    """Return the offset of a zip member's content in an open file.

    Raises BadZipFile or struct.error if the member's header is damaged.
    """
    # The central directory has only the header's offset. The name and the extra field
    # follow the header, and can be longer than those in the directory.
    header = os.pread(file, HEADER.size, member.header_offset)
    magic, name_size, extra_size = HEADER.unpack(header)
    if magic != b"PK\3\4":
        raise zipfile.BadZipFile(f"Bad magic number for file {member.filename!r}")
    return member.header_offset + HEADER.size + name_size + extra_size


def write(arrays: Mapping[str, NDArray[Any]], file: IO[bytes]) -> None:
    """Write arrays one by one; the same arrays make the same bytes."""
    # Not np.savez, whose bytes differ between Python versions.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980-01-01, not now
            large = array.nbytes > 2**31 - 2**20  # leaves room for the npy header
            with archive.open(info, "w", force_zip64=large) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
