"""Read images out of archives: which members, in which order, and what is refused."""

import bz2
import gzip
import io
import lzma
import random
import shutil
import struct
import subprocess
import tarfile
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages import preprocess
from stages.images import archive, names
from stages.images.tar import FILE, DamagedTar, TarReader
from stages.plumbing.errors import UserError, one_line
from stages.plumbing.tensors import Decoding, Split
from stages.plumbing.parameters import Data, Splits

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
FORM: dict[str, Any] = {"size": None, "grayscale": False, "background": None}
DATA = Data(("3", "7"), SPLITS, **FORM)


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


class Example(NamedTuple):
    split: int
    label: int
    name: str
    """The path below the folder of the class."""


def read(content: bytes, data: Data = DATA) -> tuple[list[Example], np.ndarray]:
    """Read the examples and their pixels, in the order of the tensors."""
    Path("archive").write_bytes(content)
    labels = {names.normalize(name): i for i, name in enumerate(data.classes)}
    what_is = partial(names.find_folder, splits={"train": 0, "valid": 1}, labels=labels)
    decoding = Decoding(data.size, data.grayscale, data.background)
    with (
        TemporaryFile() as spool,
        TemporaryFile() as records,
        TemporaryFile() as pixels,
        archive.Archive("archive", spool) as source,
    ):
        keys, *_ = preprocess.find_images(source, data, records)
        if not keys:
            return [], np.zeros((0, 2, 3), np.uint8)
        entries = np.memmap(records, np.int64, "r").reshape(len(keys), -1)
        rows = preprocess.sort_images(source, keys, entries)
        examples = []
        for i in rows.argsort().tolist():
            name = source.name(archive.Entry(*entries[i].tolist()))
            image = names.find_image(name, what_is)
            assert isinstance(image, tuple)
            (split, label, inner), file = image
            examples.append(Example(split, label, inner + file))
        Path("data").mkdir(exist_ok=True)
        return examples, preprocess.read_images(source, entries, rows, decoding, pixels)


def read_train(content: bytes, data: Data) -> Split:
    Path("archive").write_bytes(content)
    return preprocess.read_splits("archive", data)[0]


def error(content: bytes, data: Data = DATA) -> str:
    """Read an archive that is refused, and return the line that says why."""
    with pytest.raises(UserError) as caught:
        read(content, data)
    line = one_line(caught.value)
    assert line is not None
    assert len(line) < 400
    return line


def paths(examples: list[Example]) -> list[str]:
    splits = ("train", "valid")
    return [f"{splits[s]}/{DATA.classes[label]}/{name}" for s, label, name in examples]


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
    *("train/8/1.png", "test/3/1.png", "a/b/train/3/1.png", "train/3/Thumbs.db"),
    *("train/3/desktop.ini", "train/3/README.txt", "train/3/labels.CSV"),
    *("/train/3/9.png", "../train/3/9.png", "train/3/../9.png", "/etc/train/3/9.png"),
    *("train/../../3/9.png", "train//3/9.png"),
]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", IGNORED)
def test_hidden_and_other_members_are_ignored_and_nothing_is_unpacked(
    kind, name, tmp_path
):
    assert paths_in(pack({name: b"no image", **SMALL}, kind)) == set(SMALL)
    files = {path.name for path in tmp_path.rglob("*") if not path.is_dir()}
    assert files == {"archive"}
    assert not (tmp_path.parent / "train").exists()


CHARACTERS = st.characters(
    codec="utf-8", exclude_characters="/\0\\", exclude_categories=["Cc", "Cs"]
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=8).filter(
    lambda name: (
        not name.startswith(".")
        and name != "__MACOSX"
        and not names.OTHER_FILE.search(name)
    )
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
    data = Data(("3", "sieben"), SPLITS, **FORM)
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
        f"{split}/{label}/{name}": png(100 * (label == "3") + i)
        for split in ("train", "valid")
        for label in "37"
        for i, name in enumerate(order)
    }
    data = Data(("7", "3"), SPLITS, **FORM)
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
    if kind == tarfile.LNKTYPE:
        assert "train/3/link.png is a link to another member" in line
        assert "tar --hard-dereference" in line
    else:
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
    data = Data(("3", "7"), SPLITS, **FORM | {"size": (5, 4)})
    _, images = read(pack({**SMALL, "train/7/large.png": png(9, (30, 20))}), data)
    assert images.shape == (len(SMALL) + 1, 5, 4)


def test_more_images_than_fit_on_the_disk_are_refused_before_they_are_decoded(
    monkeypatch,
):
    """The tensors are written twice: each image to its row, then into the npz file."""
    needed = 2 * 6 * len(SMALL)
    usage = SimpleNamespace(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    files = {**SMALL, "valid/7/9.png": b"damaged"}
    assert len(read(pack(SMALL))[0]) == len(SMALL)
    usage.free -= 1
    line = error(pack(SMALL))
    assert line == error(pack(files))
    assert "data: the images need 1 MiB of disk, and 0 MiB are free: make room" in line


@pytest.mark.parametrize(
    ("gone", "split"), [("train/7", "train"), ("valid/3", "valid")]
)
def test_a_class_without_images_is_named(gone, split):
    files = {name: SMALL[name] for name in SMALL if not name.startswith(gone)}
    Path("archive").write_bytes(pack(files))
    with pytest.raises(UserError, match=f"class '{gone[-1]}' has no images in {split}"):
        preprocess.read_splits("archive", DATA)


@pytest.mark.parametrize("kind", TARS)
def test_an_empty_tar_has_no_images(kind):
    assert read(pack({}, kind))[0] == []


@pytest.mark.parametrize("kind", ["zip", "deflated"])
def test_an_empty_zip_is_no_archive(kind):
    assert "damaged or no tar or zip" in error(pack({}, kind))


def test_a_missing_archive_is_named():
    with pytest.raises(UserError, match="nothing/archive is missing: run dvc repro"):
        archive.Archive("nothing/archive", io.BytesIO())


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
    line = error(pack({}, more=[member]))
    assert f"train/3/1.png claims {2**40} bytes and makes it too large" in line


def test_a_large_file_beside_the_images_is_skipped(monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBER", 1000)
    files = {"video.mp4": bytes(5000), "train/3/notes.txt": bytes(5000), **SMALL}
    for kind in FORMATS:
        assert paths_in(pack(files, kind)) == set(SMALL)


# The tar reader, against Python's tarfile and GNU tar.


def tar_files(content: bytes) -> dict[str, bytes]:
    """Read the files of a tar with the reader under test."""
    reader = TarReader(io.BytesIO(content))
    return {name: reader.read() for name, _, kind in reader if kind == FILE}


TAR_FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
PARTS = st.text(CHARACTERS, min_size=1, max_size=40)
LONG_PATHS = st.lists(PARTS, min_size=1, max_size=6).map("/".join)


@settings(max_examples=150, deadline=None)
@given(
    files=st.dictionaries(LONG_PATHS, st.binary(max_size=1200), max_size=4),
    kind=st.sampled_from(TAR_FORMATS),
    mtime=st.sampled_from([0, 1.5, 2**34]),
)
def test_what_tarfile_writes_is_read_the_same(files, kind, mtime):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=kind) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mtime = int(mtime) if kind == tarfile.USTAR_FORMAT else mtime
            try:
                tar.addfile(member, io.BytesIO(content))
            except ValueError:  # what ustar cannot hold
                assert kind == tarfile.USTAR_FORMAT
                assume(False)
    assert tar_files(packed.getvalue()) == files


@pytest.mark.skipif(
    "GNU tar" not in subprocess.getoutput("tar --version"), reason="tar is not GNU's"
)
@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_what_gnu_tar_writes_is_read_the_same(tmp_path, kind):
    names = ["a", "größe/日本 3.png", "x" * 99]
    if kind != "v7":
        names += [f"{'d' * 90}/{'f' * 99}"]
    if kind not in ("v7", "ustar"):
        names += [f"{'d' * 90}/{'e' * 200}/{'f' * 220}"]
    files = {name: name.encode() * 7 for name in names}
    for name, content in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    command = ["tar", f"--format={kind}", "-cf", "packed.tar", "-C", "tree", *names]
    subprocess.run(command, check=True)
    assert tar_files((tmp_path / "packed.tar").read_bytes()) == files


def headers(content: bytes) -> list[int]:
    """Return where the headers of a tar of small files begin."""
    magic = (b"ustar\0", b"ustar ")
    starts = range(0, len(content), 512)
    return [at for at in starts if content[at + 257 : at + 263] in magic]


@pytest.mark.parametrize("kind", TAR_FORMATS, ids=["ustar", "gnu", "pax"])
def test_every_flipped_byte_of_a_header_is_refused_or_changes_nothing(kind):
    files = {"train/3/1.png": b"one", f"train/{'7' * 120}/ü.png": b"two"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=kind) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    whole, chance = packed.getvalue(), random.Random(kind)
    assert tar_files(whole) == files
    for start in headers(whole):
        for at in range(start, start + 512):
            for mask in (1, 0x80, chance.randrange(1, 256)):
                flipped = bytearray(whole)
                flipped[at] ^= mask
                with suppress(DamagedTar):
                    assert tar_files(bytes(flipped)) == files


@pytest.mark.parametrize("kind", TAR_FORMATS, ids=["ustar", "gnu", "pax"])
def test_every_truncation_of_a_tar_is_refused(kind):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=kind) as tar:
        for name in ("train/3/1.png", f"{'train' * 20}/{'x' * 90}"):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(700)))
    whole = packed.getvalue()
    # The last header, two blocks of content, and the two blocks of zeros at the end.
    end = headers(whole)[-1] + 5 * 512
    assert tar_files(whole[:end]) == tar_files(whole)
    for size in range(0, end, 64):
        with pytest.raises(DamagedTar):
            tar_files(whole[:size])


@pytest.mark.parametrize("kind", TARS)
def test_what_follows_the_end_of_a_tar_is_refused_unless_it_is_zeros(kind):
    one, other = pack(SMALL), pack({"train/3/9.png": png(9)})
    assert paths_in(TARS[kind](one + bytes(10_240))) == set(SMALL)
    line = error(TARS[kind](one + other))
    assert "more follows its end, which is after valid/7/2.png" in line
    assert "if two archives were joined, pack their files into one" in line


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_tars_that_were_joined_are_refused(kind):
    joined = pack(SMALL, kind) + pack({"train/3/9.png": png(9)}, kind)
    assert "more follows its end" in error(joined)


def test_zips_that_were_joined_are_refused():
    joined = pack({"train/3/9.png": png(9)}, "zip") + pack(SMALL, "zip")
    assert "something precedes its first member" in error(joined)


def test_a_gzip_whose_checksum_is_wrong_is_refused():
    damaged = bytearray(pack(SMALL, "gz"))
    damaged[-5] ^= 1
    assert "is damaged" in error(bytes(damaged))


# Names.


def test_files_in_folders_below_a_class_are_read():
    more = {"train/3/more/9.png": png(9), "root/valid/7/a/b/9.png": png(9)}
    found = paths_in(pack({**SMALL, **more}))
    assert found - set(SMALL) == {"train/3/more/9.png", "valid/7/a/b/9.png"}


AMBIGUOUS = ["train/valid/3/x.png", "train/3/valid/x.png", "train/3/7/x.png"]


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_name_that_can_be_read_in_two_ways_is_refused(name):
    assert f"{name}: can be read in two ways" in error(pack({**SMALL, name: png(1)}))


def test_names_are_compared_in_one_unicode_form():
    """Half of them as macOS writes them, half as Linux does; the class as either."""
    composed, decomposed = (unicodedata.normalize(f, "größe") for f in ("NFC", "NFD"))
    files = {
        f"{split}/{form}/{i}.png": png(i)
        for split in ("train", "valid")
        for i, form in enumerate((composed, decomposed))
    }
    files |= {name: content for name, content in SMALL.items() if "/7/" in name}
    for name in (composed, decomposed):
        data = Data((name, "7"), SPLITS, **FORM)
        labels = [example.label for example in read(pack(files), data)[0]]
        assert labels.count(0) == 4
    line = error(pack({**files, f"train/{composed}/1.png": png(9)}), data)
    assert "twice: leave one out" in line


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_with_backslashes_are_read_as_windows_means_them(kind):
    files = {name.replace("/", "\\"): content for name, content in SMALL.items()}
    assert paths_in(pack({"train\\3\\": b"", **files}, kind)) == set(SMALL)


def test_utf_8_names_in_a_zip_without_the_flag_are_read():
    data = Data(("größe", "7"), SPLITS, **FORM)
    files = {name.replace("/3/", "/größe/"): SMALL[name] for name in SMALL}
    packed = bytearray(pack(files, "zip"))
    for signature, flags in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        at = -1
        while (at := packed.find(signature, at + 1)) >= 0:
            packed[at + flags] &= ~0x08
    assert len(read(bytes(packed), data)[0]) == len(SMALL)


def test_an_encrypted_zip_says_so():
    packed = bytearray(pack(SMALL, "zip"))
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        packed[packed.find(signature) + flags] |= 1
    assert "is encrypted: pack without a password" in error(bytes(packed))


# What preprocess says.


def said(capsys: pytest.CaptureFixture[str], content: bytes) -> list[str]:
    Path("archive").write_bytes(content)
    preprocess.read_splits("archive", DATA)
    return capsys.readouterr().out.splitlines()


def test_what_is_left_out_is_counted_by_reason_with_an_example(capsys):
    assert said(capsys, pack(SMALL)) == [
        "train: 2 of 3, 2 of 7",
        "valid: 2 of 3, 2 of 7",
    ]
    others = [
        *("train/3/._1.png", "labels.csv", "train/8/1.png", "train/8/2.png"),
        *("train/3/Thumbs.db", "/train/3/5.png"),
    ]
    lines = said(capsys, pack({**dict.fromkeys(others, b"x"), **SMALL}))
    assert lines[2:] == [
        "left out, hidden: 1, for example train/3/._1.png",
        "left out, not in a folder of a chosen split and class: 3, "
        "for example labels.csv",
        "left out, no image, by the extension: 1, for example train/3/Thumbs.db",
        "left out, with an absolute path, or with ..: 1, for example /train/3/5.png",
    ]


def test_a_class_without_images_lists_the_folders_that_were_found():
    files = {f"root/train/{i}/1.png": png(1) for i in range(9)}
    data = Data(("three", "7"), SPLITS, **FORM)
    Path("archive").write_bytes(pack(files))
    with pytest.raises(UserError) as caught:
        preprocess.read_splits("archive", data)
    line = str(caught.value)
    assert "class 'three' has no images in train" in line
    assert "other folders are root/train/0, root/train/1, " in line


def test_validation_images_that_are_training_images_too_are_found_by_content():
    images = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    others = np.concatenate([images[[1, 3, 1]], images[:1] + 1])
    assert preprocess.find_copies(images, others).tolist() == [False, True, False, True]


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
