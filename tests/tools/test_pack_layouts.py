"""tools.pack finds classes and splits in what people's folders look like, or asks."""

import hashlib
import itertools
import os
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.plumbing.errors import UserError
from tests.tools.test_pack import PARAMS, members, seen
from tools.pack import __main__ as command
from tools.pack.labels import match
from tools.pack.look import Image
from tools.pack.place import find_layout, split_by_content

Pack = Callable[..., str]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with params.yaml, to pack into."""
    (tmp_path / "here/data").mkdir(parents=True)
    (tmp_path / "here/params.yaml").write_text(PARAMS, "utf-8")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def pack(here, monkeypatch, capsys) -> Pack:  # noqa: ARG001
    """Call tools.pack in this process; return what it prints."""

    def call(folder: Path, *options: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["pack", str(folder), *map(str, options)])
        command.main()
        return capsys.readouterr().out

    return call


def fill(folder: Path, *names: str) -> Path:
    """Write small images, all different, with numbers for `{}`: "a/{}.png" * 4."""
    for i, name in enumerate(names):
        path = folder / name.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5 2 2 255\n" + (i + 1000).to_bytes(4))
    return folder


def four(*names: str) -> list[str]:
    return [*names] * 4


def counts(here: Path) -> dict[str, int]:
    """Return how many images each SPLIT/CLASS of the archive has."""
    (archive,) = (here / "data").glob("*.tar")
    return Counter("/".join(name.split("/")[:2]) for name in members(archive))


def in_both(*classes: str) -> dict[str, int]:
    return {f"train/{c}": 3 for c in classes} | {f"valid/{c}": 1 for c in classes}


PACKED = [
    # files, options, images per SPLIT/CLASS, and what is said
    (
        ["cat.{}.png", "dog.{}.png", "logo{}.png"],
        ["--class-from", r"(\w+)\.\d+\."],
        in_both("cat", "dog"),
        "left out, with no match for --class-from: 4, for example ",
    ),
    (
        ["train/cat.{}.png", "train/dog.{}.png", "val/cat.{}.png", "val/dog.{}.png"],
        ["--class-from", "cat|dog"],
        {"train/cat": 4, "train/dog": 4, "val/cat": 4, "val/dog": 4},
        "splits: train for training, val for validation (judging by their names)\n",
    ),
    (
        ["hi/16x16/apps/{}.png", "hi/16x16/mimes/{}.png", "hi/22x22/apps/{}.png"],
        ["--level", "3"],
        {"train/apps": 6, "valid/apps": 2, "train/mimes": 3, "valid/mimes": 1},
        "",
    ),
    (
        ["train/1/a/{}.png", "train/1/b/{}.png", "test/2/a/{}.png", "test/3/b/{}.png"],
        ["--level", "3"],
        {"train/a": 4, "train/b": 4, "test/a": 4, "test/b": 4},
        "judging by their names",
    ),
    (
        ["train/a/{}.png", "train/b/{}.png", "test/a/{}.png", "test/b/{}.png"],
        ["--level", "1"],
        {"train_/train": 6, "valid/train": 2, "train_/test": 6, "valid/test": 2},
        "(20 % of each class by content)",
    ),
    (
        [
            f"seg_{s}/{{}}.png"
            for s in ("train/a", "train/b", "test/a", "test/b", "x/a")
        ],
        ["--splits", "seg_train", "seg_test"],
        {f"seg_{s}/{c}": 4 for s in ("train", "test") for c in "ab"},
        "left out, in seg_x, neither training nor validation: 4, for example ",
    ),
]


@pytest.mark.parametrize(("names", "options", "expected", "said"), PACKED)
def test_classes_and_splits_are_found(
    here, pack, tmp_path, names, options, expected, said
):
    assert said in pack(fill(tmp_path / "set", *four(*names)), *options)
    assert counts(here) == expected


TWICE = ["a/{}.png", "b/{}.png"]
ASKED = [
    # files, and what is asked
    (["train/face.{}.png", "val/other.{}.png"], "train, val may be splits or classes"),
    (["train/face.{}.png", "val/other.{}.png"], r"\Z' finds the classes face, other"),
    (["images/{}.png", "masks/{}.png"], "images, masks may be splits or classes"),
    (["cat.{}.png", "dog_{}.png"], r"\d+\.\w+\Z' finds the classes cat, dog"),
    (["in/cat.{}.png", "in/dog_{}.png"], "found 1 class with images for both splits"),
    (
        ["train/a/{}.png", "train/b/{}.png", "test/{}.png"],
        "test has no class folders: ",
    ),
    (
        ["train/a/{}.png", "train/b/{}.png", "test/{}.png"],
        "pack train alone, as FOLDER",
    ),
    *[
        ([f"{outer}/{name}" for outer in outers for name in TWICE], question)
        for outers, question in (
            (
                ["images", "masks"],
                "use --level 1 if they are the classes, --level 2 if",
            ),
            (["here", "there"], "--level 2 if a, b are, or --splits TRAIN VALID to"),
            (["2024-05-01", "2024-05-02"], "2024-05-01, 2024-05-02 may be splits or"),
            (["16x16", "22x22", "scalable"], "16x16, 22x22, scalable may be splits or"),
            (["train", "val", "extra"], "extra, train, val may be splits or classes"),
            (["dev", "ops"], "dev, ops may be splits or classes: use --level 1 if"),
        )
    ],
]


@pytest.mark.parametrize(("names", "question"), ASKED)
def test_what_may_be_meant_otherwise_is_asked(here, pack, tmp_path, names, question):
    with pytest.raises(UserError) as caught:
        pack(fill(tmp_path / "set", *four(*names)))
    assert question.replace("FOLDER", f"FOLDER={tmp_path}/set/train") in str(
        caught.value
    )
    assert not [*(here / "data").iterdir()]


@pytest.mark.parametrize(
    "folders",
    [
        ["cats/2019", "cats/2020", "dogs/2019", "dogs/2020"],
        ["train", "bus", "car"],  # these are things
        ["with_mask", "without_mask"],
        ["a/1", "b/2", "c/3"],
        ["2019", "2020"],
        ["a", "b", "c/d"],
    ],
)
def test_folders_are_classes_if_they_look_like_it(folders):
    images = [seen("")._replace(member=f"{folder}/0.png") for folder in folders]
    layout = find_layout("", images, None, None)
    assert (layout.splits, layout.label) == ((), 0)


TABLES = [
    # files, the rows of the table, images per SPLIT/CLASS, and what is said
    (
        ["images/{}.png"] * 8,
        "Image;Id;Target 0;x;a 1;x;a 2;x;a 3;x;a 4;x;b 5;x;b 6;x;b 7;x;b 8;x;b",
        in_both("a", "b"),
        "left out, a row of labels.csv without an image: 1, for example 8\n",
    ),
    (
        ["{}.png"] * 8,
        "\ufefffilename,label 0.png,a /x/set/1.png,a ./2.png,a 3,a 4,b set/5,b "
        "set\\6.png,b other/7.png,b",
        {"train/a": 3, "train/b": 2, "valid/a": 1, "valid/b": 1},
        "left out, without one class in labels.csv: 1, for example ",
    ),
    (
        ["p/{}.png", "q/{}.png"] * 4,
        "name\tclass\tis_valid p/0.png\ta\tTrue q/1.png\ta\tFalse p/2.png\tb\tTrue "
        "q/3.png\tb\tFalse",
        {"train/a": 1, "train/b": 1, "valid/a": 1, "valid/b": 1},
        "splits: train for training, valid for validation (judging by their names)\n",
    ),
    (
        ["{}.png"] * 5,
        "id,label,split 0,a,train 1,b,train 2,a,Val 3,b,validation 4,a,test",
        {"train/a": 1, "train/b": 1, "valid/a": 1, "valid/b": 1},
        "left out, in test, neither training nor validation: 1, for example ",
    ),
    (
        ["train/{}.png", "train/{}.png", "test/{}.png"] * 3,
        "image_id,category 0,a 3,a 1,b 4,b",
        {"train/a": 1, "train/b": 1, "valid/a": 1, "valid/b": 1},
        "left out, without one class in labels.csv: 5, for example ",
    ),
    (
        ["a/x.png", "b/x.png", *["{}.png"] * 6],
        "file,label x.png,a 2,a 3,a 4,b 5,b 6,a 6,b 7,",
        {"train/a": 1, "train/b": 1, "valid/a": 1, "valid/b": 1},
        "left out, a row of labels.csv that fits several images: 1, for example x",
    ),
]


def write_table(folder: Path, rows: str) -> Path:
    folder.joinpath("labels.csv").write_text(rows.replace(" ", "\r\n"), "utf-8")
    return folder / "labels.csv"


@pytest.mark.parametrize(("names", "rows", "expected", "said"), TABLES)
def test_a_table_gives_the_classes(here, pack, tmp_path, names, rows, expected, said):
    folder = fill(tmp_path / "set", *names)
    assert said in pack(folder, "--labels", write_table(folder, rows))
    assert counts(here) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "name,breed 0,a",
            "has the columns name, breed: rename the column of file names",
        ),
        ("", "has the columns : rename"),
        ("id,label,split 0,a,train 1,b,train", "split has only train: name images"),
        ("id,label,split 0,a,test 1,b,val", "split has only test and valid: name"),
        (
            "id,label,split 0,a,1",
            "0 has an unknown split: write train, valid or test, or",
        ),
        ("id,label 0,a/b", "'a/b' cannot name a folder: rename it"),
        ("id,label \xff,\0", "is not a CSV file in UTF-8: "),
        ("id,label 9,a", "found 0 classes with images for both splits"),
    ],
)
def test_a_table_of_no_use_is_refused(pack, tmp_path, rows, message):
    folder = fill(tmp_path / "set", "{}.png")
    (folder / "t.csv").write_text(rows.replace(" ", "\n"), "latin-1")
    with pytest.raises(UserError) as caught:
        pack(folder, "--labels", folder / "t.csv")
    assert message in str(caught.value)


def test_a_table_from_a_pipe_is_refused(pack, tmp_path):
    """As in --labels <(sort labels.csv): of what is read twice, the start was lost."""
    folder = fill(tmp_path / "set", "{}.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe, and is read twice: save it to a file"):
        pack(folder, "--labels", tmp_path / "pipe")


def test_a_table_is_offered_where_it_lies(pack, tmp_path):
    folder = fill(tmp_path / "set", *["train/{}.png", "test/{}.png"] * 4)
    table = write_table(folder, "id,label 0,a")
    for place in (folder, folder / "train"):
        with pytest.raises(
            UserError, match=f"; --labels {table} takes classes from lab"
        ):
            pack(place)


@pytest.mark.parametrize(
    ("name", "group"), [("{}/{}_{{}}.png", r"([a-z]+)_\d+"), ("{}/{}/{{}}.png", ".*/")]
)
def test_groups_stay_on_one_side(here, pack, tmp_path, name, group):
    films = [name.format(label, film) for label in "ab" for film in "klmnopqrst"]
    folder = fill(tmp_path / "set", *films * 3, "a/9.png", "b/9.png")
    shown = pack(folder, "--level", "1", "--group", group)
    assert re.search("(10 groups .*, 2 images|22 groups .*, 0 images) in no g", shown)
    (archive,) = (here / "data").glob("*.tar")
    sides = defaultdict(set)
    for member in members(archive):
        split, _, rest = member.partition("/")
        sides[match(re.compile(group), rest)].add(split)
    assert {len(side) for side in sides.values()} == {1}
    assert all(counts(here)[f"valid/{label}"] in (6, 7) for label in "ab")  # of 31
    with pytest.raises(UserError, match="--group xyz: no path matches, for"):
        pack(folder, "--level", "1", "--group", "xyz")


def labelled(count: int) -> list[Image]:
    digests = [hashlib.sha256(b"%d" % i).digest() for i in range(count)]
    return [seen("aab"[i % 3], digest) for i, digest in enumerate(digests)]


def split(images: list[Image], share: float, keys: list[bytes] | None = None) -> list:
    return split_by_content(images, keys or [i.digest for i in images], share)


def test_each_class_has_its_share_whatever_the_order():
    for share, count in itertools.product([0.01, 0.2, 0.5, 0.99], [6, 57, 300]):
        images = labelled(count)
        splits = split(images, share)
        assert split(images[::-1], share) == splits[::-1]
        for label in "ab":
            own = [s for s, i in zip(splits, images, strict=True) if i.label == label]
            expected = min(max(share * len(own), 1), len(own) - 1)
            assert abs(sum(own) - expected) <= 0.5


def test_an_image_that_is_added_moves_at_most_one_other():
    before, moved = split(labelled(6), 0.2), 0
    for count in range(7, 201):
        after = split(labelled(count), 0.2)
        moves = sum(old != new for old, new in zip(before, after, strict=False))
        assert moves <= 1
        moved, before = moved + moves, after
    twice = split(labelled(400), 0.2)
    assert sum(a != b for a, b in zip(before, twice, strict=False)) <= 8  # 2 sigma


def test_every_class_of_two_images_has_both_splits_and_copies_stay_together():
    random_ = random.Random(3)
    for _ in range(300):
        pool = labelled(random_.randint(2, 8))
        images = [
            random_.choice(pool)._replace(label=random_.choice("abc"))
            for _ in range(12)
        ]
        splits = split(images, random_.choice([0.01, 0.2, 0.99]))
        side = dict(zip((image.digest for image in images), splits, strict=True))
        assert [side[image.digest] for image in images] == splits
        for label in "abc":
            own = {image.digest for image in images if image.label == label}
            others = {image.digest for image in images if image.label != label}
            if len(own) > 1 and own - others:
                assert {side[digest] for digest in own} == {0, 1}


def test_copies_join_groups():
    """An image that is in two groups keeps both on one side."""
    images, keys = labelled(60), [b"%d" % (i // 3) for i in range(60)]
    images[3] = images[0]
    splits = split(images, 0.3, keys)
    assert len({*splits[:6]}) == 1
    assert sum(splits) == pytest.approx(18, abs=6)
