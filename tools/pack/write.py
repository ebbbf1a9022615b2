"""Write the archive: the same bytes for the same images."""

import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress

from hermetic import temporary
from stages.images.archive import MAX_TOTAL
from stages.plumbing.errors import UserError
from stages.plumbing.progress import progress
from tools.image_files import Read
from tools.pack.look import Image


def write(
    images: Sequence[Image], read: Read, out: str, *, dry_run: bool
) -> tuple[str, str]:
    """Write a tar archive of the images, unless the file already has the same bytes.

    Returns its SHA-256, and a line about it. Raises UserError if `out` is not a tar, if
    an image has changed since it was inspected, or if preprocess would reject the size.
    """
    before, partial = None, temporary(out)
    if os.path.exists(out):
        if not tarfile.is_tarfile(out):
            raise UserError(f"{out} exists and is not a tar: give another name with -o")
        with open(out, "rb") as file:
            before = hashlib.file_digest(file, "sha256").hexdigest()
    digest, size = hashlib.sha256(), 0
    try:
        with open(os.devnull if dry_run else partial, "wb") as file:
            for block in tar_blocks(images, read):
                digest.update(block)
                size += file.write(block)
        sha256 = digest.hexdigest()
        if not dry_run and sha256 != before:
            os.replace(partial, out)
    finally:
        with suppress(OSError):
            os.remove(partial)
    done = "would be written" if dry_run else "written"
    if before:
        done = (
            "unchanged" if before == sha256 else f"{done} in place of another archive"
        )
    return sha256, f"{out}: {done}, {size:,} bytes"


def tar_blocks(images: Sequence[Image], read: Read) -> Iterator[bytes]:
    """Yield a tar archive of the images, dated 1970, in pieces; raises like `write`."""
    size = 2 * tarfile.BLOCKSIZE  # of the end marker
    for image in progress(images, "pack", "images", len(images)):
        content = read(image.path)
        if hashlib.sha256(content).digest() != image.digest:
            raise UserError(
                f"{image.path} has changed since it was looked at: pack again"
            )
        member = tarfile.TarInfo(image.member)
        member.size = len(content)
        header = member.tobuf(tarfile.GNU_FORMAT, "utf-8")
        block = header + content + bytes(-len(content) % tarfile.BLOCKSIZE)
        size += len(block)
        if size > MAX_TOTAL:
            raise UserError(f"more than {MAX_TOTAL >> 30} GiB of images: pack fewer")
        yield block
    yield bytes(2 * tarfile.BLOCKSIZE + -size % tarfile.RECORDSIZE)
