"""List the files in a tar (plain or compressed) or zip archive; load any of them.

Nothing is extracted to disk under its own name, and every decompression is bounded.
"""

import bz2
import errno
import gzip
import importlib
import io
import lzma
import os
import re
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, NamedTuple, Self, TypeVar

from stages.images import tar
from stages.plumbing import artifacts
from stages.plumbing.errors import UserError
from stages.plumbing.npz import find_content

T = TypeVar("T")

# Opened as streams, since a few bytes of bzip2 can expand to gigabytes.
OPENERS: dict[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"]\0\0": lzma.open,  # .lzma
}
ZSTD = b"\x28\xb5\x2f\xfd"
JOIN = "a part of a split zip: join the parts (zip -s 0 IN.zip --out OUT.zip)"
OTHERS = {
    b"7z\xbc\xaf": "a 7z archive: unpack it, and pack the files as a tar or zip",
    b"Rar!": "a RAR archive: unpack it, and pack the files as a tar or zip",
    ZSTD: "compressed with zstd: decompress it (zstd -d)",
    b"PK\7\x08": JOIN,
    b"vers": "no archive but a Git LFS pointer: run git lfs pull",
}
"""Archives that are not read, by their first bytes, and what to do."""
LINK = "is a link or a device: pack plain files (tar --dereference)"
REFUSED = {
    tar.HARD_LINK: "is a link to another member: pack copies (tar --hard-dereference)",
    tar.SPARSE: "is stored as a sparse file: pack it whole "
    "(tar without --sparse; on a Mac, with --no-read-sparse)",
    tar.CONTINUED: "begins in another volume: pack without --multi-volume",
}
"""Members of a tar that are neither files nor directories, and what to do."""
BUFFER = 2**20
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ZIP_END = struct.Struct("<4sH16x")  # signature and number of this part (APPNOTE 4.3.16)
ENCRYPTED, UTF_8 = 0x1, 0x800  # flags of a zip member (APPNOTE 4.4.4)
UNICODE_PATH = 0x7075  # an extra field of a zip member (APPNOTE 4.6.9)
MAX_MEMBER = 64 * 2**20  # bytes
MAX_TOTAL = 16 * 2**30
# zipfile raises any of these, depending on which byte is damaged.
DAMAGE: tuple[type[Exception], ...] = (
    *(tar.DamagedTar, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
    *(struct.error, EOFError, ValueError, TypeError, RuntimeError),
)
with suppress(ImportError):  # Python 3.14 can be built without it
    zstd = importlib.import_module(
        "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    )
    OPENERS[ZSTD] = zstd.open
    DAMAGE += (zstd.ZstdError,)


class Entry(NamedTuple):
    """Where an archive stores a file; offsets and sizes in bytes."""

    name_start: int
    """Offset in the spool."""
    name_size: int
    start: int
    """Offset of the content: in the spool for a compressed tar, else in the archive."""
    stored_size: int
    size: int
    """Size of the content once inflated."""
    is_deflated: int
    crc: int
    """CRC-32 of a zip member, or -1 in a tar, which stores none."""
    archive: int
    """Index of the archive, of several."""


class Archive:
    """An archive to list once, in archive order, and then load from in any order.

    `spool` is a scratch file for the names and, since a compressed tar has no random
    access, for its decompressed content. Forked processes may call `load`, too.
    `index` is for the entries.
    """

    def __init__(self, path: str, spool: IO[bytes], index: int = 0) -> None:
        self._path, self._spool, self._index = path, spool, index
        self._total = self._spooled = 0
        try:
            self._file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: run dvc repro") from None
        magic = os.pread(self._file, 6, 0)
        openers = [opener for mark, opener in OPENERS.items() if magic.startswith(mark)]
        self._decompress = openers[0] if openers else None
        self._is_zip = magic.startswith(b"PK\3\4")
        self._contents = spool.fileno() if openers else self._file

    def __enter__(self) -> Self:
        """Return the archive; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the archive."""
        os.close(self._file)

    def find(self, select: Callable[[str], T | None]) -> Iterator[tuple[T, Entry]]:
        """Yield (select(name), entry) for members, unless `select` returns None.

        Directories are skipped. Raises UserError if the file is not an archive, is
        damaged or truncated, if a selected member is not a regular file or exceeds
        64 MiB, or if all of them together exceed 16 GiB.
        """
        with self._name_errors():
            self._spooled = self._spool.tell()  # by other archives
            yield from (self._find_zip if self._is_zip else self._find_tar)(select)
            self._spool.flush()

    def name(self, entry: Entry) -> str:
        """Return the name of a file as stored in the archive."""
        name = os.pread(self._spool.fileno(), entry.name_size, entry.name_start)
        return name.decode("utf-8", "surrogateescape")

    def load(self, entry: Entry) -> bytes:
        """Return the content of a file; raise UserError if it is damaged."""
        # pread ignores the file position, which forked processes share.
        content = os.pread(self._contents, entry.stored_size, entry.start)
        if entry.crc < 0:
            return content
        with self._name_errors():
            if entry.is_deflated:
                # A negative number means raw deflate. The header's size may be a lie:
                # never inflate more than it says (but 0 would mean no limit).
                inflate = zlib.decompressobj(-zlib.MAX_WBITS).decompress
                content = inflate(content, max(entry.size, 1))
            if len(content) != entry.size:
                raise EOFError(f"{self.name(entry)} is cut off")
            if zlib.crc32(content) != entry.crc:
                raise zipfile.BadZipFile(f"Bad CRC-32 for file {self.name(entry)!r}")
            return content

    def _find_tar(self, select: Callable[[str], T | None]) -> Iterator[tuple[T, Entry]]:
        if not self._decompress and (other := _find_other(self._file)):
            raise UserError(f"is {other}")
        opened = (self._decompress or _open_plain)(self._path)
        with opened, io.BufferedReader(opened, BUFFER) as stream:
            reader = tar.TarReader(stream)
            for name, size, kind in reader:
                if kind == tar.DIRECTORY or (selected := select(name)) is None:
                    continue
                if kind != tar.FILE:
                    problem = REFUSED.get(kind, LINK)
                    raise UserError(f"{name} {problem}")
                self._check_size(name, size)
                named = self._append(_encode(name))
                if self._decompress:
                    start, _ = self._append(reader.read())
                else:
                    start = stream.tell()  # `load` reads the archive itself
                yield selected, Entry(*named, start, size, size, False, -1, self._index)

    def _find_zip(self, select: Callable[[str], T | None]) -> Iterator[tuple[T, Entry]]:
        with zipfile.ZipFile(self._path) as file:
            members = file.infolist()
        # zipfile reads the last of several joined archives and ignores the others.
        if members and min(member.header_offset for member in members) > 0:
            raise zipfile.BadZipFile(
                "something precedes its first member: if two archives were joined, "
                "pack their files into one"
            )
        for member in members:
            name = _zip_name(member)
            is_directory = name.endswith(("/", "\\"))
            if is_directory or (selected := select(name)) is None:
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(
                    f"{name} is a link: pack plain files (zip without --symlinks)"
                )
            if member.flag_bits & ENCRYPTED:
                raise UserError(f"{name} is encrypted: pack without a password")
            if member.compress_type not in ZIP_METHODS:
                raise UserError(
                    f"{name} uses an unsupported compression method: "
                    "pack it again with deflate"
                )
            self._check_size(name, member.file_size)
            yield (
                selected,
                Entry(
                    *self._append(_encode(name)),
                    find_content(self._file, member),
                    member.compress_size,
                    member.file_size,
                    member.compress_type == zipfile.ZIP_DEFLATED,
                    member.CRC,
                    self._index,
                ),
            )

    def _append(self, content: bytes) -> tuple[int, int]:
        """Append to the spool; return offset and size."""
        start, size = self._spooled, self._spool.write(content)
        self._spooled += size
        return start, size

    def _check_size(self, name: str, size: int) -> None:
        self._total += size
        if size > MAX_MEMBER or self._total > MAX_TOTAL:
            raise UserError(
                f"{name} claims {size} bytes and makes it too large: at "
                f"most {MAX_MEMBER >> 20} MiB a file and {MAX_TOTAL >> 30} GiB in all"
            )

    @contextmanager
    def _name_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"{self._path}: {error}") from None
        except DAMAGE as error:
            # Without the addresses of objects.
            reason = re.sub(r" ?<[^>]*>", "", str(error))
        except OSError as error:
            # gzip and bz2 raise it without errno for bad data; a negative offset in a
            # zip raises EINVAL. Anything else is a disk error.
            if error.errno not in (None, errno.EINVAL):
                raise
            reason = str(error)
        else:
            return
        raise UserError(
            f"{self._path} is damaged or not a tar or zip archive ({reason}): "
            "pack or download it again"
        )


class Archives(ExitStack):
    """A folder of numbered archives, or one archive, to be read as an `Archive` is."""

    def __init__(self, path: str, spool: IO[bytes]) -> None:
        super().__init__()
        paths = [path]
        if os.path.isdir(path):
            paths = artifacts.numbered(path, len(os.listdir(path)))
        opened = (Archive(path, spool, i) for i, path in enumerate(paths))
        self._archives = [self.enter_context(archive) for archive in opened]
        self._prefixes = [f"{path}: " if paths[1:] else "" for path in paths]

    def find(self, select: Callable[[str], T | None]) -> Iterator[tuple[T, Entry]]:
        """Yield what `Archive.find` does, one archive after the other."""
        for archive in self._archives:
            yield from archive.find(select)

    def load(self, entry: Entry) -> bytes:
        """Return the content of a file; raise UserError if it is damaged."""
        return self._archives[entry.archive].load(entry)

    def name(self, entry: Entry) -> str:
        """Return the name of a file as stored in its archive."""
        return self._archives[entry.archive].name(entry)

    def label(self, entry: Entry) -> str:
        """Return the name of a file after that of its archive, if there are several."""
        return self._prefixes[entry.archive] + self.name(entry)


def _find_other(file: int) -> str | None:
    """Return what a file is if it is another archive, and what to do; or None."""
    end = os.pread(file, ZIP_END.size, max(os.stat(file).st_size - ZIP_END.size, 0))
    if end.startswith(b"PK\5\6") and ZIP_END.unpack(end)[1]:
        return JOIN
    return OTHERS.get(os.pread(file, 4, 0))


def _open_plain(path: str) -> io.RawIOBase:
    return open(path, "rb", buffering=0)


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Return the name: of a Unicode Path field, else in UTF-8, else in code page 437.

    Many packers write UTF-8 without setting the flag.
    """
    # Not member.filename, which ignores the field in Python 3.11.
    name = member.orig_filename
    stored = name.encode("utf-8" if member.flag_bits & UTF_8 else "cp437")
    with suppress(UnicodeError):
        name = stored.decode("utf-8")
    extra = member.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == UNICODE_PATH:
            version, crc = struct.unpack_from("<BL", extra[4 : size + 4])
            # Another CRC-32 means that the member was renamed later.
            if version == 1 and crc == zlib.crc32(stored) and size > 5:
                name = extra[9 : size + 4].decode("utf-8")
        extra = extra[size + 4 :]
    return name.partition("\0")[0]
