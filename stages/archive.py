"""The files in an archive, tar (plain or compressed) or zip, as a stream: nothing is unpacked to disk."""

import bz2
import errno
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Self, TypeVar

from stages.running import Refusal

Place = TypeVar("Place")

# tarfile and zipfile would decompress as much as one block of input makes, which for bzip2 is gigabytes; these do not.
OPENERS: dict[bytes, Callable[[str], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
ZIPPED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_MEMBER = 64 * 2**20
MAX_TOTAL = 16 * 2**30
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, ValueError, TypeError, RuntimeError
)  # fmt: skip


def files(path: str, place: Callable[[str], Place | None]) -> Iterator[tuple[str, Place, bytes]]:
    """Name, place and content of the members that have a place, in the order of the archive.

    Raises Refusal for a file that is no archive, is damaged or cut off, holds something else than a file in
    such a place, or grows past 64 MiB a member or 16 GiB in all when it is decompressed.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic.startswith(b"PK\3\4"):
            yield from _zip_files(path, place)
        else:
            opener = next((each for start, each in OPENERS.items() if magic.startswith(start)), None)
            with opener(path) if opener else open(path, "rb") as stream:
                yield from _tar_files(path, stream, place)
    except FileNotFoundError:
        msg = f"{path} is missing: run dvc repro"
        raise Refusal(msg) from None
    except DAMAGE as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the disk's or the system's doing, not the content's
            raise
        raise _damaged(path, str(error)) from None


def _tar_files(
    path: str, stream: IO[bytes], place: Callable[[str], Place | None]
) -> Iterator[tuple[str, Place, bytes]]:
    total = 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
        for member in iter(tar.next, None):
            tar.members = []  # type: ignore[attr-defined]  # it would grow to more than the images take
            total += _bounded(path, member.name, member.size, total)
            if member.isdir() or (where := place(member.name)) is None:
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                msg = f"{path}: {member.name} is a link or a device: pack files only (tar --dereference)"
                raise Refusal(msg)
            yield member.name, where, content.read()


def _zip_files(path: str, place: Callable[[str], Place | None]) -> Iterator[tuple[str, Place, bytes]]:
    total = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            total += _bounded(path, member.filename, member.file_size, total)
            if not member.is_dir() and (where := place(member.filename)) is not None:
                if member.compress_type not in ZIPPED:
                    msg = f"{path}: {member.filename} is compressed neither by deflate nor not at all: pack it again"
                    raise Refusal(msg)
                with archive.open(member) as file:
                    yield member.filename, where, file.read(member.file_size)  # the header may lie: never more


class _Member(tarfile.TarInfo):
    """A member of a tar, whose every header is checked: tarfile itself takes a damaged one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise EOFError(str(error)) from None
        if not 0 <= member.size <= MAX_MEMBER:
            msg = f"{member.name} claims {member.size} bytes"
            raise EOFError(msg)
        return member


def _bounded(path: str, name: str, size: int, total: int) -> int:
    if size > MAX_MEMBER or total + size > MAX_TOTAL:
        msg = (
            f"{path}: {name} makes it too large: at most {MAX_MEMBER >> 20} MiB a file and {MAX_TOTAL >> 30} GiB in all"
        )
        raise Refusal(msg)
    return size


def _damaged(path: str, reason: str) -> Refusal:
    return Refusal(f"{path} is damaged or no tar or zip archive ({reason}): pack it again and update download.sha256")
