"""Stream the files of an archive, tar (plain or compressed) or zip.

Nothing is unpacked to disk, and nothing is decompressed without a bound.
"""

import bz2
import errno
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, TypeVar

from stages.images import tar
from stages.plumbing.errors import UserError

T = TypeVar("T")

# Each decompresses piece by piece: a few bytes of bzip2 can expand to gigabytes.
OPENERS: dict[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
BUFFER = 2**20
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED, UTF_8 = 0x1, 0x800  # flags of a zip's member (APPNOTE 4.4.4)
MAX_MEMBER = 64 * 2**20
MAX_TOTAL = 16 * 2**30
DAMAGE = (
    *(tar.DamagedTar, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
    *(EOFError, ValueError, TypeError, RuntimeError),
)


def read(
    path: str, select: Callable[[str], T | None]
) -> Iterator[tuple[str, T, Callable[[], bytes]]]:
    """Yield name, selection and content of the members that `select` does not drop.

    `select` gets the name of each member that is no directory. The content is loaded
    when it is called, before the next member; what nobody calls for is skipped. Raises
    UserError if the file is no archive, is damaged or was cut off, and if a selected
    member is no plain file or has more than 64 MiB, or all of them more than 16 GiB.
    """
    total = 0

    def check_size(name: str, size: int) -> None:
        nonlocal total
        total += size
        if size > MAX_MEMBER or total > MAX_TOTAL:
            raise UserError(
                f"{path}: {name} claims {size} bytes and makes it too large: at most "
                f"{MAX_MEMBER >> 20} MiB a file and {MAX_TOTAL >> 30} GiB in all"
            )

    with _explain_damage(path):
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic.startswith(b"PK\3\4"):
            yield from _read_zip(path, select, check_size)
            return
        openers = [opener for mark, opener in OPENERS.items() if magic.startswith(mark)]
        with openers[0](path) if openers else open(path, "rb") as stream:
            buffered = io.BufferedReader(stream, BUFFER)
            yield from _read_tar(path, buffered, select, check_size)


@contextmanager
def _explain_damage(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run dvc repro") from None
    except DAMAGE as error:
        reason = re.sub(r" ?<[^>]*>", "", str(error))
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the disk's fault, not the file's
            raise
        reason = str(error)
    else:
        return
    raise UserError(
        f"{path} is damaged or no tar or zip archive ({reason}): "
        "pack it again and update download.sha256"
    )


def _read_tar(
    path: str,
    stream: IO[bytes],
    select: Callable[[str], T | None],
    check_size: Callable[[str, int], None],
) -> Iterator[tuple[str, T, Callable[[], bytes]]]:
    reader = tar.TarReader(stream)

    def load() -> bytes:
        with _explain_damage(path):
            return reader.read()

    for name, size, kind in reader:
        if kind == tar.DIRECTORY or (selected := select(name)) is None:
            continue
        if kind == tar.HARD_LINK:
            raise UserError(
                f"{path}: {name} is a link to another member: "
                "pack copies (tar --hard-dereference)"
            )
        if kind != tar.FILE:
            raise UserError(
                f"{path}: {name} is a link or a device: "
                "pack plain files (tar --dereference)"
            )
        check_size(name, size)
        yield name, selected, load


def _read_zip(
    path: str,
    select: Callable[[str], T | None],
    check_size: Callable[[str, int], None],
) -> Iterator[tuple[str, T, Callable[[], bytes]]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if members and min(info.header_offset for info in members) > 0:
            raise zipfile.BadZipFile(
                "something precedes its first member: if two archives were joined, "
                "pack their files into one"
            )

        def load(member: zipfile.ZipInfo) -> bytes:
            with _explain_damage(path), archive.open(member) as content:
                # The header may lie about the size: never read more than it says.
                return content.read(member.file_size)

        for member in members:
            name = _zip_name(member)
            is_directory = name.endswith(("/", "\\"))
            if is_directory or (selected := select(name)) is None:
                continue
            if member.flag_bits & ENCRYPTED:
                raise UserError(f"{path}: {name} is encrypted: pack without a password")
            if member.compress_type not in ZIP_METHODS:
                raise UserError(
                    f"{path}: {name} is compressed neither by deflate nor not at all: "
                    "pack it again"
                )
            check_size(name, member.file_size)
            yield name, selected, partial(load, member)


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Return the name, in UTF-8 even where the packer did not set the flag for it."""
    name = member.filename
    if not member.flag_bits & UTF_8:
        try:
            return name.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return name
