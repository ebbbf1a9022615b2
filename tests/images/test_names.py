"""What the names in an archive decide: which members count, and their order."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.images.names import natural_order
from tests.builders import LEVELS, SMALL, data_params, levels, pack, png, read, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")

IGNORED = [
    *("train/3/.DS_Store", "train/3/._1.png", "labels.csv", "train/labels.csv"),
    *("__MACOSX/train/3/._1.png", "__MACOSX/train/3/1.png", ".hidden/train/3/1.png"),
    *("train/8/1.png", "test/3/1.png", "a/b/train/3/1.png", "train/3/Thumbs.db"),
    *(
        "train/3/a.mov",
        "train/3/@eaDir/1.png/T.png",
        "train/3/README.txt",
        "train/3/labels.CSV",
    ),
    *("/train/3/9.png", "../train/3/9.png", "train/3/../9.png", "/etc/train/3/9.png"),
    *("train/../../3/9.png", "train//3/9.png"),
]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", IGNORED)
def test_hidden_and_other_members_are_ignored_and_nothing_is_unpacked(
    kind, name, tmp_path
):
    assert levels(pack({name: b"not an image", **SMALL}, kind)) == LEVELS
    files = [path.name for path in tmp_path.rglob("*") if not path.is_dir()]
    assert files == ["archive"]
    assert not (tmp_path.parent / "train").exists()


def test_files_in_folders_below_a_class_are_read():
    more = {"train/3/more/9.png": png(100), "root/valid/7/a/b/9.png": png(200)}
    assert levels(pack({**SMALL, **more})) == [0, 1, 100, *range(2, 8), 200]


AMBIGUOUS = ["train/valid/3/x.png", "train/3/valid/x.png", "train/3/7/x.png"]


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_name_that_can_be_read_in_two_ways_is_refused(name):
    line = refusal(read, pack({**SMALL, name: png(1)}))
    assert f"{name}: can be read in two ways" in line


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    "name", ["train/3/1.png", "./train/3/1.png", "root/train/3/1.png"]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_image_that_the_archive_holds_twice_is_refused(kind, name):
    line = refusal(read, pack([*SMALL.items(), (name, png(1))], kind))
    assert line == f"{name}: duplicate of train/3/1.png: leave one out"


def test_names_are_compared_in_one_unicode_form():
    """macOS decomposes letters (NFD), Linux does not: in archives and params.yaml."""
    composed, decomposed = (unicodedata.normalize(f, "größe") for f in ("NFC", "NFD"))
    files = {**SMALL, f"train/{composed}/a.png": png(1)}
    files |= {f"train/{decomposed}/b.png": png(2), f"valid/{decomposed}/c.png": png(3)}
    for name in (composed, decomposed):
        assert levels(pack(files), data_params([name, "7"]))[:2] == [1, 2]
    data = data_params([composed, "7"])
    line = refusal(read, pack({**files, f"train/{decomposed}/a.png": png(9)}), data)
    assert ": duplicate of train/" in line


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_backslashes_separate_folders(kind):
    """Windows packs names with them."""
    files = {name.replace("/", "\\"): content for name, content in SMALL.items()}
    assert levels(pack({"train\\3\\": b"", **files}, kind)) == LEVELS


@pytest.mark.parametrize("old", ["train/", "3/", "0.png"])
def test_a_dot_is_no_folder(old):
    """GNU tar keeps those of the command line: `tar c ./. train/./3`."""
    files = {
        name.replace(old, f"././{old}"): content for name, content in SMALL.items()
    }
    assert levels(pack(files)) == LEVELS


@given(st.lists(st.integers(0, 10**30), unique=True))
def test_natural_order_compares_numbers(numbers):
    names = [f"image {n}.png" for n in numbers]
    expected = [f"image {n}.png" for n in sorted(numbers)]
    assert sorted(names, key=natural_order) == expected


@given(st.lists(st.text(), unique=True), st.randoms(use_true_random=False))
def test_natural_order_is_the_same_however_the_names_come(names, shuffle):
    expected = sorted(names, key=natural_order)
    shuffle.shuffle(names)
    assert sorted(names, key=natural_order) == expected


def test_leading_zeros_only_break_ties():
    names = sorted(["10", "2", "002", "02", "1"], key=natural_order)
    assert names == ["1", "002", "02", "2", "10"]
