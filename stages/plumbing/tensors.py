"""Load data/tensors.npz: the images and labels of both splits."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.plumbing import npz
from stages.plumbing.artifacts import TENSORS
from stages.plumbing.errors import damaged


class Split(NamedTuple):
    """The images and labels of one split."""

    images: NDArray[np.uint8]
    """(N, H, W, C), C = 1 or 3, memory-mapped: read from disk on access."""
    labels: NDArray[np.uint8]
    """(N,), indices into the classes."""


class Names(Sequence[str]):
    """File names in UTF-8, each on a line of its own, decoded on access."""

    def __init__(self, lines: NDArray[np.uint8]) -> None:
        """Find the lines (N,) in the bytes (B,), which may be memory-mapped."""
        self._lines = lines
        self._ends = np.flatnonzero(lines == ord("\n"))

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        """Return the name of an image."""
        start = self._ends[index - 1] + 1 if index else 0
        return bytes(self._lines[start : self._ends[index]]).decode()


def shorten(name: str, length: int = 40) -> str:
    """Return the end of a long name: the file, and the folders that fit."""
    if len(name) <= length:
        return name
    end = name[1 - length :]
    return f"…{end[max(end.find('/'), 0) :]}"


class Decoding(NamedTuple):
    """How image files were decoded: the options of images.decode.to_pixels."""

    size: tuple[int, int] | None
    color: str | None
    background: int | None


class Tensors(NamedTuple):
    """The content of data/tensors.npz."""

    train: Split
    valid: Split
    classes: list[str]
    valid_in_train: NDArray[np.bool_]
    """(N,), which validation images also occur among the training images."""
    decoding: Decoding
    valid_names: Sequence[str]
    """(N,), the names of the validation images in the archive."""


def load_tensors(*, verify: bool = True) -> Tensors:
    """Load the tensors; raise UserError if the file is damaged or inconsistent.

    `verify=False` skips reading all images to verify their checksums.
    """
    images, labels = ("train_images", "valid_images"), ("train_labels", "valid_labels")
    mapped = (*images, "valid_names")
    dtypes = dict.fromkeys((*mapped, *labels, "valid_in_train"), "uint8")
    dtypes |= {"classes": "str", "decoding": "str"}
    arrays = npz.load_arrays(TENSORS, dtypes, mapped, verify=verify)
    train, valid = (
        Split(arrays[i], arrays[j]) for i, j in zip(images, labels, strict=True)
    )
    tensors = Tensors(
        train,
        valid,
        classes=arrays["classes"].tolist(),
        valid_in_train=arrays["valid_in_train"].astype(bool),
        decoding=parse_decoding(TENSORS, arrays["decoding"]),
        valid_names=Names(arrays["valid_names"]),
    )
    for split in (train, valid):
        fits = (
            split.images.ndim == 4
            and split.images.size
            and split.images.shape[3] in (1, 3)
            and split.images.shape[1:] == train.images.shape[1:]
            and split.labels.shape == split.images.shape[:1]
            and split.labels.max() < len(tensors.classes)
        )
        if not fits:
            raise damaged(TENSORS, "its shapes or labels do not fit together")
    count = len(valid.labels)
    if tensors.valid_in_train.shape != (count,):
        raise damaged(TENSORS, "valid_in_train does not fit the validation images")
    if len(tensors.valid_names) != count:
        raise damaged(TENSORS, "valid_names does not fit the validation images")
    return tensors


def format_decoding(decoding: Decoding) -> NDArray[np.str_]:
    """Return a decoding as a JSON string, for an npz file."""
    return np.array(json.dumps(decoding._asdict()))


def parse_decoding(path: str, array: NDArray[np.str_]) -> Decoding:
    """Parse the result of `format_decoding`; raise UserError if it is damaged."""
    try:
        fields = json.loads(str(array))
        size = fields.pop("size")
        # JSON has turned the tuple into a list.
        return Decoding(size=tuple(size) if size else None, **fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise damaged(path, f"decoding: {error}") from None


def digest_image(image: NDArray[np.uint8]) -> str:
    """Return a digest of an image's shape and pixels, the same on every machine."""
    # The length implies the channels; gray images keep their earlier digests.
    content = f"{image.shape[:2]}".encode() + image.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
