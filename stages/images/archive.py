"""Stream the files of an archive, tar (plain or compressed) or zip.

Nothing is unpacked to disk, and nothing is decompressed without a bound.
"""

import bz2
import errno
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Self, TypeVar

from stages.plumbing.errors import UserError

T = TypeVar("T")

# tarfile and zipfile would decompress whatever a block of input expands to, gigabytes
# for bzip2; these do not.
OPENERS: dict[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_MEMBER = 64 * 2**20
MAX_TOTAL = 16 * 2**30
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
    *(EOFError, ValueError, TypeError, RuntimeError),
)


def read(
    path: str, select: Callable[[str], T | None]
) -> Iterator[tuple[str, T, bytes]]:
    """Yield name, selection and content of the members that `select` does not drop.

    `select` gets the name of a member. Raises UserError for a file that is no archive,
    is damaged or cut off, holds something other than a file under a selected name, or
    decompresses to more than 64 MiB per member or 16 GiB in all.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic.startswith(b"PK\3\4"):
            yield from _read_zip(path, select)
            return
        openers = [open_ for start, open_ in OPENERS.items() if magic.startswith(start)]
        with openers[0](path) if openers else open(path, "rb") as stream:
            yield from _read_tar(path, stream, select)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run dvc repro") from None
    except DAMAGE as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the disk's fault, not the file's
            raise
        raise _damaged(path, str(error)) from None


def _read_tar(
    path: str, stream: IO[bytes], select: Callable[[str], T | None]
) -> Iterator[tuple[str, T, bytes]]:
    total = 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
        for member in iter(tar.next, None):
            # The list would outgrow the images.
            tar.members = []  # type: ignore[attr-defined]
            total += _bounded(path, member.name, member.size, total)
            if member.isdir() or (selected := select(member.name)) is None:
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise UserError(
                    f"{path}: {member.name} is a link or a device: "
                    "pack files only (tar --dereference)"
                )
            yield member.name, selected, content.read()


def _read_zip(
    path: str, select: Callable[[str], T | None]
) -> Iterator[tuple[str, T, bytes]]:
    total = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename
            total += _bounded(path, name, member.file_size, total)
            if member.is_dir() or (selected := select(name)) is None:
                continue
            if member.compress_type not in ZIP_METHODS:
                raise UserError(
                    f"{path}: {name} is compressed neither by deflate nor not at all: "
                    "pack it again"
                )
            with archive.open(member) as file:
                # The header may lie about the size: never read more than it says.
                yield name, selected, file.read(member.file_size)


class _Member(tarfile.TarInfo):
    """A member whose header is checked: tarfile takes a damaged one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise EOFError(str(error)) from None
        if not 0 <= member.size <= MAX_MEMBER:
            raise EOFError(f"{member.name} claims {member.size} bytes")
        return member


def _bounded(path: str, name: str, size: int, total: int) -> int:
    if size > MAX_MEMBER or total + size > MAX_TOTAL:
        raise UserError(
            f"{path}: {name} makes it too large: "
            f"at most {MAX_MEMBER >> 20} MiB a file and {MAX_TOTAL >> 30} GiB in all"
        )
    return size


def _damaged(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged or no tar or zip archive ({reason}): "
        "pack it again and update download.sha256"
    )
