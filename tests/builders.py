"""Build what the tests read: image files, archives, the arrays of a tensor file."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages import preprocess
from stages.images import archive
from stages.plumbing import tensors
from stages.plumbing.errors import UserError, one_line
from stages.plumbing.parameters import Data, Splits
from stages.plumbing.tensors import Decoding, Split

TARS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": partial(lzma.compress, format=lzma.FORMAT_ALONE),
}
with suppress(AttributeError):  # Python 3.14 can be built without zstd
    TARS["zst"] = archive.zstd.compress
ZIPS = {
    "zip": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "zip by bzip2": zipfile.ZIP_BZIP2,
}
FORMATS = [*TARS, "zip", "deflated"]


def refusal(function: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """Call a function that raises UserError, and return the line a user sees."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    line = one_line(caught.value)
    assert line is not None
    assert len(line) < 400
    return line


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(value: int, shape: tuple[int, int] = (2, 3)) -> bytes:
    """Return a PNG file of one gray level."""
    return encode(Image.fromarray(np.full(shape, value, np.uint8)))


def dataset(per_class: int, classes: Iterable[str] = "37") -> dict[str, bytes]:
    """Return image files by name; the gray level of each is its index."""
    names = [
        f"{split}/{name}/{i}.png"
        for split in ("train", "valid")
        for name in classes
        for i in range(per_class)
    ]
    return {name: png(i) for i, name in enumerate(names)}


def damaged(content: bytes, seed: str, changes: int = 150) -> Iterator[bytes]:
    """Yield a file cut off at every 5 %, and with one to four random bytes in it."""
    chance = random.Random(seed)
    for percent in range(0, 100, 5):
        yield content[: len(content) * percent // 100]
    for _ in range(changes):
        changed = bytearray(content)
        for _ in range(chance.choice([1, 1, 4])):
            changed[chance.randrange(len(content))] = chance.randrange(256)
        yield bytes(changed)


SMALL = dataset(2)
LEVELS = [*range(8)]


def pack(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    kind: str = "tar",
    *,
    tar_format: int = tarfile.DEFAULT_FORMAT,
    more: Iterable[tarfile.TarInfo] = (),
) -> bytes:
    """Pack files in this order; into a tar also `more` members without content."""
    file = io.BytesIO()
    items = files.items() if isinstance(files, Mapping) else files
    if kind in TARS:
        with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
            for name, content in items:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for member in more:
                tar.addfile(member)
        return TARS[kind](file.getvalue())
    with zipfile.ZipFile(file, "w", ZIPS[kind]) as packed:
        for name, content in items:
            packed.writestr(name, content)
    return file.getvalue()


def data_params(classes: Iterable[str] = "37", **changes: Any) -> Data:
    """Return the section `data` of params.yaml."""
    options = {"size": None, "color": None, "background": None} | changes
    return Data(tuple(classes), Splits("train", "valid"), **options)


def read(content: bytes, data: Data | None = None) -> tuple[Split, Split]:
    """Read an archive as preprocess does."""
    Path("archive").write_bytes(content)
    train, valid, _ = preprocess.read_splits("archive", data or data_params())
    return train, valid


def levels(content: bytes, data: Data | None = None) -> list[int]:
    """Return the first pixel of every image of an archive, in the order of the rows."""
    return [
        level for s in read(content, data) for level in s.images[:, 0, 0, 0].tolist()
    ]


def tensor_arrays(**changes: Any) -> dict[str, Any]:
    """Return the arrays of a small data/tensors.npz."""
    decoding = Decoding(size=(2, 3), color="gray", background=255)
    return {
        "train_images": np.arange(24, dtype=np.uint8).reshape(4, 2, 3, 1),
        "train_labels": np.array([0, 0, 1, 1], np.uint8),
        "valid_images": np.zeros((2, 2, 3, 1), np.uint8),
        "valid_labels": np.array([0, 1], np.uint8),
        "classes": np.array(["drei ③", "семь"]),
        "valid_in_train": np.array([1, 0], np.uint8),
        "valid_names": np.frombuffer("ä 1.png\n猫\n".encode(), np.uint8),
        "decoding": tensors.format_decoding(decoding),
    } | changes
