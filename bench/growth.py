"""Measure time and memory: more images and classes, larger images, compressed tars.

Run `python -m bench.growth > bench/growth.md`: it takes ten minutes and,
temporarily, 8 GB of disk; with `--copies 1`, a minute. The images are the bundled ones,
enlarged, dealt out to the classes, and copied. Each copy is shifted by up to two pixels
and has its number in two more, so that no two images are equal.

Memory is anonymous pages, which the kernel cannot drop, summed over the processes of a
stage. A page shared after a fork counts for each of them: the sum is an upper bound.
The stages run under a limit on private writable memory (RLIMIT_DATA): if one needs
more, it fails.
"""

import argparse
import hashlib
import io
import resource
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

from bench.clone import ROOT, STAGES, Clone
from bench.tables import heading, table

ARCHIVE = ROOT / "data/mnist_sample.tgz"
MIB = 2**20
LIMIT = 600 * MIB
"""Bytes, for each process of a stage."""
INTERVAL = 0.02
"""Seconds between two samples of memory."""


class Case(NamedTuple):
    """How the bundled images are multiplied."""

    copies: int = 1
    classes: int = 2
    side: int = 28
    """In pixels."""
    compression: str = ""
    """Of the tar, as tarfile names it."""


CASES = [Case(copies=10), Case(copies=100), Case(classes=10), Case(classes=100)]
CASES += [Case(side=64), Case(side=128)]
CASES += [Case(compression=name) for name in ("gz", "bz2", "xz")]


class Cost(NamedTuple):
    """Time and memory of a stage."""

    seconds: float
    peak: int
    """Anonymous memory, in bytes."""


def grow(target: Path, case: Case) -> int:
    """Write the images of a case into a tar, and return their number."""
    generator, images = np.random.default_rng(0), 0
    half = case.classes // 2  # of the classes hold 3s, the other half 7s
    mode: Any = f"w:{case.compression}"
    with tarfile.open(ARCHIVE) as source, tarfile.open(target, mode) as tar:
        for number, member in enumerate(source):
            file = source.extractfile(member)
            if not file or not member.name.endswith(".png"):
                continue
            _, split, digit, _ = member.name.split("/")
            label = 2 * (number % half) + (digit == "7")
            image = np.asarray(Image.open(file).resize((case.side, case.side)))
            for copy in range(case.copies):
                shift = generator.integers(-2, 3, 2) if copy else (0, 0)
                pixels = np.roll(image, shift, (0, 1))
                if copy:
                    pixels[0, :2] = divmod(copy, 256)
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "PNG", compress_level=0)
                info = tarfile.TarInfo(f"{split}/c{label}/{number}_{copy}.png")
                info.size = content.tell()
                content.seek(0)
                tar.addfile(info, content)
                images += 1
            tar.members.clear()  # type: ignore[attr-defined]  # for flat memory
    return images


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Collect the anonymous memory, in bytes, of all children while the block runs."""
    samples, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(INTERVAL):
            total = 0
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it has ended
                    memory = child.memory_info()
                    total += memory.rss - getattr(memory, "shared", 0)  # not on macOS
            samples.append(total)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def measure(clone: Clone, case: Case, archive: Path) -> tuple[list[str], list[Cost]]:
    """Run the stages on a case; return the row's first cells, and the costs."""
    images = grow(archive, case)
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    classes = [f"c{label}" for label in range(case.classes)]
    clone.edit("download", "url", lambda _: str(archive))
    clone.edit("download", "sha256", lambda _: digest)
    clone.edit("data", "classes", lambda _: classes)
    costs = []
    for stage in STAGES:
        with peak_memory() as samples:
            seconds, _ = clone.run("-m", "stages", stage)
        costs.append(Cost(seconds, max(samples)))
    size = (clone.folder / "data/tensors.npz").stat().st_size / MIB
    kind = f"tar.{case.compression}".rstrip(".")
    cells = [f"{images:,}", str(case.classes), f"{case.side}²", kind, f"{size:.0f} MiB"]
    return cells, costs[1:]  # download does not read the images


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--copies", type=int, default=100, help="most copies of an image (default: 100)"
    )
    copies = parser.parse_args().copies
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, hard))  # the stages inherit it
    cases = [Case(), *(case for case in CASES if case.copies <= copies)]
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name).resolve()
        clone, archive = Clone(parent), parent / "grown.tar"
        # The first case runs twice: the first time, JAX compiles.
        results = [measure(clone, case, archive) for case in [Case(), *cases]][1:]
    first = results[0][1]
    rows = [
        cells
        + [
            f"{seconds:.2f} s, × {seconds / base.seconds:.1f}, {peak / MIB:.0f} MiB"
            for (seconds, peak), base in zip(costs, first, strict=True)
        ]
        for cells, costs in results
    ]
    print(heading("Growth", "growth"))
    header = ["images", "classes", "pixels", "archive", "tensors", *STAGES[1:]]
    print(table(header, rows))
    print("×: time relative to the first row. MiB: peak anonymous memory.")
    print("Except in the first row, the time of train includes compiling.")
    print(f"Each process ran under a limit of {LIMIT // MIB} MiB of private memory.")


if __name__ == "__main__":
    main()
