"""The tar reader, against Python's tarfile and GNU tar."""

import io
import random
import subprocess
import tarfile
from contextlib import suppress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.images.tar import DIRECTORY, FILE, SPARSE, DamagedTar, TarReader
from tests.builders import pack

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
GNU = pytest.mark.skipif(
    "GNU tar" not in subprocess.getoutput("tar --version"), reason="tar is not GNU's"
)
CHARACTERS = st.characters(
    codec="utf-8", exclude_characters="/\0\\", exclude_categories=["Cc", "Cs"]
)
PATHS = st.lists(st.text(CHARACTERS, min_size=1, max_size=40), min_size=1, max_size=6)


def tar_files(content: bytes) -> dict[str, bytes]:
    """Read the files of a tar with the reader under test."""
    reader = TarReader(io.BytesIO(content))
    return {name: reader.read() for name, _, kind in reader if kind == FILE}


@settings(max_examples=150, deadline=None)
@given(
    files=st.dictionaries(PATHS.map("/".join), st.binary(max_size=1200), max_size=4),
    kind=st.sampled_from(tuple(FORMATS.values())),
    mtime=st.sampled_from([0, 1.5, 2**34]),
)
def test_what_tarfile_writes_is_read_the_same(files, kind, mtime):
    dated = tarfile.TarInfo("dated")  # pax has a header for 1.5, GNU's is base 256
    dated.mtime = int(mtime) if kind == tarfile.USTAR_FORMAT else mtime
    try:
        packed = pack(files, tar_format=kind, more=[dated])
    except ValueError:  # what ustar cannot hold
        assert kind == tarfile.USTAR_FORMAT
        assume(False)
    assert tar_files(packed) == {**files, "dated": b""}


@GNU
@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_what_gnu_tar_writes_is_read_the_same(tmp_path, kind):
    names = ["a", "größe/日本 3.png", "x" * 99]
    if kind != "v7":
        names += [f"{'d' * 90}/{'f' * 99}"]
    if kind not in ("v7", "ustar"):
        names += [f"{'d' * 90}/{'e' * 200}/{'f' * 220}"]
    files = {name: name.encode() * 7 for name in names}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    command = ["tar", f"--format={kind}", "-cf", "-", *names]
    packed = subprocess.check_output(command, cwd=tmp_path)
    assert tar_files(packed) == files


@GNU
@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_gnu_tars_with_labels_listings_and_holes_are_read(tmp_path, kind):
    """An incremental tar lists each folder's files; holes need more headers."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "later").write_bytes(b"x")
    with (folder / "holes").open("wb") as file:
        for at in range(10):
            file.seek(at * 2**18)
            file.write(b"x" * 4096)
    options = ["--label=Name", f"--listed-incremental={tmp_path}/state", "--sparse"]
    command = ["tar", f"--format={kind}", *options, "-cf", "-", "."]
    packed = subprocess.check_output(command, cwd=folder)
    reader = TarReader(io.BytesIO(packed))
    kinds = {name: kind for name, _, kind in reader if kind != DIRECTORY}
    assert kinds == {"./holes": SPARSE, "./later": FILE}


def headers(content: bytes) -> list[int]:
    """Return where the headers of a tar of small files begin."""
    magic = (b"ustar\0", b"ustar ")
    starts = range(0, len(content), 512)
    return [at for at in starts if content[at + 257 : at + 263] in magic]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_flipped_byte_of_a_header_is_refused_or_changes_nothing(kind):
    files = {"train/3/1.png": b"one", f"train/{'7' * 120}/ü.png": b"two"}
    whole, chance = pack(files, tar_format=FORMATS[kind]), random.Random(kind)
    assert tar_files(whole) == files
    for start in headers(whole):
        for at in range(start, start + 512):
            for mask in (1, 0x80, chance.randrange(1, 256)):
                flipped = bytearray(whole)
                flipped[at] ^= mask
                with suppress(DamagedTar):
                    assert tar_files(bytes(flipped)) == files


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_of_a_tar_is_refused(kind):
    names = ("train/3/1.png", f"{'train' * 20}/{'x' * 90}")
    whole = pack(dict.fromkeys(names, bytes(700)), tar_format=FORMATS[kind])
    # The last header, two blocks of content, and the two blocks of zeros at the end.
    end = headers(whole)[-1] + 5 * 512
    assert tar_files(whole[:end]) == tar_files(whole)
    for size in range(0, end, 64):
        with pytest.raises(DamagedTar):
            tar_files(whole[:size])
