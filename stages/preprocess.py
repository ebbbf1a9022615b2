"""Decode the images of the chosen classes from the archive into one tensor file."""

import errno
import hashlib
import io
import math
import mmap
import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.images import names
from stages.images.archive import Archives, Entry
from stages.images.decode import is_gray, load, to_pixels
from stages.plumbing import artifacts, parameters, runtime, tensors, workers
from stages.plumbing.errors import UserError
from stages.plumbing.progress import progress
from stages.plumbing.tensors import Decoding, Split

MAX_FOLDERS_SHOWN = 8
CONVERTED = {
    "gray": "in colour or with a palette, converted to gray",
    "rgb": "gray, given three equal channels",
}
"""What `preprocess` counts, by data.color."""
RECORD = struct.Struct("8q")
"""An Entry as bytes: a Python object would take five times the memory."""
MIN_CHUNK, MAX_CHUNK = 8, 256
"""Bounds on the number of images per worker job."""


class LeftOut(NamedTuple):
    """Skipped members, by reason."""

    counts: Counter[str]
    examples: dict[str, str]
    """The first skipped member."""
    folders: set[str]
    """Folders outside the chosen splits and classes."""


def find_images(
    source: Archives, data: parameters.Data, records: IO[bytes]
) -> tuple[list[bytes], NDArray[np.int64], LeftOut]:
    """List the images in the archive, and write each one's Entry as a RECORD.

    Returns a sort key for each image (split, class, then name in natural order), the
    number of images by split and class (2, K), and the skipped members.
    """
    splits = {
        names.normalize(data.splits.train): 0,
        names.normalize(data.splits.valid): 1,
    }
    labels = {names.normalize(name): label for label, name in enumerate(data.classes)}
    # Cached: members of the same folder are usually adjacent.
    find_folder = lru_cache(partial(names.find_folder, splits=splits, labels=labels))
    left_out = LeftOut(Counter(), {}, set())

    def select(member: str) -> tuple[names.Folder, str] | None:
        image = names.find_image(member, find_folder)
        if not isinstance(image, str):
            return image
        left_out.counts[image] += 1
        left_out.examples.setdefault(image, member)
        if image in (names.ELSEWHERE, names.ODD_PATH):
            left_out.folders.add(member.rpartition("/")[0] or ".")
        return None

    keys, counts = [], [[0] * len(labels) for _ in splits]
    found = progress(source.find(select), "find images", "images")
    for ((split, label, inner), name), entry in found:
        # chr() sorts labels in numerical order, which their digits would not.
        key = f"{split}{chr(label)}{names.natural_order(inner + name)}"
        # A str or a tuple would take more memory. UTF-8 has the same order.
        keys.append(key.encode("utf-8", "surrogatepass"))
        counts[split][label] += 1
        records.write(RECORD.pack(*entry))
    records.flush()  # the caller memory-maps this file
    return keys, np.array(counts), left_out


def check_counts(
    counts: NDArray[np.int64], left_out: LeftOut, data: parameters.Data
) -> None:
    """Print the number of images by split and class, and what was skipped.

    Raises UserError, listing other folders in the archive, if a class has no images.
    """
    for folder, row in zip((data.splits.train, data.splits.valid), counts, strict=True):
        for name, count in zip(data.classes, row, strict=True):
            if not count:
                raise UserError(
                    f"class {name!r} has no images in {folder}: check data.classes "
                    f"and data.splits; {describe_folders(left_out.folders)}"
                )
        named = zip(row, data.classes, strict=True)
        print(f"{folder}: " + ", ".join(f"{count} of {name}" for count, name in named))
    for reason, count in left_out.counts.items():
        example = left_out.examples[reason]
        print(f"left out, {reason}: {count}, for example {example}")


def describe_folders(folders: set[str]) -> str:
    """List the folders whose files were skipped, up to MAX_FOLDERS_SHOWN."""
    if not folders:
        return "the archive has no other folders"
    shown = ", ".join(sorted(folders)[:MAX_FOLDERS_SHOWN])
    more = len(folders) - MAX_FOLDERS_SHOWN
    return f"other folders are {shown}" + (f" and {more} more" if more > 0 else "")


def sort_images(
    source: Archives, keys: Sequence[bytes], entries: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return each image's row (N,) in the order of the keys.

    Raises UserError, naming both members, for a duplicate key.
    """
    # By name, not archive order: packing the same files again changes nothing.
    array = np.array(keys, object)
    order = np.argsort(array, kind="stable")
    array = array[order]
    same = np.flatnonzero(array[1:] == array[:-1])
    if same.size:
        # Of several duplicates, report the first in the archive.
        twice = min(zip(order[same + 1].tolist(), order[same].tolist(), strict=True))
        second, first = (source.label(Entry(*entries[i].tolist())) for i in twice)
        raise UserError(f"{second}: duplicate of {first}: leave one out")
    rows = np.empty(len(keys), np.int64)
    rows[order] = np.arange(len(keys))  # the inverse permutation
    return rows


def read_images(
    source: Archives,
    entries: NDArray[np.int64],
    rows: NDArray[np.int64],
    decoding: Decoding,
    file: IO[bytes],
) -> NDArray[np.uint8]:
    """Decode images in parallel; the image of entries[i] goes to row rows[i].

    Returns the images (N, H, W, C), memory-mapped from `file`, and prints how many
    images `decoding.color` has converted. Raises UserError if the disk is too small, or
    for the first member, in archive order, that is unusable or differs in size from the
    first image.
    """
    count, options = len(entries), decoding._asdict()
    # Shared with the workers.
    converted = np.frombuffer(mmap.mmap(-1, count), np.bool_)

    def decode_entry(i: int, entry: Entry) -> tuple[str, NDArray[np.uint8]]:
        name = source.label(entry)
        image = load(source.load(entry), name)
        converted[i] = is_gray(image) == (decoding.color == "rgb")
        return name, to_pixels(image, name, **options)

    # In this process, to learn the image size before any worker starts.
    first_name, first = decode_entry(0, Entry(*entries[0].tolist()))
    check_disk(count * first.size)

    def decode_chunk(chunk: range) -> None:
        """Decode some images, and write them to their rows."""
        part = slice(chunk.start, chunk.stop)
        each = zip(chunk, rows[part].tolist(), entries[part].tolist(), strict=True)
        for i, row, entry in each:
            name, image = decode_entry(i, Entry(*entry))
            if image.shape != first.shape:
                shapes = image.shape, first.shape
                size, first_size = (f"{h} x {w}" for h, w, _ in shapes)
                raise UserError(
                    f"{name}: its size is {size}, but {first_name} has {first_size}: "
                    "set data.size to resize all"
                )
            # Workers write to the shared file: sending images to the parent would cost
            # more. pwrite ignores the file position, which forked processes share. On
            # a nearly full disk, it writes part of the data without an error.
            if os.pwrite(file.fileno(), image.data, row * image.size) < image.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    processes = workers.available_processors()
    # Small enough to keep all processes busy to the end, large enough to pay off.
    size = min(max(count // (16 * processes), MIN_CHUNK), MAX_CHUNK)
    chunks = [range(i, min(i + size, count)) for i in range(0, count, size)]
    with workers.forked(decode_chunk, chunks, processes) as done:
        decoded = chain.from_iterable(done)
        for _ in progress(decoded, "decode images", "images", count):
            pass  # the images are in the file; this raises the workers' errors
    if found := int(converted.sum()):
        example = source.label(Entry(*entries[converted.argmax()].tolist()))
        print(f"{CONVERTED[str(decoding.color)]}: {found}, for example {example}")
    return np.asarray(np.memmap(file, np.uint8, "r", shape=(count, *first.shape)))


def read_names(
    source: Archives, entries: NDArray[np.int64], rows: Iterable[int]
) -> NDArray[np.uint8]:
    """Return the names of some images as UTF-8 (B,), each on a line of its own.

    Fixed-width strings would all take the space of the longest.
    """
    lines = io.BytesIO()
    for entry in (Entry(*entries[row].tolist()) for row in rows):
        line = f"{names.escape(source.name(entry))}\n"
        lines.write(line.encode("utf-8", "backslashreplace"))
    return np.frombuffer(lines.getbuffer(), np.uint8)


def check_disk(pixels: int) -> None:
    """Raise UserError unless there is room for two bytes per pixel."""
    # Each pixel is written to a scratch file, then to the npz, maybe on another disk.
    folders = [os.path.dirname(artifacts.TENSORS), runtime.SCRATCH]
    for folder in folders:  # os.stat needs them to exist
        os.makedirs(folder, exist_ok=True)
    disks = [os.stat(folder).st_dev for folder in folders]
    for folder, disk in zip(folders, disks, strict=True):
        # Twice the size if both are on the same disk.
        needed, free = disks.count(disk) * pixels, shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"{folder}: the images need {math.ceil(needed / 2**20)} MiB of disk, "
                f"and {free >> 20} MiB are free: make room, use fewer classes "
                "(data.classes) or smaller images (data.size)"
            )


def decoding_of(data: parameters.Data) -> Decoding:
    """Return the decoding options."""
    return Decoding(data.size, data.color, data.background)


def read_splits(
    path: str, data: parameters.Data
) -> tuple[Split, Split, NDArray[np.uint8]]:
    """Read both splits of an archive, or of a folder of numbered archives.

    The third value has the names of the validation images.
    """
    with (  # scratch files, since an archive may be larger than memory
        artifacts.scratch() as spool,
        artifacts.scratch() as records,
        artifacts.scratch() as pixels,
        Archives(path, spool) as source,
    ):
        keys, counts, left_out = find_images(source, data, records)
        check_counts(counts, left_out, data)
        entries = np.memmap(records, np.int64, "r").reshape(len(keys), -1)
        rows = sort_images(source, keys, entries)
        keys.clear()  # free the memory before the workers inherit it
        images = read_images(source, entries, rows, decoding_of(data), pixels)
        train = counts[0].sum()
        valid_names = read_names(source, entries, np.argsort(rows)[train:])
    # Rows are sorted by split and class, so the counts alone give the labels.
    labels = [np.repeat(np.arange(len(row), dtype=np.uint8), row) for row in counts]
    splits = Split(images[:train], labels[0]), Split(images[train:], labels[1])
    return *splits, valid_names


def find_copies(
    images: NDArray[np.uint8], others: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Return a mask (N,) of the images (N, …) that are also in others (M, …)."""

    # Compare digests, which fit in memory even if the images do not.
    def digest(image: NDArray[np.uint8]) -> bytes:
        return hashlib.blake2b(image.data, digest_size=16).digest()

    digests = [digest(image) for image in images]
    known = set(digests)
    compared = progress(others, "find copies", "images", len(others))
    copied = {found for image in compared if (found := digest(image)) in known}
    return np.array([found in copied for found in digests])


def main() -> None:
    """Write data/tensors.npz from data/archive."""
    data = parameters.load(parameters.Data)
    train, valid, valid_names = read_splits(artifacts.ARCHIVE, data)
    # An image in both splits is no test of how the model does on new images.
    valid_in_train = find_copies(valid.images, train.images)
    if count := int(valid_in_train.sum()):
        print(f"{count} images in {data.splits.valid} are also in {data.splits.train}")
    arrays = {
        "train_images": train.images,
        "train_labels": train.labels,
        "valid_images": valid.images,
        "valid_labels": valid.labels,
        "valid_names": valid_names,
        "valid_in_train": valid_in_train.astype(np.uint8),
        "classes": np.array(data.classes),
        "decoding": tensors.format_decoding(decoding_of(data)),
    }
    artifacts.publish({artifacts.TENSORS: arrays})
