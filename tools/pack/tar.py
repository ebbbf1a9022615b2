"""Write the archive: the same bytes for the same images."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from stages.plumbing.errors import UserError
from stages.plumbing.hermetic import temporary
from stages.plumbing.progress import progress
from tools.pack.place import Packed


class Digested:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin with nothing."""
        self._file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Write, and hash."""
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)


def write_tar(images: Iterable[Packed], file: Any) -> None:
    """Write a tar archive of the images, dated 1970, in the order they come.

    Raises UserError for an image that is not what it was when it was looked at.
    """
    with tarfile.open(
        fileobj=file, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8"
    ) as tar:
        for image in images:
            content = Path(image.path).read_bytes()
            if hashlib.sha256(content).digest() != image.look.digest:
                raise UserError(
                    f"{image.path} has changed while it was packed: repeat it"
                )
            member = tarfile.TarInfo(image.member)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write(images: Sequence[Packed], out: str, *, dry_run: bool) -> str:
    """Write the archive unless the file has its bytes already; return its SHA-256."""
    partial = temporary(out)
    try:
        with open(os.devnull if dry_run else partial, "wb") as file:
            archive = Digested(file)
            write_tar(progress(images, "pack", "images", len(images)), archive)
        done = "would be written" if dry_run else "written"
        if os.path.exists(out):
            with open(out, "rb") as file:
                there = hashlib.file_digest(file, "sha256").digest()
            is_same = there == archive.sha256.digest()
            done = "unchanged" if is_same else f"{done} in place of another archive"
        if done.startswith("written"):
            os.replace(partial, out)
    finally:
        with suppress(OSError):
            os.remove(partial)
    print(f"{out}: {done}, {archive.size:,} bytes")
    return archive.sha256.hexdigest()
