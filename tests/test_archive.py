"""Images read out of archives: which members count, in which order, and what is refused."""

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

from stages import archive, preprocess
from stages.parameters import Data, Splits
from stages.running import Refusal, one_line

TARS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
FORMATS = [*TARS, "zip", "deflated"]
DATA = Data(("3", "7"), Splits("train", "valid"), size=None, grayscale=False)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def png(value: int, shape: tuple[int, int] = (2, 3), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(file, kind)
    return file.getvalue()


SMALL = {f"{split}/{name}/{i}.png": png(10 * i) for split in ("train", "valid") for name in "37" for i in range(1, 3)}


def pack(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], kind: str = "tar", more: Iterable[tarfile.TarInfo] = ()
) -> bytes:
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
    methods = {"deflated": zipfile.ZIP_DEFLATED, "zip by bzip2": zipfile.ZIP_BZIP2}
    with zipfile.ZipFile(file, "w", methods.get(kind, zipfile.ZIP_STORED)) as packed:
        for name, content in items:
            packed.writestr(name, content)
    return file.getvalue()


def read(content: bytes, data: Data = DATA) -> tuple[list[preprocess.Place], np.ndarray]:
    Path("archive").write_bytes(content)
    return preprocess.read_images("archive", data)


def refusal(content: bytes, data: Data = DATA) -> str:
    with pytest.raises(Refusal) as caught:
        read(content, data)
    line = one_line(caught.value)
    assert line is not None
    assert len(line) < 400
    return line


def names(content: bytes) -> set[str]:
    return {path(place) for place in read(content)[0]}


def path(place: preprocess.Place) -> str:
    split, label, name = place
    return f"{split}/{DATA.classes[label]}/{name}"


@pytest.mark.parametrize("root", ["", "./", "mnist_sample/", "./mnist_sample/", "größe/"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_with_and_without_a_root_folder(kind, root):
    places, pixels = read(pack({root + name: content for name, content in SMALL.items()}, kind))
    assert {path(place): int(image[0, 0]) for place, image in zip(places, pixels, strict=True)} == {
        name: 10 * int(name[-5]) for name in SMALL
    }
    assert pixels.shape == (len(SMALL), 2, 3)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    "name",
    [
        "train/3/.DS_Store", "train/3/._1.png", "__MACOSX/train/3/._1.png", "__MACOSX/train/3/1.png", "labels.csv",
        "train/labels.csv", "train/8/1.png", "test/3/1.png", "train/3/more/1.png", "a/b/train/3/1.png",
        ".hidden/train/3/1.png", "/train/3/9.png", "../train/3/9.png", "train/3/../9.png", "/etc/train/3/9.png",
        "train/../../3/9.png", "train//3/9.png",
    ],
)  # fmt: skip
def test_what_is_hidden_elsewhere_or_outside_is_ignored_and_nothing_is_unpacked(kind, name, tmp_path):
    assert names(pack({name: b"no image", **SMALL}, kind)) == set(SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["archive"]
    assert not (tmp_path.parent / "train").exists()


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0\\", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stems=st.sets(NAMES.filter(lambda name: not name.startswith(".") and name != "__MACOSX"), min_size=1, max_size=6),
    kind=st.sampled_from(FORMATS),
    root=st.sampled_from(["", "./", "root/"]),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_tensors_do_not_depend_on_the_order_of_the_members(stems, kind, root, shuffle):
    classes = ("3", "sieben")
    files = [
        (f"{root}{split}/{name}/{stem}", png(i))
        for split in ("train", "valid")
        for name in classes
        for i, stem in enumerate(sorted(stems))
    ]
    data = Data(classes, Splits("train", "valid"), size=None, grayscale=False)
    one = preprocess.stack(*read(pack(files, kind), data), "train", data)
    shuffle.shuffle(files)
    other = preprocess.stack(*read(pack(files, kind), data), "train", data)
    assert one[1].tolist() == [0] * len(stems) + [1] * len(stems)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


def test_images_are_sorted_by_class_as_listed_and_by_name_in_natural_order():
    order = ["1.png", "2.png", "010.png", "10.png", "a2.png", "a10.png", "b.png"]
    files = {f"train/{name}/{stem}": png(100 * (name == "3") + i) for name in "37" for i, stem in enumerate(order)}
    data = Data(("7", "3"), DATA.splits, size=None, grayscale=False)
    images, labels = preprocess.stack(*read(pack(dict(sorted(files.items()))), data), "train", data)
    assert images[:, 0, 0].tolist() == [*range(7), *range(100, 107)]
    assert labels.tolist() == [0] * 7 + [1] * 7


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused_in_a_class_and_harmless_elsewhere(kind):
    def special(name: str) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        return member

    assert "train/3/link.png is a link or a device" in refusal(pack(SMALL, more=[special("train/3/link.png")]))
    assert names(pack(SMALL, more=[special("elsewhere/link.png")])) == set(SMALL)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("other", ["train/3/1.png", "./train/3/1.png", "root/train/3/1.png"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_place_that_is_taken_is_refused(kind, other):
    assert f"{other}: the archive holds train/3/1.png twice" in refusal(pack([*SMALL.items(), (other, png(1))], kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_that_cannot_be_used_is_named(kind):
    name = "train/7/broken.png"
    assert f"{name}: not a readable" in refusal(pack({**SMALL, name: b"GIF89a"}, kind))
    assert f"{name}: not a readable" in refusal(pack({**SMALL, name: b""}, kind))
    line = refusal(pack({**SMALL, name: png(0, (3, 2))}, kind))
    assert f"{name}: its size is 3 x 2, but train/3/1.png has 2 x 3" in line


def test_images_of_mixed_sizes_are_taken_with_a_size_to_resize_to():
    data = Data(("3", "7"), Splits("train", "valid"), size=(5, 4), grayscale=False)
    _, pixels = read(pack({**SMALL, "train/7/large.png": png(9, (30, 20))}), data)
    assert pixels.shape == (len(SMALL) + 1, 5, 4)


def test_more_images_than_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 6 * len(SMALL))
    assert len(read(pack(SMALL))[0]) == len(SMALL)
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 6 * len(SMALL) - 1)
    assert "more than a third of the memory: take fewer classes (data.classes)" in refusal(pack(SMALL))


@pytest.mark.parametrize(("gone", "split"), [("train/7", "train"), ("valid/3", "valid")])
def test_a_class_without_images_is_named(gone, split):
    images = read(pack({name: content for name, content in SMALL.items() if not name.startswith(gone)}))
    with pytest.raises(Refusal, match=f"class '{gone[-1]}' has no images in {split}"):
        preprocess.stack(*images, split, DATA)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_archive_has_no_images(kind):
    assert read(pack({}, kind))[0] == [] if kind in TARS else "damaged or no tar or zip" in refusal(pack({}, kind))


def test_a_missing_archive_is_named():
    with pytest.raises(Refusal, match="nothing/archive is missing: run dvc repro"):
        list(archive.files("nothing/archive", lambda member: member))


def survives(content: bytes) -> bool:
    """Whether the archive is still read; Refusal is the only exception that it may end in."""
    try:
        places, pixels = read(content)
    except Refusal:
        return False
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert len(pixels) == len(places)
    return True


@pytest.mark.parametrize("kind", FORMATS)
def test_an_archive_that_is_cut_off_is_refused_if_an_image_is_lost(kind):
    """Also between two members of a tar; what is cut off may be the padding at its end."""
    whole = pack(SMALL, kind)
    for size in {*(len(whole) * percent // 100 for percent in range(0, 100, 5)), *range(0, len(whole), 512)}:
        assert not survives(whole[:size]) or names(whole[:size]) == set(SMALL)


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_end_in_a_refusal_or_in_images(kind):
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
                assert "damaged or no tar or zip archive" in refusal(start + chance.randbytes(size))


def test_an_offset_that_points_before_the_zip_is_damage():
    """Seeking there is an OSError of the system's, though no fault of the disk."""
    whole = bytearray(pack(SMALL, "zip"))
    entry = whole.rindex(b"PK\1\2")
    end = whole.rindex(b"PK\5\6")
    whole[entry + 42 : entry + 46] = struct.pack("<I", 0)
    whole[end + 16 : end + 20] = struct.pack("<I", struct.unpack("<I", whole[end + 16 : end + 20])[0] + 50)
    assert "damaged" in refusal(bytes(whole))


def header(size: int) -> bytes:
    member = tarfile.TarInfo("train/3/1.png")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", TARS)
@pytest.mark.parametrize("size", [-1, -(2**40), 2**26 + 1, 2**40, 2**62])
def test_a_header_that_claims_a_huge_or_negative_size_is_refused(kind, size):
    assert f"train/3/1.png claims {size} bytes" in refusal(TARS[kind](header(size) + bytes(2048)))


def test_a_pax_header_that_claims_a_huge_size_is_refused():
    member = tarfile.TarInfo("train/3/1.png")
    member.pax_headers = {"size": str(2**40)}
    assert "train/3/1.png makes it too large" in refusal(pack({}, more=[member]))


def zip_bomb() -> bytes:
    """A zip of 100 MiB of zeros whose header claims ten bytes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = b"".join(deflate.compress(bytes(2**20)) for _ in range(100)) + deflate.flush()
    bomb = bytearray(pack({"train/3/1.png": content}, "zip"))
    for signature, method, size in ((b"PK\3\4", 8, 22), (b"PK\1\2", 10, 24)):
        at = bomb.rindex(signature)
        bomb[at + method : at + method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        bomb[at + size : at + size + 4] = struct.pack("<I", 10)
    return bytes(bomb)


def png_bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + png(0)[33:]


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (lambda: zip_bomb(), "Bad CRC-32"),
        (lambda: gzip.compress(header(2**33 - 1) + bytes(100 * 2**20)), "claims"),
        (lambda: bz2.compress(header(2**33 - 1) + bytes(100 * 2**20)), "claims"),
        (lambda: pack({"train/3/1.png": bytes(60 * 2**20)}, "zip by bzip2"), "neither by deflate"),
        (lambda: pack({"train/3/1.png": bytes(65 * 2**20)}, "deflated"), "too large"),
        (lambda: pack({"train/3/1.png": png_bomb()}), "60000 x 60000"),
    ],
    ids=["zip with a lying size", "gzip", "bzip2", "zip by bzip2", "zip", "PNG"],
)
def test_bombs_are_refused_in_little_memory(bomb, reason):
    content = bomb()
    tracemalloc.start()
    line = refusal(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason in line
    assert peak < 16 * 2**20


def test_the_sum_of_all_members_is_bounded(monkeypatch):
    monkeypatch.setattr(archive, "MAX_TOTAL", 100)
    assert "makes it too large" in refusal(pack(SMALL, "gz"))
    assert "makes it too large" in refusal(pack(SMALL, "zip"))
