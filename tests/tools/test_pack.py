"""tools.pack makes an archive and params.yaml of any folder of images."""

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from contextlib import chdir, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages import preprocess
from stages.images import names
from stages.plumbing import parameters
from stages.plumbing.errors import UserError
from tests import builders
from tests.conftest import ROOT, copy, edit, run, succeed
from tools.image_files import read_file
from tools.pack import look
from tools.pack.__main__ import main
from tools.pack.params import (
    choose_params,
    choose_size,
    choose_training,
    edit_params,
)
from tools.pack.write import write

PACK = ("python", "-m", "tools.pack")
PARAMS = (ROOT / "params.yaml").read_text("utf-8")


@pytest.fixture
def here(tmp_path):
    """A folder with params.yaml, to pack into."""
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS, "utf-8")
    return folder


def pack(folder: Path, *arguments: str | Path) -> str:
    """Pack as the command does in a folder; return what it prints."""
    argv = patch.object(sys, "argv", ["pack", *map(str, arguments)])
    with chdir(folder), argv, redirect_stdout(io.StringIO()) as shown:
        main()
    return shown.getvalue()


def refusal(folder: Path, *arguments: str | Path) -> str:
    """Return the one line that an error is reported on; nothing is written then."""

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = files()
    line = builders.refusal(pack, folder, *arguments)
    assert files() == before
    return line


def load(text: str) -> dict:
    return YAML(typ="safe").load(text)


def params(folder: Path) -> dict:
    return load((folder / "params.yaml").read_text("utf-8"))


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        opened = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in opened.items() if file}


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def gray(folder: Path, per_class: dict[str, int], side: int = 8) -> Path:
    """Make gray PNGs of noise: CLASS/INDEX.png."""
    noise = np.random.default_rng(0)
    for label, count in per_class.items():
        for i in range(count):
            pixels = noise.integers(0, 256, (side, side), "u1")
            save(folder / label / f"{i}.png", pixels)
    return folder


def seen(
    label: str = "a", digest: bytes = b"", ink: float = 0, size: tuple = (8, 8)
) -> look.Image:
    """Return what `look_at` finds out about an image, half of it transparent."""
    opacity = 0.0 if np.isnan(ink) else 0.5
    return look.Image("x.png", digest, size, True, False, False, opacity, ink, label)


TRAIN = parameters.check(parameters.Train, load(PARAMS)["train"])

ICONS = "アイコン" * 10
"""DVC takes files with many such names for binary."""


@pytest.fixture(scope="module")
def motley(tmp_path_factory):
    """What people have: icons, photos, GIFs, odd names, and other files."""
    folder = tmp_path_factory.mktemp("motley") / "my photos"
    gifs, photos = folder / "gifs", folder / "photos"
    noise = np.random.default_rng(1)
    for i in range(40):  # black icons of many sizes
        icon = np.zeros((*noise.integers(12, 90, 2), 4), np.uint8)
        icon[3:-3, 3:-3, 3] = 255
        save(folder / ICONS / "dark" / f"icon {i}.png", icon)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    for i in range(30):
        pixels = noise.integers(0, 256, (40, 60, 3), "u1")
        save(photos / f"IMG_{i}.JPG", pixels, format="JPEG", exif=exif)
    for form in ("NFC", "NFD"):  # two files on Linux, one name for preprocess
        name = unicodedata.normalize(form, "é.png")
        save(gifs / name, noise.integers(0, 256, (30, 30), "u1"))
    for i in range(20):
        palette = Image.fromarray(noise.integers(0, 256, (30, 30), "u1")).convert("P")
        palette.save(gifs / f"{i}.gif")
    gray(folder, {"tiny/photos": 2, "single": 1, ".": 1})
    shutil.copy(photos / "IMG_3.JPG", photos / "again.jpg")
    shutil.copy(photos / "IMG_3.JPG", gifs / "photo.jpg")
    frames = [Image.new("L", (9, 9), level) for level in (0, 255)]
    frames[0].save(gifs / "two.gif", save_all=True, append_images=frames[1:])
    Image.new("LAB", (8, 8)).save(gifs / "lab.tif")
    (gifs / "drawing.svg").write_text("<svg/>")
    (gifs / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (gifs / "broken link.png").symlink_to("nowhere")
    (gifs / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder.parent / "pipe")
    (gifs / "pipe.png").symlink_to(folder.parent / "pipe")
    (folder / "linked").symlink_to("photos")
    for name in (".DS_Store", "photos/Thumbs.db", "notes.txt"):
        (folder / name).write_text("none")
    return folder


def test_the_first_run_after_packing_succeeds(built, motley, tmp_path):
    clone = copy(built, tmp_path / "a clone")
    shown = succeed(clone, *PACK, str(motley))
    chosen = params(clone)
    assert chosen["data"]["classes"] == ["gifs", "photos", "tiny", ICONS]
    assert (chosen["data"]["color"], chosen["data"]["background"]) == ("rgb", 255)
    sizes = []
    packed = members(clone / "data/my photos.tar")
    for content in packed.values():
        with Image.open(io.BytesIO(content)) as image:
            # Every JPEG is of a turned camera.
            sizes.append(image.size if image.format == "JPEG" else image.size[::-1])
    median = np.median(sizes, axis=0)
    expected = np.rint(median * min(1, 64 / median.max())).tolist()
    assert chosen["data"]["size"] == expected
    digest = hashlib.sha256((clone / "data/my photos.tar").read_bytes()).hexdigest()
    assert chosen["download"] == {"url": "data/my photos.tar", "sha256": digest}
    for line in (
        "turned as EXIF says: 32, ",
        "copies: 2, ",
        "copies in two classes: 2, ",
        "left out, No such file or directory: 1 .png, for example {}/gifs/brok",
        "left out, has 2 frames: save the one that counts: 1 .gif, for example {}/gif",
        "left out, has the mode LAB: save it as RGB or gray: 1 .tif, for example {}/gi",
        "left out, not a regular file: 1, for example {}/gifs/pipe.png",
        "left out, Too many levels of symbolic links: 1 .png, for example {}/gifs/loop",
        "left out, a link to a folder: 1, for example {}/linked",
        "left out, not in a class folder: 1, for example {}/0.png",
        f"left out, {names.NO_IMAGE}: 1 .txt, for example {{}}/notes.txt",
        "left out, a drawing: export it as PNG: 1 .svg, for example {}/gifs/",
        "left out, hidden: 2, for example {}/",
        "left out, of a class with images for one split only: 1, for example {}/s",
        "left out, not a readable PNG",
    ):
        assert "\n" + line.format(motley) in shown

    succeed(clone, "python", "-m", "tools.check")
    # Three thousand epochs of a batch each would show no more.
    edit(clone / "params.yaml", "epochs: 3000", "epochs: 100")
    succeed(clone, "dvc", "repro")
    with np.load(clone / "data/tensors.npz") as tensors:
        counts = [np.bincount(tensors[f"{s}_labels"]) for s in ("train", "valid")]
        assert not tensors["valid_in_train"].any()  # copies are on one side
    for label, name in enumerate(chosen["data"]["classes"]):
        row = next(row for row in shown.splitlines() if row.startswith(f"{name} "))
        assert row.split()[-2:] == [f"{count[label]:,}" for count in counts]
    # Each packed file is there under its class, whatever its name.
    labels = Counter(name.split("/")[1] for name in packed)
    assert labels == {"gifs": 23, ICONS: 40, "photos": 31, "tiny": 2}


def test_images_look_the_same_after_packing(built, tmp_path):
    """An icon is not black on black."""
    icon = np.zeros((10, 10, 4), np.uint8)
    icon[2:5, 2:5, 3] = 255
    for label, turns in (("up", 0), ("down", 2)):
        for i in range(12):
            turned = np.rot90(icon, turns).copy()
            turned[0, 0, :3] = i  # below nothing
            save(tmp_path / "icons" / label / f"{i}.png", turned)
    clone = copy(built, tmp_path / "a clone")
    pack(clone, tmp_path / "icons")
    assert params(clone)["train"]["batch_size"] < 24
    succeed(clone, "python", "-m", "tools.check")
    succeed(clone, "dvc", "repro", "preprocess")
    with np.load(clone / "data/tensors.npz") as tensors:
        images, labels = tensors["train_images"], tensors["train_labels"]
    expected = np.full((10, 10, 1), 255)
    expected[2:5, 2:5] = 0
    up = params(clone)["data"]["classes"].index("up")
    assert (images[labels == up] == expected).all()
    assert (images[labels != up] == np.rot90(expected, 2)).all()


def test_thousands_of_files_in_a_folder(here, tmp_path):
    folder = tmp_path / "many"
    pixels = np.random.default_rng(2).integers(0, 256, (2040, 4, 4), "u1")
    for label, part in (("a", pixels[:2000]), ("b", pixels[2000:])):
        (folder / label).mkdir(parents=True)
        for i, image in enumerate(part):
            (folder / label / f"{i}.pgm").write_bytes(b"P5 4 4 255\n" + image.tobytes())
    pack(here, folder, "--valid", "0.3")
    chosen = parameters.check(parameters.Data, params(here)["data"])
    splits = preprocess.read_splits(str(here / "data/many.tar"), chosen)[:2]
    found = np.concatenate([split.images for split in splits])
    found = np.sort(found.reshape(-1, 16).view("V16").ravel())
    assert (found == np.sort(pixels.reshape(-1, 16).view("V16").ravel())).all()
    valid = len(splits[1].images)
    assert valid == pytest.approx(0.3 * 2040, abs=5 * 21)  # 5 sigma


def test_the_same_images_make_the_same_bytes(here, tmp_path):
    files = gray(tmp_path / "one", {"a": 30, f"b/{'long ' * 30}": 20})
    other = tmp_path / "elsewhere" / "one"
    paths = [path for path in files.rglob("*") if path.is_file()]
    random.Random(0).shuffle(paths)
    for path in paths:  # written in another order, at another time, with other rights
        target = other / path.relative_to(files)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.utime(target, (10**9, 10**9))
        target.chmod(0o600)
    pack(here, files)
    first = (here / "data/one.tar").read_bytes()
    pack(here, other, "-o", "data/other.tar")
    assert (here / "data/other.tar").read_bytes() == first
    assert params(here)["download"]["sha256"] == hashlib.sha256(first).hexdigest()
    archive = shutil.make_archive(str(tmp_path / "two"), "zip", tmp_path, "one")
    pack(here, archive)
    assert (here / "data/two.tar").read_bytes() == first
    listed = subprocess.check_output(["tar", "tf", here / "data/one.tar"], text=True)
    assert listed.splitlines() == sorted(members(here / "data/one.tar"))
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        kept = {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in tar}
    assert kept == {(0, 0o644, 0, 0, "", "")}


def test_a_dry_run_shows_everything_and_writes_nothing(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 30, "b": 20})
    shown = pack(here, folder, "--dry-run")
    assert {path.name for path in here.rglob("*")} == {"data", "params.yaml"}
    assert (here / "params.yaml").read_text("utf-8") == PARAMS
    expected = shown.replace(": would be written", ": written")
    written = pack(here, folder)
    assert written.startswith(expected)
    assert written.endswith("share it with dvc push, or as a file.\nNow run make.\n")


def test_packing_again_changes_nothing_not_even_the_order_of_classes(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 30, "b": 20})
    pack(here, folder)
    gray(folder, {"10": 20})
    assert "some.tar: written in place of another archive" in pack(here, folder)
    assert params(here)["data"]["classes"] == ["10", "a", "b"]
    edit(here / "params.yaml", '"10", "a", "b"', '"b", "10", "a"')

    def files() -> list[tuple[int, bytes]]:
        paths = [here / "params.yaml", here / "data/some.tar"]
        return [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]

    before = files()
    shown = pack(here, folder)
    assert files() == before
    assert "data/some.tar: unchanged" in shown
    assert shown.endswith("params.yaml: nothing to change\n")


def test_only_the_values_change_and_names_cannot_write_to_the_terminal(here, tmp_path):
    classes = {"it's: #1": 40, "yes": 40, "\x1b[31mred\n": 40}
    shown = pack(here, gray(tmp_path / 'a "quoted": name', classes))
    assert "\n\\x1b[31mred\\n " in shown
    assert params(here)["data"]["classes"] == sorted(classes)
    before, after = PARAMS.splitlines(), (here / "params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    keys = [new.split(":")[0].strip() for _, new in changed]
    training = ["learning_rate", "l2", "epochs"]
    assert keys == ["url", "sha256", "classes", "size", *training]
    for old, new in changed:
        assert new.split("  # ")[1:] == old.split("  # ")[1:]


LAYOUTS = [
    # params.yaml, the new value of a.b, and where it matters, the result
    ("a:\n  b: 1  # why\nc: 2\n", [1, 2], "a:\n  b: [1, 2]  # why\nc: 2\n"),
    ("a:\r\n  b: x\r\nc: 2\r\n", None, "a:\r\n  b: null\r\nc: 2\r\n"),
    ("a:\n  b:\n  - 1\n  - 2  # two\n\n# c\nc: 2", True, None),
    ("a:\n  b:\nc: 2\n", "it's", None),
    ("a: {b: [1,\n   2], d: 4}\nc: 2", 'a "b"', 'a: {b: "a \\"b\\"", d: 4}\nc: 2'),
    ("a:\n  # ä\n  b: ü\nc: 2", ["ö", "\x85", "\x7f", "\ufffe", "😀"], None),
    ("a: {b: 1}\nc: 2\n", True, "a: {b: true}\nc: 2\n"),
]


@pytest.mark.parametrize(("text", "value", "expected"), LAYOUTS)
def test_a_value_is_replaced_in_any_layout(text, value, expected):
    edited = edit_params(text, {"a.b": value})
    assert expected in (None, edited)
    assert load(edited) == {"a": {**load(text)["a"], "b": value}, "c": 2}
    comments, kept = (
        [part for part in yaml.split() if part.startswith("#")]
        for yaml in (text, edited)
    )
    assert kept == comments
    assert edit_params(edited, {"a.b": value}) == edited


def test_splits_are_taken_as_they_are(here, tmp_path):
    expected = {"Testing/a": 4, "Testing/b": 8, "training/a": 9, "training/b": 12}
    folder = gray(tmp_path / "set/inside", expected)
    for name in ("LICENSE", "inside/README", "inside/training/labels.zip"):
        (tmp_path / "set" / name).write_text("no image")
    shown = pack(here, tmp_path / "set")
    line = "training for training, Testing for validation (judging by their names)\n"
    assert line in shown
    assert params(here)["data"]["classes"] == ["a", "b"]
    assert params(here)["data"]["splits"] == {"train": "training", "valid": "Testing"}
    packed = members(here / "data/set.tar")
    assert Counter(os.path.dirname(name) for name in packed) == expected
    assert packed["training/b/7.png"] == (folder / "training/b/7.png").read_bytes()
    gray(folder, {"more/a": 3, "more/b": 3})
    shown = pack(here, tmp_path / "set", "--splits", "more", "training")
    assert "left out, in Testing, neither training nor validation: 12, " in shown


# Classes named like splits, and folders named like another class or a split.
@pytest.mark.parametrize(
    "folders", [["train", "valid", "bus"], ["a/b", "b", "c"], ["a/train", "b/valid"]]
)
def test_names_that_preprocess_could_misread_are_packed(here, tmp_path, folders):
    gray(tmp_path / "set", dict.fromkeys(folders, 12))
    pack(here, tmp_path / "set")
    chosen = params(here)["data"]
    splits = {chosen["splits"]["train"]: 0, chosen["splits"]["valid"]: 1}
    labels = {name: label for label, name in enumerate(chosen["classes"])}
    assert labels.keys() == {folder.split("/")[0] for folder in folders}
    kept: Counter[int] = Counter()
    for name in members(here / "data/set.tar"):
        folder = names.find_folder(f"{name.rpartition('/')[0]}/", splits, labels)
        assert isinstance(folder, names.Folder)
        kept[folder.label] += 1
    assert kept == dict.fromkeys(range(len(folders)), 12)


SIZES = [
    ({(28, 28): 5}, [28, 28]),
    ({(512, 300): 5}, [512, 300]),
    ({(4000, 3000): 5}, [64, 48]),
    ({(512, 512): 10_000}, [64, 64]),  # 2.6 GB
    ({(20, 30): 3, (22, 36): 2}, [20, 30]),
    ({(10, 200): 1, (10, 201): 1}, [3, 64]),
    ({(1, 4000): 1, (1, 3000): 1}, [1, 64]),
]
INKS: list[tuple[list[float], int]] = [
    ([0, 10, 200], 255),
    ([250, 100, np.nan], 0),
    ([np.nan], 255),
]


def test_the_size_is_the_bounded_median():
    for sizes, expected in SIZES:
        assert choose_size([*Counter(sizes).elements()]) == expected, sizes


def test_the_background_is_far_from_the_ink(here, tmp_path):
    for i, (inks, expected) in enumerate(INKS):
        for label in "ab":
            for j, ink in enumerate(inks * 2):
                pixels = np.zeros((2, 2, 2), np.uint8)  # gray level and opacity
                pixels[0] = [0, 0] if np.isnan(ink) else [ink, 255]
                pixels[1, 0, 0] = len(label) + j  # below nothing, to be no copy
                save(tmp_path / f"{i}" / label / f"{label}{j}.png", pixels)
        pack(here, tmp_path / f"{i}")
        assert params(here)["data"]["background"] == expected


@pytest.mark.parametrize("count", [2, 5])
def test_the_learning_rate_fits_the_curvature_of_the_loss(count):
    """The exact bound needs the largest eigenvalue, and at most one digit is lost."""
    pixels = np.random.default_rng(0).uniform(0.5, 1, (400, 30)).astype(np.float32)
    eigenvalue = np.linalg.eigvalsh(np.cov(pixels.T, bias=True)).max()
    exact = (2 if count == 2 else 1) / eigenvalue
    chosen, negative = (
        choose_training(x, 400, count, TRAIN) for x in (pixels, 1 - pixels)
    )
    rate = chosen["train.learning_rate"]
    assert rate == pytest.approx(exact, rel=0.34)
    assert f"{rate:.0e}" == f"{rate:e}".replace(".000000", "")
    assert chosen == negative


def test_what_is_asked_for_is_set(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 300, "b": 20})
    asked = ["--valid", "0.5", "--size", "5", "7", "--background", "9"]
    pack(here, folder, *asked, "-o", tmp_path / "x.tar")
    chosen = params(here)
    assert (chosen["data"]["size"], chosen["data"]["background"]) == ([5, 7], 9)
    assert chosen["download"]["url"] == str(tmp_path / "x.tar")
    valid = sum(name.startswith("valid/") for name in members(tmp_path / "x.tar"))
    assert valid == pytest.approx(160, abs=40)


def test_faint_ink_is_reported():
    images = [seen(ink=ink) for ink in (0, 240, 100, np.nan)]
    shown = [
        *look.describe(
            images, {"data.size": [8, 8], "data.color": None, "data.background": 255}
        )
    ]
    assert "with transparent pixels, laid over gray level 255: 4, for " in str(shown)
    assert "barely visible on gray level 255: 2, for example x.png" in shown


def test_colour_is_kept_if_any_pixel_has_one(tmp_path):
    pixels = np.full((4, 4, 3), 9, np.uint8)
    save(tmp_path / "0.png", pixels[..., 0])
    save(tmp_path / "1.png", pixels)
    pixels[1, 2] = 9, 9, 10
    save(tmp_path / "2.png", pixels)
    images = [look.look_at(str(tmp_path / f"{i}.png"), read_file) for i in range(3)]
    labelled = [image._replace(label=str(i)) for i, image in enumerate(images)]  # type: ignore[union-attr]
    train = parameters.check(parameters.Train, load(PARAMS)["train"])

    def color(count: int, gray: bool = False) -> str | None:
        chosen = choose_params(labelled[:count], None, train, None, None, gray=gray)
        return chosen["data.color"]

    assert [color(1), color(2), color(3), color(3, gray=True)] == [
        *(None, "gray", "rgb", "gray"),
    ]


def test_many_classes_make_a_short_table():
    images = [seen(f"{'long ' * 12}{i}") for i in range(256) for _ in range(i // 9 + 1)]
    lines = look.describe(
        images, {"data.size": [8, 8], "data.color": None, "data.background": 0}
    )
    table = list(lines)[:22]
    assert table[-1].startswith("all 256 (smallest shown)")
    assert [row.split()[-2] for row in table[1:-1]] == 9 * ["1"] + 9 * ["2"] + 2 * ["3"]
    assert max(map(len, table)) < 100


PAIR = {"a": 5, "b": 5}
SPLITS = {"train/a": 3, "train/b": 3, "val/a": 3, "val/b": 3}
REFUSALS = [
    # images per folder, options, and what is said
    (None, [], "does not exist: give a folder, tar or zip of CLASS/…"),
    ({"a": 5}, [], "found 1 class with images for both splits, need at least 2: put"),
    ({}, [], "found 0 classes with images"),
    (
        {str(i): 2 for i in range(257)},
        [],
        "found 257 classes with images for both splits, need at most 256",
    ),
    (PAIR, ["-o", "data/x.zip"], "it is a tar: choose a name that ends in .tar"),
    (PAIR, ["-o", "no/x.tar"], "-o no/x.tar: the folder does not exist: create it"),
    (PAIR, ["-o", "data/x.tar"], "exists and is not a tar: give another name with -o"),
    (PAIR, ["--splits", "a", "c"], "a and c are not two folders with images: choose"),
    (PAIR, ["--splits", "a", "a"], "are not two folders with images: choose from a, b"),
    (
        SPLITS,
        ["--valid", "0.2"],
        "train and val are splits (judging by their names): drop it",
    ),
    ({"back\\slash": 3, "b": 3}, [], "a backslash or is not UTF-8: rename it"),
    ({os.fsdecode(b"\xff"): 3, "b": 3}, [], "a backslash or is not UTF-8: rename it"),
    ({"\xe9": 3, "e\u0301": 3}, [], "are one name in two Unicode forms: rename one"),
]


@pytest.mark.parametrize(("folders", "options", "message"), REFUSALS)
def test_what_cannot_be_packed_is_refused(here, tmp_path, folders, options, message):
    (here / "data/x.tar").write_text("not an archive")
    if folders is not None:
        (tmp_path / "set").mkdir()
        gray(tmp_path / "set", folders)
    assert message in refusal(here, tmp_path / "set", *options)


def test_an_archive_is_not_replaced_by_what_is_packed_of_it(here):
    (here / "data/x.tar").touch()
    done = run(here, *PACK, "data/x.tar", PYTHONPATH=str(ROOT))
    line = "pack: -o data/x.tar: it is FOLDER itself: give another name\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("loss: log_loss", "loss: absolute", "use log_loss for 3 classes"),
        ("  background: null", "  # none", "data.background is missing: add it"),
        ("  size: null", "  size: &a null\n  b: *a", "data.size has an anchor: write"),
        ("download:", "download: [", "not valid YAML"),
    ],
)
def test_params_that_cannot_be_edited_are_refused(here, tmp_path, old, new, message):
    folder = gray(tmp_path / "three", {"a": 5, "b": 5, "c": 5})
    edit(here / "params.yaml", old, new)
    assert message in refusal(here, folder, "--background", "3", "--size", "3", "3")
    (here / "params.yaml").unlink()
    assert "run this from the root of the repository" in refusal(here, folder)


def test_an_image_that_changes_meanwhile_is_refused(tmp_path):
    path = gray(tmp_path, {"a": 1}) / "a/0.png"
    image = look.look_at(str(path), read_file)
    assert isinstance(image, look.Image)
    gray(tmp_path, {"a": 1}, side=9)
    with pytest.raises(UserError, match="has changed since it was looked at"):
        write([image], read_file, str(tmp_path / "x.tar"), dry_run=False)
    assert not (tmp_path / "x.tar").exists()
