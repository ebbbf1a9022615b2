"""Read a tar file as a stream: ustar, pax and GNU headers, checked to the last byte.

Python's tarfile mistakes a damaged header for the end of the archive, and ignores data
after the end. It is also nine times slower per member. This reader verifies every
header's checksum, and requires two blocks of zeros at the end and only zeros after
them. Format: POSIX.1-2017, "pax"; GNU tar manual, "Basic Tar Format".
"""

import re
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
END = bytes(BLOCK)
PIECE = 2**20
MAX_FIELDS = 2**23
"""Maximum size in bytes of a long name or pax header. A path has at most 4,096, but an
incremental GNU tar lists each folder's files there."""

FILE, DIRECTORY, HARD_LINK = b"0", b"5", b"1"
SPARSE, CONTINUED, LISTING, LABEL = b"S", b"M", b"D", b"V"  # of GNU tar
LONG_NAME, LONG_LINK, PAX, PAX_SOLARIS, PAX_GLOBAL = b"L", b"K", b"x", b"X", b"g"
EXTENSIONS = (LONG_NAME, LONG_LINK, PAX, PAX_SOLARIS, PAX_GLOBAL)
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, directories and pipes: ignore any size in their headers."""


class DamagedTar(Exception):
    """The stream is not a tar file, or is damaged or truncated."""


class TarMember(NamedTuple):
    """The header of a member; `type` is the POSIX typeflag."""

    name: str
    size: int
    type: bytes


class TarReader:
    """Iterates over the members of a tar stream; `read` returns the current content."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._name = "its first header"
        self._size = 0  # of the unread content of the current member
        self._padding = 0  # from its end to the next multiple of BLOCK

    def __iter__(self) -> Iterator[TarMember]:
        """Yield the members; raise DamagedTar at the first wrong byte."""
        shared: dict[str, str] = {}  # override the fields of all following headers
        fields: dict[str, str] = {}  # override the fields of the next header only
        while (header := self._take(BLOCK)) != END:
            name, size, kind = _parse_header(header)
            if kind in EXTENSIONS:
                if not 0 <= size <= MAX_FIELDS:
                    raise DamagedTar(f"{name} claims {size} bytes")
                content = self._take(size + -size % BLOCK)[:size]
                if kind == LONG_NAME:
                    fields["path"] = _decode(content)
                elif kind == PAX_GLOBAL:
                    shared |= _parse_pax(content)
                elif kind != LONG_LINK:
                    fields |= _parse_pax(content)
                continue
            if kind == SPARSE and header[482]:  # GNU's: more header blocks follow
                while self._take(BLOCK)[504]:
                    pass
            if shared or fields:
                fields = shared | fields  # a member's own fields win
                name = fields.get("GNU.sparse.name", fields.get("path", name))
                size = _parse_size(fields.get("size", str(size)), name)
                if any(key.startswith("GNU.sparse") for key in fields):
                    kind = SPARSE
                fields = {}
            if kind in WITHOUT_CONTENT:
                size = 0
            if kind in (LISTING, LABEL):  # of an incremental or a labelled archive
                kind = DIRECTORY
            if size < 0:
                raise DamagedTar(f"{name} claims {size} bytes")
            self._name, self._size, self._padding = name, size, -size % BLOCK
            yield TarMember(name, size, kind)
            self._skip()
        self._check_end()

    def read(self) -> bytes:
        """Return the content of the current member; can be called once."""
        content = self._take(self._size)
        self._size = 0
        return content

    def _take(self, size: int) -> bytes:
        content = self._stream.read(size)
        if len(content) != size:
            raise DamagedTar(f"it is cut off in or after {self._name}")
        return content

    def _skip(self) -> None:
        rest = self._size + self._padding
        while rest > PIECE:  # read, not seek, to notice a truncated file
            rest -= len(self._take(PIECE))
        self._take(rest)

    def _check_end(self) -> None:
        if self._take(BLOCK) != END:
            raise DamagedTar(f"it has a block of zeros after {self._name}")
        while piece := self._stream.read(PIECE):
            if piece.count(0) != len(piece):
                raise DamagedTar(
                    f"more follows its end, which is after {self._name}: if two "
                    "archives were joined, pack their files into one"
                )


def _parse_header(header: bytes) -> tuple[str, int, bytes]:
    """Return name, size and type of a header; raise DamagedTar if it is damaged."""
    name = _decode(header[:100])
    stored = _parse_number(header[148:156], name)
    if not _is_checksum(stored, header[:148] + b" " * 8 + header[156:]):
        raise DamagedTar(f"a header with the name {name[:60]!r} is damaged")
    kind = header[156:157]
    if kind in (b"\0", b"7"):  # a pre-POSIX file, a contiguous file
        kind = DIRECTORY if name.endswith("/") else FILE
    if header[257:263] == b"ustar\0" and header[345]:
        # POSIX splits a path of over 100 bytes.
        name = f"{_decode(header[345:500])}/{name}"
    return name, _parse_number(header[124:136], name), kind


def _is_checksum(stored: int, header: bytes) -> bool:
    """Return whether `stored` is the sum of the header's bytes (checksum blanked)."""
    # The low half of Adler-32 is 1 + the sum modulo 65,521, far faster than sum().
    if stored == (zlib.adler32(header) & 0xFFFF) - 1:
        return True
    # Some old programs summed signed bytes.
    signed = sum(header) - 256 * sum(byte > 127 for byte in header)
    return stored in (sum(header), signed)


def _parse_number(field: bytes, name: str) -> int:
    """Parse an octal number, or GNU tar's base-256 form, marked by 0x80 or 0xff."""
    if field[0] in (0x80, 0xFF):
        sign = -(256 ** (len(field) - 1)) if field[0] == 0xFF else 0
        return int.from_bytes(field[1:]) + sign
    try:
        return int(field.partition(b"\0")[0].strip(b" ") or b"0", 8)
    except ValueError:
        raise DamagedTar(f"a header with the name {name[:60]!r} is damaged") from None


def _parse_size(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DamagedTar(f"{name} claims {text!r} bytes") from None


def _parse_pax(content: bytes) -> dict[str, str]:
    r"""Parse records of the form `LENGTH KEY=VALUE\n`."""
    records, start = {}, 0
    while start < len(content):
        length = re.compile(rb"([1-9][0-9]{0,6}) ").match(content, start)
        end = start + int(length[1]) if length else 0
        if not length or end > len(content) or content[end - 1 : end] != b"\n":
            raise DamagedTar("a pax header is damaged")
        key, _, value = content[length.end() : end - 1].partition(b"=")
        records[_decode(key)] = _decode(value)
        start = end
    return records


def _decode(field: bytes) -> str:
    # Padded with NUL bytes. surrogateescape keeps bytes that are not UTF-8.
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
