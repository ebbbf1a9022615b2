"""Read images out of archives: which members, in which order, and what is refused."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages import preprocess
from stages.images import archive
from stages.plumbing.errors import UserError, one_line
from stages.plumbing.parameters import Data, Splits
from stages.preprocess import Example

TARS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
FORMATS = [*TARS, "zip", "deflated"]
ZIP_METHODS = {
    "zip": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "zip by bzip2": zipfile.ZIP_BZIP2,
}
SPLITS = Splits("train", "valid")
DATA = Data(("3", "7"), SPLITS, size=None, grayscale=False)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def png(value: int, shape: tuple[int, int] = (2, 3), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(file, kind)
    return file.getvalue()


SMALL = {
    f"{split}/{name}/{i}.png": png(10 * i)
    for split in ("train", "valid")
    for name in "37"
    for i in range(1, 3)
}


def pack(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    kind: str = "tar",
    more: Iterable[tarfile.TarInfo] = (),
) -> bytes:
    """Pack files, and for a tar `more` members without content, in this order."""
    file = io.BytesIO()
    items = list(files.items() if isinstance(files, Mapping) else files)
    if kind in TARS:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, content in items:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for member in more:
                tar.addfile(member)
        return TARS[kind](file.getvalue())
    with zipfile.ZipFile(file, "w", ZIP_METHODS[kind]) as packed:
        for name, content in items:
            packed.writestr(name, content)
    return file.getvalue()


def read(content: bytes, data: Data = DATA) -> tuple[list[Example], np.ndarray]:
    Path("archive").write_bytes(content)
    return preprocess.read_images("archive", data)


def read_train(content: bytes, data: Data) -> tuple[np.ndarray, np.ndarray]:
    return preprocess.sort_split("train", *read(content, data), data)


def error(content: bytes, data: Data = DATA) -> str:
    """Read an archive that is refused, and return the line that says why."""
    with pytest.raises(UserError) as caught:
        read(content, data)
    line = one_line(caught.value)
    assert line is not None
    assert len(line) < 400
    return line


def paths(examples: list[Example]) -> list[str]:
    return [f"{split}/{DATA.classes[label]}/{name}" for split, label, name in examples]


def paths_in(content: bytes) -> set[str]:
    return set(paths(read(content)[0]))


@pytest.mark.parametrize(
    "root", ["", "./", "mnist_sample/", "./mnist_sample/", "größe/"]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_with_and_without_a_root_folder(kind, root):
    files = {root + name: content for name, content in SMALL.items()}
    examples, images = read(pack(files, kind))
    values = dict(zip(paths(examples), images[:, 0, 0].tolist(), strict=True))
    assert values == {name: 10 * int(name[-5]) for name in SMALL}
    assert images.shape == (len(SMALL), 2, 3)


IGNORED = [
    *("train/3/.DS_Store", "train/3/._1.png", "labels.csv", "train/labels.csv"),
    *("__MACOSX/train/3/._1.png", "__MACOSX/train/3/1.png", ".hidden/train/3/1.png"),
    *("train/8/1.png", "test/3/1.png", "train/3/more/1.png", "a/b/train/3/1.png"),
    *("/train/3/9.png", "../train/3/9.png", "train/3/../9.png", "/etc/train/3/9.png"),
    *("train/../../3/9.png", "train//3/9.png"),
]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", IGNORED)
def test_hidden_and_other_members_are_ignored_and_nothing_is_unpacked(
    kind, name, tmp_path
):
    assert paths_in(pack({name: b"no image", **SMALL}, kind)) == set(SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["archive"]
    assert not (tmp_path.parent / "train").exists()


CHARACTERS = st.characters(
    codec="utf-8", exclude_characters="/\0\\", exclude_categories=["Cc", "Cs"]
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=8).filter(
    lambda name: not name.startswith(".") and name != "__MACOSX"
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    names=st.sets(NAMES, min_size=1, max_size=6),
    kind=st.sampled_from(FORMATS),
    root=st.sampled_from(["", "./", "root/"]),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_tensors_do_not_depend_on_the_order_of_the_members(
    names, kind, root, shuffle
):
    data = Data(("3", "sieben"), SPLITS, size=None, grayscale=False)
    files = [
        (f"{root}{split}/{label}/{name}", png(i))
        for split in ("train", "valid")
        for label in data.classes
        for i, name in enumerate(sorted(names))
    ]
    images, labels = read_train(pack(files, kind), data)
    shuffle.shuffle(files)
    shuffled_images, shuffled_labels = read_train(pack(files, kind), data)
    assert labels.tolist() == [0] * len(names) + [1] * len(names)
    np.testing.assert_array_equal(images, shuffled_images)
    np.testing.assert_array_equal(labels, shuffled_labels)


def test_images_are_sorted_by_class_as_listed_then_by_name_in_natural_order():
    order = ["1.png", "2.png", "010.png", "10.png", "a2.png", "a10.png", "b.png"]
    files = {
        f"train/{label}/{name}": png(100 * (label == "3") + i)
        for label in "37"
        for i, name in enumerate(order)
    }
    data = Data(("7", "3"), SPLITS, size=None, grayscale=False)
    images, labels = read_train(pack(dict(sorted(files.items()))), data)
    assert images[:, 0, 0].tolist() == [*range(7), *range(100, 107)]
    assert labels.tolist() == [0] * 7 + [1] * 7


SPECIAL = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "FIFO": tarfile.FIFOTYPE,
}


@pytest.mark.parametrize("kind", SPECIAL.values(), ids=SPECIAL)
def test_links_and_devices_are_refused_in_a_class_and_ignored_elsewhere(kind):
    def special(name: str) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        return member

    line = error(pack(SMALL, more=[special("train/3/link.png")]))
    assert "train/3/link.png is a link or a device" in line
    assert paths_in(pack(SMALL, more=[special("elsewhere/link.png")])) == set(SMALL)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    "name", ["train/3/1.png", "./train/3/1.png", "root/train/3/1.png"]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_image_that_the_archive_holds_twice_is_refused(kind, name):
    line = error(pack([*SMALL.items(), (name, png(1))], kind))
    assert f"{name}: the archive holds train/3/1.png twice" in line


@pytest.mark.parametrize("kind", FORMATS)
def test_an_unusable_image_is_named(kind):
    name = "train/7/broken.png"
    assert f"{name}: not a readable" in error(pack({**SMALL, name: b"GIF89a"}, kind))
    assert f"{name}: not a readable" in error(pack({**SMALL, name: b""}, kind))
    line = error(pack({**SMALL, name: png(0, (3, 2))}, kind))
    assert f"{name}: its size is 3 x 2, but train/3/1.png has 2 x 3" in line


def test_images_of_mixed_sizes_are_resized_to_data_size():
    data = Data(("3", "7"), SPLITS, size=(5, 4), grayscale=False)
    _, images = read(pack({**SMALL, "train/7/large.png": png(9, (30, 20))}), data)
    assert images.shape == (len(SMALL) + 1, 5, 4)


def test_more_images_than_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 6 * len(SMALL))
    assert len(read(pack(SMALL))[0]) == len(SMALL)
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 6 * len(SMALL) - 1)
    line = error(pack(SMALL))
    assert "more than a third of the memory: take fewer classes (data.classes)" in line


@pytest.mark.parametrize(
    ("gone", "split"), [("train/7", "train"), ("valid/3", "valid")]
)
def test_a_class_without_images_is_named(gone, split):
    files = {name: SMALL[name] for name in SMALL if not name.startswith(gone)}
    images = read(pack(files))
    with pytest.raises(UserError, match=f"class '{gone[-1]}' has no images in {split}"):
        preprocess.sort_split(split, *images, DATA)


@pytest.mark.parametrize("kind", TARS)
def test_an_empty_tar_has_no_images(kind):
    assert read(pack({}, kind))[0] == []


@pytest.mark.parametrize("kind", ["zip", "deflated"])
def test_an_empty_zip_is_no_archive(kind):
    assert "damaged or no tar or zip" in error(pack({}, kind))


def test_a_missing_archive_is_named():
    with pytest.raises(UserError, match="nothing/archive is missing: run dvc repro"):
        list(archive.read("nothing/archive", lambda member: member))


def survives(content: bytes) -> bool:
    """Read a damaged archive; UserError is the only exception it may end in."""
    try:
        examples, images = read(content)
    except UserError:
        return False
    assert images.dtype == np.uint8
    assert images.ndim == 3
    assert len(images) == len(examples)
    return True


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_archive_is_refused_if_an_image_is_lost(kind):
    """Between two members of a tar too. A cut may also take nothing but padding."""
    whole = pack(SMALL, kind)
    percents = {len(whole) * percent // 100 for percent in range(0, 100, 5)}
    for size in percents | set(range(0, len(whole), 512)):
        cut = whole[:size]
        assert not survives(cut) or paths_in(cut) == set(SMALL)


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_end_in_images_or_a_user_error(kind):
    chance = random.Random(kind)
    whole = pack(SMALL, kind)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        survives(bytes(damaged))


def test_random_bytes_are_no_archive():
    chance = random.Random(0)
    for start in (b"", b"PK\3\4", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"):
        for size in (0, 1, 511, 512, 3000):
            if start or size:
                line = error(start + chance.randbytes(size))
                assert "damaged or no tar or zip archive" in line


def test_a_zip_with_an_offset_before_its_start_is_damaged():
    """Seeking there fails with an OSError, though the disk is not to blame."""
    whole = bytearray(pack(SMALL, "zip"))
    entry, end = whole.rindex(b"PK\1\2"), whole.rindex(b"PK\5\6")
    struct.pack_into("<I", whole, entry + 42, 0)
    (directory,) = struct.unpack_from("<I", whole, end + 16)
    struct.pack_into("<I", whole, end + 16, directory + 50)
    assert "damaged" in error(bytes(whole))


def header(size: int) -> bytes:
    member = tarfile.TarInfo("train/3/1.png")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", TARS)
@pytest.mark.parametrize("size", [-1, -(2**40), 2**26 + 1, 2**40, 2**62])
def test_a_header_with_a_huge_or_negative_size_is_refused(kind, size):
    line = error(TARS[kind](header(size) + bytes(2048)))
    assert f"train/3/1.png claims {size} bytes" in line


def test_a_pax_header_with_a_huge_size_is_refused():
    member = tarfile.TarInfo("train/3/1.png")
    member.pax_headers = {"size": str(2**40)}
    assert "train/3/1.png makes it too large" in error(pack({}, more=[member]))


def zip_bomb() -> bytes:
    """Make a zip of 100 MiB of zeros whose header claims ten bytes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = b"".join(deflate.compress(bytes(2**20)) for _ in range(100))
    bomb = bytearray(pack({"train/3/1.png": zeros + deflate.flush()}, "zip"))
    for signature, method, size in ((b"PK\3\4", 8, 22), (b"PK\1\2", 10, 24)):
        start = bomb.rindex(signature)
        struct.pack_into("<H", bomb, start + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", bomb, start + size, 10)
    return bytes(bomb)


def tar_bomb(compress: Callable[[bytes], bytes]) -> bytes:
    """Make a tar of 100 MiB of zeros whose header claims 8 GiB."""
    return compress(header(2**33 - 1) + bytes(100 * 2**20))


def png_bomb() -> bytes:
    """Make a PNG whose header claims 60,000 x 60,000 pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    length, checksum = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + length + chunk + checksum + png(0)[33:]


def zeros(mebibytes: int, kind: str) -> bytes:
    return pack({"train/3/1.png": bytes(mebibytes * 2**20)}, kind)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip with a false size": (zip_bomb, "Bad CRC-32"),
    "gzip": (lambda: tar_bomb(gzip.compress), "claims"),
    "bzip2": (lambda: tar_bomb(bz2.compress), "claims"),
    "zip by bzip2": (lambda: zeros(60, "zip by bzip2"), "neither by deflate"),
    "zip": (lambda: zeros(65, "deflated"), "too large"),
    "PNG": (lambda: pack({"train/3/1.png": png_bomb()}), "60000 x 60000"),
}


@pytest.mark.parametrize(("bomb", "reason"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_in_little_memory(bomb, reason):
    content = bomb()
    tracemalloc.start()
    line = error(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason in line
    assert peak < 16 * 2**20


def test_the_total_size_is_bounded(monkeypatch):
    monkeypatch.setattr(archive, "MAX_TOTAL", 100)
    assert "makes it too large" in error(pack(SMALL, "gz"))
    assert "makes it too large" in error(pack(SMALL, "zip"))
