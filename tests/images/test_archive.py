"""Archives of every format: read whole or refused, in little memory."""

import io
import random
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.images import archive
from stages.plumbing.errors import UserError
from tests.builders import (
    FORMATS,
    LEVELS,
    SMALL,
    TARS,
    damaged,
    data_params,
    dataset,
    levels,
    pack,
    png,
    read,
    refusal,
)

pytestmark = pytest.mark.usefixtures("in_tmp_path")

DAMAGED = "is damaged or not a tar or zip archive"


@pytest.mark.parametrize(
    "root", ["", "./", "mnist_sample/", "./mnist_sample/", "größe/"]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_with_and_without_a_root_folder(kind, root):
    files = {root + name: content for name, content in SMALL.items()}
    assert levels(pack(files, kind)) == LEVELS


SPECIAL = {
    tarfile.SYMTYPE: "train/3/x.png is a link or a device",
    tarfile.LNKTYPE: "train/3/x.png is a link to another member: pack copies "
    "(tar --hard-dereference)",
    tarfile.CHRTYPE: "train/3/x.png is a link or a device",
    tarfile.BLKTYPE: "train/3/x.png is a link or a device",
    tarfile.FIFOTYPE: "train/3/x.png is a link or a device",
    b"S": "train/3/x.png is stored as a sparse file: pack it whole",
    b"M": "train/3/x.png begins in another volume: pack without --multi-volume",
}


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize("kind", SPECIAL)
def test_links_and_devices_are_refused_in_a_class_and_ignored_elsewhere(kind):
    line = refusal(read, pack(SMALL, more=[special("train/3/x.png", kind)]))
    assert SPECIAL[kind] in line
    assert DAMAGED not in line
    assert levels(pack(SMALL, more=[special("else/x.png", kind)])) == LEVELS


def test_a_sparse_file_that_macos_packs_is_refused_by_its_name():
    """Its tar stores holes (pax, GNU sparse format 1.0) unasked."""
    member = tarfile.TarInfo("train/3/GNUSparseFile.0/x.png")
    sparse = {"major": "1", "minor": "0", "name": "train/3/x.png", "realsize": "9"}
    member.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
    line = refusal(read, pack(SMALL, more=[member]))
    assert SPECIAL[b"S"] in line
    assert "on a Mac, with --no-read-sparse" in line


def test_links_in_a_zip_are_refused_in_a_class_and_ignored_elsewhere():
    """As `zip --symlinks` stores them."""

    def packed(name: str) -> bytes:
        file = io.BytesIO(pack(SMALL, "zip"))
        with zipfile.ZipFile(file, "a") as archive:
            link = zipfile.ZipInfo(name)
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "../7/0.png")
        return file.getvalue()

    assert "train/3/x.png is a link: pack plain files" in refusal(
        read, packed("train/3/x.png")
    )
    assert levels(packed("else/x.png")) == LEVELS


OTHERS = {
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive: unpack it"),
    "RAR": (b"Rar!\x1a\7\1\0", "is a RAR archive: unpack it"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "pointer: run git lfs pull",
    ),
    "first part of a zip": (b"PK\7\x08PK\3\4", "is a part of a split zip: join"),
    "last part of a zip": (b"x" * 99 + b"PK\5\6\2" + bytes(17), "of a split zip: join"),
}


@pytest.mark.parametrize(("content", "line"), OTHERS.values(), ids=OTHERS)
def test_other_archives_are_named(content, line):
    assert line in refusal(read, content)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_unusable_image_is_named(kind):
    name = "train/7/broken.png"
    for content in (b"GIF89a", b""):
        line = refusal(read, pack({**SMALL, name: content}, kind))
        assert f"{name}: not a readable" in line
    line = refusal(read, pack({**SMALL, name: png(0, (3, 2))}, kind))
    assert f"{name}: its size is 3 x 2, but train/3/0.png has 2 x 3" in line


def test_empty_and_missing_archives_are_refused():
    for kind in TARS:
        assert "the archive has no other folders" in refusal(read, pack({}, kind))
    assert DAMAGED in refusal(read, pack({}, "zip"))
    line = refusal(archive.Archive, "nothing/archive", io.BytesIO())
    assert line == "nothing/archive is missing: run dvc repro"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_archive_is_refused_unless_only_padding_is_lost(kind):
    """Cut between two members of a tar, too, which tarfile takes for its end."""
    whole = pack(SMALL, kind)
    percents = {len(whole) * percent // 100 for percent in range(0, 100, 5)}
    for size in percents | set(range(0, len(whole), 512)):
        try:
            left = levels(whole[:size])
        except UserError as error:
            left = LEVELS if DAMAGED in str(error) else []
        assert left == LEVELS


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_end_in_images_or_a_user_error(kind):
    for content in damaged(pack(SMALL, kind), kind):
        with suppress(UserError):
            for images, labels in read(content):
                assert (images.dtype, images.ndim) == (np.uint8, 4)
                assert len(images) == len(labels)


def test_random_bytes_are_not_an_archive():
    chance = random.Random(0)
    for start in (
        b"",
        b"PK\3\4",
        b"\x1f\x8b\x08",
        b"BZh9",
        b"\xfd7zXZ\0",
        archive.ZSTD,
    ):
        for size in (0, 1, 511, 512, 3000):
            if start or size:
                assert DAMAGED in refusal(read, start + chance.randbytes(size))


def test_a_zip_with_an_offset_before_its_start_is_damaged():
    """Seeking there fails with an OSError, though the disk is not to blame."""
    whole = bytearray(pack(SMALL, "zip"))
    entry, end = whole.rindex(b"PK\1\2"), whole.rindex(b"PK\5\6")
    struct.pack_into("<I", whole, entry + 42, 0)
    (directory,) = struct.unpack_from("<I", whole, end + 16)
    struct.pack_into("<I", whole, end + 16, directory + 50)
    assert DAMAGED in refusal(read, bytes(whole))


def test_a_gzip_whose_checksum_is_wrong_is_refused():
    damaged = bytearray(pack(SMALL, "gz"))
    damaged[-5] ^= 1
    assert DAMAGED in refusal(read, bytes(damaged))


@pytest.mark.parametrize("kind", TARS)
def test_what_follows_the_end_of_a_tar_is_refused_unless_it_is_zeros(kind):
    one, other = pack(SMALL), pack({"train/3/9.png": png(9)})
    assert levels(TARS[kind](one + bytes(10_240))) == LEVELS
    for joined in (TARS[kind](one + other), TARS[kind](one) + TARS[kind](other)):
        line = refusal(read, joined)
        assert "more follows its end, which is after valid/7/1.png" in line
        assert "if two archives were joined, pack their files into one" in line


def test_zips_that_were_joined_are_refused():
    joined = pack({"train/3/9.png": png(9)}, "zip") + pack(SMALL, "zip")
    assert "something precedes its first member" in refusal(read, joined)


def with_flag(packed: bytes, bit: int, *, is_set: bool) -> bytes:
    """Set or clear a flag of every member of a zip (APPNOTE 4.4.4)."""
    changed = bytearray(packed)
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := changed.find(signature, at + 1)) >= 0:
            (old,) = struct.unpack_from("<H", changed, at + flags)
            new = old | bit if is_set else old & ~bit
            struct.pack_into("<H", changed, at + flags, new)
    return bytes(changed)


def test_utf_8_names_in_a_zip_without_the_flag_are_read():
    files = dataset(2, ["größe", "7"])
    packed = with_flag(pack(files, "zip"), 0x800, is_set=False)
    assert levels(packed, data_params(["größe", "7"])) == LEVELS


def test_an_encrypted_zip_says_so():
    packed = with_flag(pack(SMALL, "zip"), 0x1, is_set=True)
    assert "is encrypted: pack without a password" in refusal(read, packed)


class Member(NamedTuple):
    """A member of a zip, written by the book (APPNOTE 4.3.7 to 4.3.16, 4.6.9)."""

    name: tuple[str, str]  # and its encoding
    flag: bool  # whether UTF-8 is said to be UTF-8
    field: tuple[int, int] | None  # version and CRC-32, less the right ones
    descriptor: bytes | None  # its signature, if sizes follow the content
    zip64: bool
    content: bytes

    @property
    def expected(self) -> str:
        """The name that a reader finds."""
        return f"{self.name[0]}+" if self.field == (0, 0) else self.name[0]

    def write(self, start: int) -> tuple[bytes, bytes]:
        """Return the member and its entry in the directory."""
        name, crc = self.name[0].encode(self.name[1]), zlib.crc32(self.content)
        deflate = zlib.compressobj(wbits=-15)
        stored = deflate.compress(self.content) + deflate.flush()
        sizes = len(stored), len(self.content)
        is_said = self.flag and self.name[1] != "cp437"
        flags = 0x800 * is_said + 0x8 * (self.descriptor is not None)
        common = struct.pack("<HHHHH", 45, flags, 8, 0, 33)
        extra = struct.pack("<HHI", 0x5855, 4, 0)  # of Info-ZIP: to be skipped
        if self.field:
            version, wrong = 1 + self.field[0], zlib.crc32(name) ^ self.field[1]
            path = struct.pack("<BI", version, wrong) + f"{self.name[0]}+".encode()
            extra += struct.pack("<HH", 0x7075, len(path)) + path
        shown: tuple[int, ...] = (crc, *sizes)
        local = (0, 0, 0) if self.descriptor is not None else shown
        tail = b""
        if self.descriptor is not None:
            tail = self.descriptor + struct.pack("<III", *shown)
        entry_extra, offset = extra, start
        if self.zip64:
            entry_extra += struct.pack("<HHQQQ", 1, 24, *sizes[::-1], start)
            shown, offset = (crc, 0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF
        lengths = struct.pack("<III HH", *local, len(name), len(extra))
        member = b"PK\3\4" + common + lengths + name + extra + stored + tail
        lengths = struct.pack("<III HHH", *shown, len(name), len(entry_extra), 0)
        rest = struct.pack("<HHII", 0, 0, 0, offset)
        head = b"PK\1\2" + struct.pack("<H", 0x032D) + common
        return member, head + lengths + rest + name + entry_extra


ASCII = st.characters(codec="ascii", exclude_characters="\\/", exclude_categories=["C"])
NAMES = st.one_of(  # and their encodings
    st.tuples(st.text(ASCII, min_size=1), st.just("ascii")),
    st.tuples(st.text(ASCII, min_size=1).map("größe/{}日本".format), st.just("utf-8")),
    # As these bytes are not UTF-8, they can be told apart.
    st.tuples(st.text(ASCII, min_size=1).map("äé/{}ü".format), st.just("cp437")),
)
MEMBERS = st.builds(
    Member,
    NAMES,
    st.booleans(),
    st.sampled_from([None, (0, 0), (1, 0), (0, 1)]),
    st.sampled_from([None, b"", b"PK\7\x08"]),
    st.booleans(),
    st.binary(max_size=99),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(MEMBERS, min_size=1, max_size=4), st.booleans(), st.binary(max_size=9))
def test_a_zip_written_by_the_book_is_read_the_same_by_every_python(
    members, is_zip64, comment
):
    """Python 3.11 ignores a Unicode Path field, Python 3.12 reads it."""
    body, directory = b"", b""
    for written in members:
        member, entry = written.write(len(body))
        body, directory = body + member, directory + entry
    count, size, at = len(members), len(directory), len(body)
    end = b""
    if is_zip64:
        sizes = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, at)
        end = b"PK\6\6" + sizes + b"PK\6\7" + struct.pack("<IQI", 0, at + size, 1)
        count, size, at = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    end += b"PK\5\6" + struct.pack(
        "<HHHHIIH", 0, 0, count, count, size, at, len(comment)
    )
    Path("archive").write_bytes(body + directory + end + comment)
    with tempfile.TemporaryFile() as spool, archive.Archive("archive", spool) as opened:
        found = [(name, opened.load(entry)) for name, entry in opened.find(str)]
    assert found == [(member.expected, member.content) for member in members]


# What claims to be large, or is.


def gnu_header(size: int) -> bytes:
    member = tarfile.TarInfo("train/3/1.png")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


@pytest.mark.parametrize("kind", TARS)
@pytest.mark.parametrize("size", [-1, -(2**40), 2**26 + 1, 2**40, 2**62])
def test_a_header_with_a_huge_or_negative_size_is_refused(kind, size):
    member = tarfile.TarInfo("train/3/1.png")
    member.pax_headers = {"size": str(size)}
    for packed in (pack({}, kind, more=[member]), TARS[kind](gnu_header(size))):
        line = refusal(read, packed)
        assert f"train/3/1.png claims {size} bytes" in line


@pytest.mark.parametrize("kind", FORMATS)
def test_a_large_file_beside_the_images_is_skipped(kind, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBER", 1000)
    files = {"video.mp4": bytes(5000), "train/3/notes.txt": bytes(5000), **SMALL}
    assert levels(pack(files, kind)) == LEVELS


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_the_total_size_is_bounded(kind, monkeypatch):
    monkeypatch.setattr(archive, "MAX_TOTAL", 100)
    assert "makes it too large" in refusal(read, pack(SMALL, kind))


def zip_bomb() -> bytes:
    """Make a zip of 100 MiB of zeros whose header claims ten bytes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = b"".join(deflate.compress(bytes(2**20)) for _ in range(100))
    bomb = bytearray(pack_first(zeros + deflate.flush(), "zip"))
    for signature, method, size in ((b"PK\3\4", 8, 22), (b"PK\1\2", 10, 24)):
        start = bomb.index(signature)
        struct.pack_into("<H", bomb, start + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", bomb, start + size, 10)
    return bytes(bomb)


def pack_first(content: bytes, kind: str) -> bytes:
    """Pack an image before the others: the first is decoded in this process."""
    return pack({"train/3/first.png": content, **SMALL}, kind)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip with a false size": (zip_bomb, "Bad CRC-32"),
    "zip by bzip2": (
        lambda: pack_first(bytes(60 * 2**20), "zip by bzip2"),
        "uses an unsupported compression method",
    ),
    "zip": (lambda: pack_first(bytes(65 * 2**20), "deflated"), "too large"),
}


@pytest.mark.parametrize(("bomb", "reason"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_in_little_memory(bomb, reason):
    content = bomb()
    tracemalloc.start()
    line = refusal(read, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason in line
    assert peak < 16 * 2**20
