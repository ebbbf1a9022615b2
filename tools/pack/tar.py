"""Write the archive: the same bytes for the same images."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from stages.images.archive import MAX_TOTAL
from stages.plumbing.errors import UserError
from hermetic import temporary
from stages.plumbing.progress import progress
from tools.pack.place import Packed


class Digested(io.RawIOBase):
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin with nothing."""
        self._file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Write, and hash."""
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)


class Written(NamedTuple):
    """What became of an archive."""

    sha256: str
    size: int
    """In bytes."""
    replaces: bool
    """Whether there was another archive in its place."""
    is_new: bool
    """Whether the file has not had these bytes before."""


def write(images: Sequence[Packed], out: str, *, dry_run: bool) -> Written:
    """Write an archive of the images unless the file has its bytes already.

    Raises UserError if the file is there and no tar, and as `write_tar` does.
    """
    there = None
    if os.path.exists(out):
        if not tarfile.is_tarfile(out):
            raise UserError(f"{out} is there and no tar: give another name with -o")
        with open(out, "rb") as file:
            there = hashlib.file_digest(file, "sha256").hexdigest()
    partial = temporary(out)
    try:
        with open(os.devnull if dry_run else partial, "wb") as file:
            archive = Digested(file)
            write_tar(progress(images, "pack", "images", len(images)), archive)
        sha256 = archive.sha256.hexdigest()
        if not dry_run and sha256 != there:
            os.replace(partial, out)
    finally:
        with suppress(OSError):
            os.remove(partial)
    replaces = there not in (None, sha256)
    return Written(sha256, archive.size, replaces, is_new=sha256 != there)


def write_tar(images: Iterable[Packed], file: Digested) -> None:
    """Write a tar archive of the images, dated 1970, in the order they come.

    Raises UserError for an image that is not what it was when it was looked at, and for
    more bytes than preprocess takes.
    """
    with tarfile.open(
        fileobj=file, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8"
    ) as tar:
        for image in images:
            content = Path(image.path).read_bytes()
            if hashlib.sha256(content).digest() != image.look.digest:
                raise UserError(f"{image.path} has changed meanwhile: pack again")
            member = tarfile.TarInfo(image.member)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            if file.size > MAX_TOTAL:
                raise UserError(
                    f"the images are more than {MAX_TOTAL >> 30} GiB: pack fewer"
                )
