"""An archive is read as its folder is, and every file that is left out is told."""

import os
from pathlib import Path

import pytest
from PIL import Image

from stages.images.decode import FORMAT_NAMES
from tests.builders import FORMATS, encode, pack, png, refusal
from tools.image_files import LeftOut, Source, open_source
from tools.pack.look import look_at_all

pytestmark = pytest.mark.usefixtures("in_tmp_path")

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
FILES = {
    **{f"photos/{name}/{i}.png": png(i) for name in "ab" for i in (10, 9, 100)},
    **{f"photos/b/c.{i}/{i}.PNG": png(i) for i in (1, 12, 3)},
    "photos/b/c/e\u0301.png": png(7),
    **{f"photos/a/{i}.HEIC": HEIC for i in range(20)},
    "photos/a/web.jpg": encode(Image.new("RGB", (8, 8)), "AVIF"),
    **{f"photos/{name}": b"x" for name in ("1.AAE", "2.aae", "a/3.xmp", "4.json")},
    **{f"photos/a/5.{kind}": b"x" for kind in ("svg", "pdf", "MOV", "NEF", "zip")},
    **{f"photos/b/{name}": b"" for name in ("empty.png", "unknown")},
    **{f"photos/{name}/a/9.png": png(9) for name in ("@eaDir", "lost+found", ".x")},
    "photos/b/$RECYCLE.BIN/1.png": png(9),
    "photos/b/System Volume Information/1.png": png(9),
    "__MACOSX/photos/a/1.png": png(9),
    "photos/b/Thumbs.db": b"x",
}
SAID = [
    "is HEIC or AVIF: convert it to JPEG or PNG: 20 .heic, 1 .jpg, for example ",
    "hidden: 7, for example ",
    "not an image by its extension: 2 .aae, 1 .json, 1 .xmp, for example ",
    f"not a readable {FORMAT_NAMES} image: convert it to JPEG or PNG: 1 .png, "
    "1 without extension, for example ",
    *(f"{reason}: 1 .{kind}, for example " for reason, kind in [
        ("a document: export its pages as PNG", "pdf"),
        ("a drawing: export it as PNG", "svg"),
        ("a raw photo: convert it to JPEG", "nef"),
        ("a video: extract its frames", "mov"),
        ("an archive: unpack it", "zip"),
    ]),
]  # fmt: skip


def contents(source: Source) -> list[tuple[str, bytes]]:
    return [(os.path.relpath(p, source.top), source.read(p)) for p in source.paths]


def make_folder(files: dict[str, bytes]) -> str:
    for name, content in files.items():
        path = Path("folder", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return "folder"


@pytest.mark.parametrize("kind", FORMATS)
def test_an_archive_is_read_as_its_folder_is(kind):
    Path("some.archive").write_bytes(pack(FILES, kind))
    said, found = [], []
    for path in (make_folder(FILES), "some.archive"):
        left_out = LeftOut()
        with open_source(path, left_out) as source:
            found.append([name.removeprefix("photos/") for name, _ in contents(source)])
            look_at_all(source, left_out)
        said.append([line.partition(path)[0] for line in left_out])
    assert found[1] == found[0]
    assert [sorted(lines) for lines in said] == [sorted(SAID)] * 2
    assert said[0][0] == SAID[0]


def test_every_file_that_is_left_out_is_listed():
    left_out = LeftOut(listed=True)
    with open_source(make_folder(FILES), left_out) as source:
        used = {image.path for image in look_at_all(source, left_out)}
    listed = [line.rpartition(": ")[2] for line in left_out]
    for path in {f"folder/{name}" for name in FILES} - used:
        assert sum(f"{path}/".startswith(f"{other}/") for other in listed) == 1, path
    assert len(listed) == 21 + 7 + 4 + 2 + 5
    assert "hidden: folder/photos/b/Thumbs.db" in [*left_out]


def test_names_of_other_systems_are_read_and_odd_ones_are_told():
    files = {"x\\a\\1.png": png(1), "././x/./b/2.png": png(2), "x/b/2.png": png(3)}
    odd = dict.fromkeys(["/x/a/3.png", "x/../4.png"], png(4))
    Path("x.zip").write_bytes(pack({**files, **odd}, "zip"))
    left_out = LeftOut()
    with open_source("x.zip", left_out) as source:
        assert contents(source) == [("a/1.png", png(1)), ("b/2.png", png(3))]
    assert [*left_out] == [
        "with an absolute path, or with ..: 2, for example x.zip//x/a/3.png",
        "twice in the archive: only the last is used: 1, for example x.zip/x/b/2.png",
    ]


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x1f\x8b", png(1)])
def test_what_is_no_archive_is_refused(content):
    Path("x.zip").write_bytes(content)

    def enter() -> None:
        with open_source("x.zip", LeftOut()):
            pass

    assert "x.zip is damaged or not a tar or zip archive" in refusal(enter)
