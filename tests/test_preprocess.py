"""From the archive to tensors: in which order, and what is counted, said or refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from stages import preprocess
from stages.images import archive
from stages.plumbing import tensors, workers
from tests.builders import (
    SMALL,
    data_params,
    dataset,
    encode,
    levels,
    pack,
    png,
    read,
    refusal,
)

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_images_are_sorted_by_class_as_listed_then_by_name_in_natural_order():
    order = ["1.png", "2.png", "010.png", "10.png", "a2.png", "a10.png", "b.png"]
    files = {
        f"{split}/{label}/{name}": png(100 * (label == "3") + i)
        for split in ("train", "valid")
        for label in "37"
        for i, name in enumerate(order)
    }
    images, labels = read(pack(dict(sorted(files.items()))), data_params("73"))[0]
    assert images[:, 0, 0, 0].tolist() == [*range(7), *range(100, 107)]
    assert labels.tolist() == [0] * 7 + [1] * 7


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the last number of a list be the number of processors."""
    counts = [1]
    monkeypatch.setattr(workers, "available_processors", lambda: counts[-1])
    return counts


def test_the_tensors_are_the_same_for_any_number_of_processors(processors):
    content = pack(dataset(60))
    alone = read(content)
    for count in (2, 5):
        processors.append(count)
        for split, expected in zip(read(content), alone, strict=True):
            np.testing.assert_array_equal(split.images, expected.images)
            np.testing.assert_array_equal(split.labels, expected.labels)


def test_the_first_damaged_image_in_the_archive_is_named(processors):
    """Members are in reverse order: the first one in the archive is the last row."""
    files = dataset(50)
    files |= {"valid/3/10.png": b"damaged", "train/7/40.png": b"damaged, too"}
    for count in (1, 2, 3):
        processors.append(count)
        line = refusal(read, pack(dict(reversed(files.items()))))
        assert line.startswith("valid/3/10.png: not a readable")


ODD_NAMES = {
    "./valid/3/two\nlines\r.png": r"./valid/3/two\nlines\r.png",
    "root/valid/7/\udcff\u2028.png": r"root/valid/7/\udcff\u2028.png",
    "valid/3/a\u0308.png": "valid/3/a\u0308.png",  # as stored, not in NFC
    "valid\\7\\9.png": "valid\\7\\9.png",
    f"valid/3/{'long' * 100}.png": f"valid/3/{'long' * 100}.png",
}
"""The byte 255, which is not UTF-8, is a lone surrogate."""


@pytest.mark.parametrize("seed", range(3))
def test_validation_images_keep_their_names_in_the_archive_on_one_line(seed):
    names = [*np.random.default_rng(seed).permutation([*SMALL, *ODD_NAMES])]
    content = pack((name, png(level)) for level, name in enumerate(names))
    Path("archive").write_bytes(content)
    _, valid, lines = preprocess.read_splits("archive", data_params())
    stored = [names[level] for level in valid.images[:, 0, 0, 0]]
    assert [*tensors.Names(lines)] == [ODD_NAMES.get(name, name) for name in stored]


def test_images_of_mixed_sizes_are_resized_to_data_size():
    content = pack({**SMALL, "train/7/large.png": png(9, (30, 20))})
    train, valid = read(content, data_params(size=(5, 4)))
    assert (train.images.shape, valid.images.shape) == ((5, 5, 4, 1), (4, 5, 4, 1))


def test_more_images_than_fit_on_the_disk_are_refused_before_they_are_decoded(
    monkeypatch,
):
    """The tensors are written twice: each image to its row, then into the npz file."""
    usage = SimpleNamespace(free=2 * 6 * len(SMALL))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert levels(pack(SMALL)) == [*range(8)]
    for files in (SMALL, {**SMALL, "valid/7/9.png": b"damaged"}):
        usage.free = 2 * 6 * len(files) - 1
        line = refusal(read, pack(files))
        needed = "data: the images need 1 MiB of disk, and 0 MiB are free: make room"
        assert needed in line


@pytest.mark.parametrize(
    ("gone", "split"), [("train/7", "train"), ("valid/3", "valid")]
)
def test_a_class_without_images_is_named_with_other_folders(gone, split):
    files = {name: SMALL[name] for name in SMALL if not name.startswith(gone)}
    files |= {f"root/train/{i}/1.png": png(1) for i in (0, 1)}
    line = refusal(read, pack(files))
    assert f"class '{gone[-1]}' has no images in {split}: check data.classes" in line
    assert line.endswith("other folders are root/train/0, root/train/1")


def test_what_is_left_out_is_counted_by_reason_with_an_example(capsys):
    counts = ["train: 2 of 3, 2 of 7", "valid: 2 of 3, 2 of 7"]
    read(pack(SMALL))
    assert capsys.readouterr().out.splitlines() == counts
    others = [
        *("train/3/._1.png", "labels.csv", "train/8/1.png", "train/8/2.png"),
        *("train/3/notes.txt", "/train/3/5.png", "train/7/@eaDir/1.png/S.jpg"),
    ]
    read(pack({**dict.fromkeys(others, b"x"), **SMALL}))
    assert capsys.readouterr().out.splitlines() == [
        *counts,
        "left out, hidden: 2, for example train/3/._1.png",
        "left out, not in a folder of a chosen split and class: 3, "
        "for example labels.csv",
        "left out, not an image by its extension: 1, for example train/3/notes.txt",
        "left out, with an absolute path, or with ..: 1, for example /train/3/5.png",
    ]


def write_shards(*contents: bytes) -> None:
    Path("shards").mkdir()
    for i, content in enumerate(contents):
        Path(f"shards/{i:04}").write_bytes(content)


def read_shards() -> tuple[tensors.Split, tensors.Split, tensors.Names]:
    train, valid, lines = preprocess.read_splits("shards", data_params())
    return train, valid, tensors.Names(lines)


def test_several_archives_are_read_as_one_with_the_same_files(monkeypatch):
    """In any order; each within the limit of size, and together above it."""
    kinds = ["tar", "gz", "zip", "deflated", "bz2"]
    files = sorted(dataset(5).items(), key=lambda file: file[0][::-1])
    write_shards(*(pack(files[i::5], kind) for i, kind in enumerate(kinds)))
    size = sum(len(content) for _, content in files)
    monkeypatch.setattr(archive, "MAX_TOTAL", size // 4)
    train, valid, names = read_shards()
    found = [*train.images[:, 0, 0, 0], *valid.images[:, 0, 0, 0]]
    assert found == [*range(20)]
    assert train.labels.tolist() == valid.labels.tolist() == [0] * 5 + [1] * 5
    assert [*names] == [name for name, _ in dataset(5).items()][10:]


ONE, OTHER = pack({"train/3/0.png": png(0), "train/3/9.png": png(9)}), pack(SMALL)
SECOND = {
    "train/3/1.png: duplicate of shards/0000: train/3/1.png": {"train/3/1.png": png(9)},
    "train/3/9.png: not a readable": {"train/3/9.png": b"damaged"},
    "train/3/9.png: its size is 4 x 4, but shards/0000: train/3/0.png has 2 x 3": {
        "train/3/9.png": png(9, (4, 4))
    },
    "train/7/3/9.png: can be read in two ways": {"train/7/3/9.png": png(9)},
}


@pytest.mark.parametrize("kind", ["tar", "gz", "zip"])
@pytest.mark.parametrize("problem", SECOND)
def test_what_is_wrong_with_an_image_names_its_archive(kind, problem):
    write_shards(pack(SMALL, "gz"), pack(SECOND[problem], kind))
    assert refusal(read_shards).startswith(f"shards/0001: {problem}")


def test_an_archive_that_is_damaged_or_missing_is_named():
    write_shards(pack(SMALL), pack({"valid/3/9.png": png(9)})[:700])
    assert "shards/0001 is damaged or not a tar or zip" in refusal(read_shards)
    # As after a power cut: `download` writes the first one last.
    Path("shards/0000").unlink()
    assert refusal(read_shards) == "shards/0000 is missing: run dvc repro"


HUES = {"3": (200, 70, 82), "7": (40, 150, 88)}
"""Both have the luma 110."""


@pytest.mark.parametrize(
    ("color", "line"),
    [
        ("gray", "in colour or with a palette, converted to gray: 4, for example v"),
        ("rgb", "gray, given three equal channels: 1, for example valid/7/gray.png"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_hues_of_equal_luma_differ_in_rgb_and_what_is_converted_is_counted(
    monkeypatch, capsys, processors, count, color, line
):
    processors.append(count)
    monkeypatch.setattr(preprocess, "MIN_CHUNK", 1)
    files = {
        f"{split}/{name}/0.png": encode(Image.new("RGB", (3, 2), hue))
        for split in ("train", "valid")
        for name, hue in HUES.items()
    } | {"valid/7/gray.png": png(110)}
    train, valid = read(pack(dict(reversed(files.items()))), data_params(color=color))
    assert f"\n{line}" in capsys.readouterr().out
    expected = [*HUES.values()] if color == "rgb" else [(110,), (110,)]
    for split in (train, valid):
        assert [*map(tuple, split.images[:2, 1, 2].tolist())] == expected
    assert (valid.images[2] == 110).all()


def test_validation_images_that_are_training_images_too_are_found_by_content():
    images = np.arange(24, dtype=np.uint8).reshape(4, 2, 3, 1)
    others = np.concatenate([images[[1, 3, 1]], images[:1] + 1])
    assert preprocess.find_copies(images, others).tolist() == [False, True, False, True]
