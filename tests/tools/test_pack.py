"""tools.pack makes an archive and params.yaml of any folder of images."""

import hashlib
import io
import os
import random
import shutil
import subprocess
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from stages.images import names
from stages.plumbing.errors import UserError
from hermetic.values import parse_yaml
from tests.conftest import ROOT, copy, run, succeed
from tools.pack.folder import find_splits
from tools.pack.look import look_at
from tools.pack.params import (
    choose_background,
    choose_size,
    max_learning_rate,
    replace_values,
)
from tools.pack.place import Packed, split_by_content
from tools.pack.tar import Digested, write_tar

PACK = ("python", "-m", "tools.pack")
PARAMS = (ROOT / "params.yaml").read_text("utf-8")


@pytest.fixture
def here(tmp_path):
    """A folder with params.yaml, to pack into."""
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS, "utf-8")
    return folder


def pack(folder: Path, *arguments: str) -> str:
    return succeed(folder, *PACK, *arguments, PYTHONPATH=str(ROOT))


def refusal(folder: Path, *arguments: str) -> str:
    """Return the one line that an error is told in; nothing is written then."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = run(folder, *PACK, *arguments, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    return done.stderr.removeprefix("pack: ")


def params(folder: Path) -> dict:
    return yaml.safe_load((folder / "params.yaml").read_text("utf-8"))


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
            save(
                folder / label / f"{i}.png", noise.integers(0, 256, (side, side), "u1")
            )
    return folder


ICONS = "アイコン" * 10
"""DVC takes files with many such names for binary."""


@pytest.fixture(scope="module")
def motley(tmp_path_factory):
    """What people have: icons, photos, GIFs, other names, and things that are none."""
    folder = tmp_path_factory.mktemp("motley") / "my photos"
    noise = np.random.default_rng(1)
    for i in range(40):  # black icons of many sizes
        icon = np.zeros((*noise.integers(12, 90, 2), 4), np.uint8)
        icon[3:-3, 3:-3, 3] = 255
        save(folder / ICONS / "dark" / f"icon {i}.png", icon)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    for i in range(30):
        photo = noise.integers(0, 256, (40, 60, 3), "u1")
        save(folder / "photos" / f"IMG_{i}.JPG", photo, format="JPEG", exif=exif)
    for i in range(20):
        palette = Image.fromarray(noise.integers(0, 256, (30, 30), "u1")).convert("P")
        palette.save(_made(folder / "gifs" / f"{i}.gif"))
    for form in ("NFC", "NFD"):  # two files on Linux, one name for preprocess
        name = unicodedata.normalize(form, "é.png")
        save(folder / "gifs" / name, noise.integers(0, 256, (30, 30), "u1"))
    for name in ("tiny/photos/0", "tiny/photos/1", "single/1", "loose"):
        save(folder / f"{name}.png", noise.integers(0, 256, (9, 9), "u1"))
    shutil.copy(folder / "photos" / "IMG_3.JPG", folder / "photos" / "again.jpg")
    shutil.copy(folder / "photos" / "IMG_3.JPG", folder / "gifs" / "photo.jpg")
    frames = [Image.new("L", (9, 9), level) for level in (0, 255)]
    frames[0].save(folder / "gifs" / "two.gif", save_all=True, append_images=frames[1:])
    (folder / "gifs" / "drawing.svg").write_text("<svg/>")
    (folder / "gifs" / "cut.png").write_bytes(
        (folder / "single/1.png").read_bytes()[:60]
    )
    (folder / "gifs" / "broken link.png").symlink_to("nowhere")
    (folder / "linked").symlink_to("photos")
    for name in (".DS_Store", "photos/Thumbs.db", "notes.txt"):
        (folder / name).write_text("none")
    return folder


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_the_first_run_after_packing_succeeds(built, motley, tmp_path):
    clone = copy(built, tmp_path / "a clone")
    shown = pack(clone, str(motley))
    said = params(clone)
    assert said["data"]["classes"] == ["gifs", "photos", "tiny", ICONS]
    assert said["data"]["grayscale"] is True
    assert said["data"]["background"] == 255  # under black icons
    sizes = []
    packed = members(clone / "data/my photos.tar")
    for content in packed.values():
        with Image.open(io.BytesIO(content)) as image:
            # Every JPEG is of a turned camera.
            sizes.append(image.size if image.format == "JPEG" else image.size[::-1])
    median = np.median(sizes, axis=0)
    assert said["data"]["size"] == np.rint(median * min(1, 64 / median.max())).tolist()
    digest = hashlib.sha256((clone / "data/my photos.tar").read_bytes()).hexdigest()
    assert said["download"] == {"url": "data/my photos.tar", "sha256": digest}
    for line in (
        "turned as EXIF says: 32",
        "copies: 2, ",
        "images of several classes: 1, ",
        "left out: 1, for example {}/gifs/broken link.png: No such file or directory",
        "left out: 1, for example {}/gifs/two.gif: has 2 frames: save the one",
        "left out: 1, for example {}/linked: a link to a folder",
        "left out: 1, for example {}/loose.png: not in the folder of a class",
        "left out: 2, for example {}/notes.txt: no image, by the extension",
        "left out: 1, for example {}/single/1.png: of a class without images",
        "left out: 1, for example {}/gifs/cut.png: not a readable PNG",
        "left out: 1, for example {}/gifs/drawing.svg: not a readable PNG",
        "classes with few training images: 1, for example tiny with 1",
    ):
        assert "\n" + line.format(motley) in shown

    succeed(clone, "python", "-m", "tools.check")
    succeed(clone, "dvc", "repro")
    with np.load(clone / "data/tensors.npz") as tensors:
        counts = [np.bincount(tensors[f"{s}_labels"]) for s in ("train", "valid")]
        assert not tensors["valid_in_train"].any()  # copies are on one side
    for label, name in enumerate(said["data"]["classes"]):
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
    pack(clone, str(tmp_path / "icons"))
    assert params(clone)["train"]["batch_size"] < 24
    succeed(clone, "python", "-m", "tools.check")
    succeed(clone, "dvc", "repro", "preprocess")
    with np.load(clone / "data/tensors.npz") as tensors:
        images, labels = tensors["train_images"], tensors["train_labels"]
    expected = np.full((10, 10), 255)
    expected[2:5, 2:5] = 0
    up = params(clone)["data"]["classes"].index("up")
    assert (images[labels == up] == expected).all()
    assert (images[labels != up] == np.rot90(expected, 2)).all()


def test_fifty_thousand_files_in_a_folder(built, tmp_path):
    folder = tmp_path / "many"
    pixels = np.random.default_rng(2).integers(0, 256, (50_200, 4, 4), "u1")
    for label, part in (("a", pixels[:50_000]), ("b", pixels[50_000:])):
        (folder / label).mkdir(parents=True)
        for i, image in enumerate(part):
            (folder / label / f"{i}.pgm").write_bytes(b"P5 4 4 255\n" + image.tobytes())
    clone = copy(built, tmp_path / "a clone")
    pack(clone, str(folder), "--valid", "0.3")
    succeed(clone, "dvc", "repro", "preprocess")
    with np.load(clone / "data/tensors.npz") as tensors:
        train, valid = tensors["train_images"], tensors["valid_images"]
    found = np.sort(np.concatenate([train, valid]).reshape(-1, 16).view("V16").ravel())
    assert (found == np.sort(pixels.reshape(-1, 16).view("V16").ravel())).all()
    assert len(valid) == pytest.approx(0.3 * 50_200, abs=5 * 103)  # 5 sigma


def test_the_same_images_make_the_same_bytes(here, tmp_path):
    files = gray(tmp_path / "one", {"a": 30, "b": 20})
    other = tmp_path / "elsewhere" / "one"
    paths = [path for path in files.rglob("*") if path.is_file()]
    random.Random(0).shuffle(paths)
    for path in paths:  # written in another order, at another time, with other rights
        target = _made(other / path.relative_to(files))
        shutil.copyfile(path, target)
        os.utime(target, (10**9, 10**9))
        target.chmod(0o600)
    pack(here, str(files))
    first = (here / "data/one.tar").read_bytes()
    pack(here, str(other), "-o", "data/two.tar")
    assert (here / "data/two.tar").read_bytes() == first
    assert params(here)["download"]["sha256"] == hashlib.sha256(first).hexdigest()
    listed = subprocess.check_output(["tar", "tf", here / "data/one.tar"], text=True)
    assert listed.split() == sorted(members(here / "data/one.tar"))
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        kept = {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in tar}
    assert kept == {(0, 0o644, 0, 0, "", "")}


def test_packing_again_changes_nothing(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 30, "b": 20})
    pack(here, str(folder))
    files = [here / "params.yaml", here / "data/some.tar"]
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    shown = pack(here, str(folder))
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before
    assert "data/some.tar: unchanged" in shown
    assert shown.endswith("params.yaml: nothing to change\n")


def test_the_order_of_the_classes_is_kept(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 30, "b": 20, "10": 20})
    pack(here, str(folder))
    assert params(here)["data"]["classes"] == ["10", "a", "b"]
    file = here / "params.yaml"
    file.write_text(file.read_text("utf-8").replace('"10", "a", "b"', '"b", "10", "a"'))
    assert pack(here, str(folder)).endswith("nothing to change\n")


def test_another_archive_is_not_replaced_without_a_word(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 30, "b": 20})
    with tarfile.open(here / "data/some.tar", "w"):
        pass
    shown = pack(here, str(folder))
    assert "data/some.tar: written in place of another archive" in shown


def test_a_dry_run_shows_all_and_writes_nothing(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 30, "b": 20})
    shown = pack(here, str(folder), "--dry-run")
    assert {path.name for path in here.rglob("*")} == {"data", "params.yaml"}
    assert (here / "params.yaml").read_text("utf-8") == PARAMS
    real = pack(here, str(folder))
    assert shown == real.replace(": written", ": would be written").replace(
        "Now run make.\n", ""
    )


def test_only_the_values_change(here, tmp_path):
    folder = gray(tmp_path / 'a "quoted": name', {"yes": 40, "it's: #1": 40})
    pack(here, str(folder))
    before, after = PARAMS.splitlines(), (here / "params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    keys = [new.split(":")[0].strip() for _, new in changed]
    assert keys == ["url", "sha256", "classes"]
    for old, new in changed:
        assert new.split("  # ")[1:] == old.split("  # ")[1:]
    assert parse_yaml("\n".join(after))["data"]["classes"] == ["it's: #1", "yes"]


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("a:\n  b: 1  # why\nc: 2\n", [1, 2], "a:\n  b: [1, 2]  # why\nc: 2\n"),
        ("a:\r\n  b: x\r\nc: 2\r\n", None, "a:\r\n  b: null\r\nc: 2\r\n"),
        ("a:\n  b:\n  - 1\n  - 2  # two\n\n# c\nc: 2", True, None),
        ("a:\n  b:\nc: 2\n", "it's", None),
        ("a: {b: [1,\n   2], d: 4}\nc: 2", 'a "b"', 'a: {b: "a \\"b\\"", d: 4}\nc: 2'),
        ("a:\n  # ä\n  b: ü\nc: 2", ["ö", "\x85"], None),
    ],
)
def test_a_value_is_replaced_in_any_layout(text, value, expected):
    edited = replace_values(text, {"a.b": value})
    assert expected in (None, edited)
    assert parse_yaml(edited)["a"]["b"] == value
    assert {**parse_yaml(text)["a"], "b": value} == parse_yaml(edited)["a"]
    assert parse_yaml(edited)["c"] == 2
    assert [part for part in text.split() if part.startswith("#")] == [
        part for part in edited.split() if part.startswith("#")
    ]


def digests(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % i).digest() for i in range(count)]


def test_the_share_to_validate_on_is_about_what_was_asked_for():
    for share in (0.1, 0.2, 0.5):
        splits = split_by_content(digests(10_000), ["a", "b"] * 5_000, share)
        sigma = (10_000 * share * (1 - share)) ** 0.5
        assert sum(splits.values()) == pytest.approx(10_000 * share, abs=4 * sigma)


def test_images_that_are_added_move_no_others():
    some, all_ = digests(200), digests(400)
    before = split_by_content(some, ["a", "b"] * 100, 0.2)
    after = split_by_content(all_, ["a", "b"] * 200, 0.2)
    assert {digest: after[digest] for digest in some} == before


def test_every_class_of_two_images_has_both_splits_and_copies_stay_together():
    random_ = random.Random(3)
    for _ in range(300):
        pool = digests(random_.randint(2, 8))
        labels = [random_.choice("abc") for _ in range(12)]
        images = [random_.choice(pool) for _ in labels]
        splits = split_by_content(images, labels, random_.choice([0.01, 0.2, 0.99]))
        own = {
            label: {
                image
                for image, other in zip(images, labels, strict=True)
                if other == label
            }
            for label in labels
        }
        for label, of_class in own.items():
            elsewhere = set().union(*(own[other] for other in own if other != label))
            if len(of_class) > 1 and of_class - elsewhere:
                assert {splits[image] for image in of_class} == {0, 1}


def test_what_is_no_image_does_not_change_what_the_folders_are(here, tmp_path):
    for folder in ("wrap/train/a", "wrap/train/b", "wrap/valid/a", "wrap/valid/b"):
        gray(tmp_path / "set" / folder, {"": 3})
    for name in ("LICENSE", "wrap/README", "wrap/train/labels.zip"):
        (tmp_path / "set" / name).write_text("no image")
    pack(here, str(tmp_path / "set"))
    assert params(here)["data"]["classes"] == ["a", "b"]
    assert params(here)["data"]["splits"] == {"train": "train", "valid": "valid"}


def test_a_mode_that_cannot_be_gray_and_a_link_to_a_pipe_are_left_out(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 5, "b": 5})
    Image.new("LAB", (8, 8)).save(folder / "a" / "lab.tif")
    os.mkfifo(tmp_path / "pipe")
    (folder / "a" / "pipe.png").symlink_to(tmp_path / "pipe")
    shown = pack(here, str(folder))
    assert "a/lab.tif: has the mode LAB: save it as RGB or gray\n" in shown
    assert "a/pipe.png: no plain file\n" in shown


def test_names_cannot_write_to_the_terminal(here, tmp_path):
    gray(tmp_path / "some", {"a": 5, "\x1b[31mred\n": 5})
    assert "\n\\x1b[31mred\\n " in pack(here, str(tmp_path / "some"))


def test_splits_are_taken_as_they_are(here, tmp_path):
    for split, count in (("Testing", 10), ("training", 25)):
        gray(tmp_path / "set" / "inside" / split, {"a": count, "b": 2 * count})
    shown = pack(here, str(tmp_path / "set"))
    said = params(here)["data"]
    assert said["splits"] == {"train": "training", "valid": "Testing"}
    assert "splits: training, to train on, and Testing (so their names say)" in shown
    packed = members(here / "data/set.tar")
    counts = Counter(name.rpartition("/")[0] for name in packed)
    assert counts == {
        "Testing/a": 10,
        "Testing/b": 20,
        "training/a": 25,
        "training/b": 50,
    }
    path = tmp_path / "set/inside/training/b/7.png"
    assert packed["training/b/7.png"] == path.read_bytes()


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train/a", "train/b", "valid/a", "valid/c"], ("train", "valid")),
        (["Test/a", "TRAINING/a", "TRAINING"], ("TRAINING", "Test")),
        (["x/a", "x/b", "y/a", "y/a", "y/b"], ("y", "x")),  # the larger is for training
        (["cats/2019", "cats/2020", "dogs/2019"], None),
        (["train", "bus", "car"], None),  # these are things
        (["a/1", "b/2", "c/3"], None),
        (["a", "b"], None),
        (["a/b"], None),
    ],
)
def test_what_the_outer_folders_are(folders, expected):
    splits = find_splits([tuple(folder.split("/")) for folder in folders], None)
    assert (splits and splits.folders) == expected
    assert find_splits([tuple(folder.split("/")) for folder in folders], []) is None


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (["train/a", "test/a", "valid/a"], "test, train, valid may be"),
        (["x/a", "x/b", "y/a", "y/b", "z/a", "z/b"], "x, y, z may be"),
        (["train/a", "train/b", "test/.."], "test, train may be"),  # test is flat
        (["dev/a", "ops/b"], "dev, ops may be"),
    ],
)
def test_what_may_be_splits_or_classes_is_asked_about(here, tmp_path, folders, named):
    for folder in folders:
        gray(tmp_path / "set" / folder.removesuffix("/.."), {"": 3})
    told = refusal(here, str(tmp_path / "set"))
    assert named in told
    assert "name two splits with --splits TRAIN VALID, or say --no-splits" in told
    outer = [folder.split("/")[0] for folder in folders]
    first, second = outer[0], outer[-1]
    for folder in (first, second):
        gray(tmp_path / "set" / folder, {"a": 3, "b": 3})
    shown = pack(here, str(tmp_path / "set"), "--splits", first, second)
    assert ("in neither of the two splits" in shown) == (len({*outer}) > 2)
    assert params(here)["data"]["splits"] == {"train": first, "valid": second}


@pytest.mark.parametrize(
    "folders",
    [
        ["train", "valid", "bus"],  # classes that are called as splits are
        ["a/b", "b", "c"],  # a folder that is called as another class is
        ["a/train", "b/valid"],
    ],
)
def test_names_that_preprocess_could_misread_are_packed(lent, tmp_path, folders):
    gray(tmp_path / "set", dict.fromkeys(folders, 12))
    pack(lent, str(tmp_path / "set"), "-o", str(tmp_path / "set.tar"))
    said = params(lent)["data"]
    splits = {said["splits"]["train"]: 0, said["splits"]["valid"]: 1}
    labels = {name: label for label, name in enumerate(said["classes"])}
    assert labels.keys() == {folder.split("/")[0] for folder in folders}
    kept: Counter[int] = Counter()
    for name in members(tmp_path / "set.tar"):
        folder = names.find_folder(name.rpartition("/")[0], splits, labels)
        assert isinstance(folder, names.Folder)
        kept[folder.label] += 1
    assert kept == dict.fromkeys(range(len(folders)), 12)
    succeed(lent, "git", "checkout", "--quiet", "params.yaml")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({(28, 28): 5}, None),
        ({(512, 300): 5}, None),
        ({(4000, 3000): 5}, (64, 48)),
        ({(512, 512): 10_000}, (64, 64)),  # 2.6 GB
        ({(20, 30): 3, (22, 36): 2}, (20, 30)),
        ({(10, 200): 1, (10, 201): 1}, (3, 64)),
        ({(1, 4000): 1, (1, 3000): 1}, (1, 64)),
    ],
)
def test_sizes_that_differ_become_their_bounded_median(sizes, expected):
    assert choose_size(Counter(sizes)) == expected


def test_the_background_is_far_from_the_ink():
    assert choose_background([]) is None
    assert choose_background([0, 10, 200]) == 255
    assert choose_background([250, 100, float("nan")]) == 0
    assert choose_background([float("nan")]) == 255


@pytest.mark.parametrize("count", [2, 5])
def test_bright_images_get_a_learning_rate_that_is_stable(count):
    """The exact bound needs the largest eigenvalue, and at most one digit is lost."""
    images = np.random.default_rng(0).uniform(0.5, 1, (400, 30))
    eigenvalue = np.linalg.eigvalsh(images.T @ images / 400).max()
    exact = 2 * (1 + 0.9) / (eigenvalue / (4 if count == 2 else 2))
    rate = max_learning_rate(30, images.mean(1).tolist(), count, 0.9)
    assert exact / 2 < rate < 1.01 * exact
    assert f"{rate:.0e}" == f"{rate:e}".replace(".000000", "")


def test_the_learning_rate_of_digits_is_kept_and_that_of_white_pages_lowered(
    here, tmp_path
):
    for name, ground in (("digits", 0), ("pages", 255)):
        for label in "ab":
            for i in range(50):
                image = np.full((40, 40), ground, np.uint8)
                image[5 : 10 + i % 9, 5:20] = 255 - ground
                save(tmp_path / name / label / f"{i}.png", image)
    assert "learning rate 0.2\n" in pack(here, str(tmp_path / "digits"))
    shown = pack(here, str(tmp_path / "pages"))
    # 1,600 pixels, nearly all of level 1: 2 * 1.9 / 400 * 1.1 is 0.0105.
    assert "learning rate 0.01 instead of 0.2\n" in shown
    assert params(here)["train"]["learning_rate"] == 0.01
    assert pack(here, str(tmp_path / "pages")).endswith("nothing to change\n")


def test_what_is_asked_for_is_set(here, tmp_path):
    folder = gray(tmp_path / "some", {"a": 300, "b": 20})
    ask = ["--valid", "0.5", "--size", "5", "7", "--background", "9"]
    pack(here, str(folder), *ask, "-o", str(tmp_path / "x.tar"))
    said = params(here)
    assert (said["data"]["size"], said["data"]["background"]) == ([5, 7], 9)
    assert said["download"]["url"] == str(tmp_path / "x.tar")
    valid = sum(name.startswith("valid/") for name in members(tmp_path / "x.tar"))
    assert valid == pytest.approx(160, abs=40)


def test_faint_ink_is_told(here, tmp_path):
    for label in "ab":
        for i in range(10):
            icon = np.full((8, 8, 4), 240 if i == 5 else i, np.uint8)
            icon[..., 3] = 255
            icon[:4, :, 3] = 0
            save(tmp_path / "icons" / label / f"{i}.png", icon)
    shown = pack(here, str(tmp_path / "icons"))
    assert "with transparent pixels: 20, laid over gray level 255\n" in shown
    assert "\nhard to see on that: 2, for example " in shown


def test_many_classes_make_a_short_table(here, tmp_path):
    gray(
        tmp_path / "set", {f"{'long ' * 12}{i}": 2 + i % 5 for i in range(256)}, side=2
    )
    shown = pack(here, str(tmp_path / "set"))
    assert len(params(here)["data"]["classes"]) == 256
    table = shown[: shown.index("height x width")]
    assert "and 236 classes that have more\n" in table
    assert max(map(len, table.splitlines())) < 100
    gray(tmp_path / "set", {"one more": 2})
    assert "has 257 classes" in refusal(here, str(tmp_path / "set"))


def test_what_cannot_be_packed_is_told_in_a_line(here, tmp_path):
    assert "nothing' is no folder" in refusal(here, str(tmp_path / "nothing"))
    assert "'' is no folder" in refusal(here, "")  # make pack without FOLDER
    one = gray(tmp_path / "one", {"a": 5})
    assert "has 1 classes with images for both splits" in refusal(here, str(one))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has 0 classes" in refusal(here, str(empty))
    two = gray(tmp_path / "two", {"a": 5, "b": 5})
    assert "let the name end in .tar" in refusal(here, str(two), "-o", "data/x.zip")
    assert "--splits: c has no images: the folders are a, b" in refusal(
        here, str(two), "--splits", "a", "c"
    )
    folders = ("train/a", "train/b", "val/a", "val/b")
    split = gray(tmp_path / "split", dict.fromkeys(folders, 3))
    assert "leave --valid out" in refusal(here, str(split), "--valid", "0.2")
    same = refusal(here, str(two), "--splits", "a", "a")
    assert "--splits: a cannot be both" in same
    missing = refusal(here, str(two), "-o", "nowhere/x.tar")
    assert "there is no folder nowhere: make it" in missing
    (here / "data/x.tar").write_text("not an archive")
    other = refusal(here, str(two), "-o", "data/x.tar")
    assert "data/x.tar is there and no tar: give another name with -o" in other
    for i, name in enumerate(("back\\slash", os.fsdecode(b"\xff"))):
        odd = gray(tmp_path / f"odd {i}", {name: 3, "b": 3})
        assert "is no UTF-8: rename it" in refusal(here, str(odd))
    twice = gray(tmp_path / "twice", {"\xe9": 3, "e\u0301": 3})
    assert "are one name in other code points" in refusal(here, str(twice))
    three = gray(tmp_path / "three", {"a": 5, "b": 5, "c": 5})
    file = here / "params.yaml"
    file.write_text(PARAMS.replace("loss: log_loss", "loss: absolute"), "utf-8")
    assert "take log_loss for 3 classes" in refusal(here, str(three))
    file = here / "params.yaml"
    file.write_text(PARAMS.replace("  background: null", "  # none"), "utf-8")
    assert "data.background is missing: add it" in refusal(here, str(two))
    file.write_text(
        PARAMS.replace("  size: null", "  size: &none null").replace(
            "  background: null", "  background: *none"
        ),
        "utf-8",
    )
    told = refusal(here, str(two), "--background", "3", "--size", "3", "3")
    assert "has anchors or merges: write these values in full: data." in told
    file.unlink()
    assert "run this from the root of the repository" in refusal(here, str(two))


def test_an_image_that_changes_meanwhile_is_told(tmp_path):
    folder = gray(tmp_path, {"a": 1})
    path = str(folder / "a/0.png")
    look = look_at(path)
    assert not isinstance(look, str)
    gray(tmp_path, {"a": 1}, side=9)
    with pytest.raises(UserError, match="has changed meanwhile"):
        write_tar([Packed(path, "a/0.png", 0, "a", look)], Digested(io.BytesIO()))
