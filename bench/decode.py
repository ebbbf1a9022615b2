"""Time how many images per second come out of the archive, and out of plain files.

Run `python -m bench.decode`: about five minutes. `--quick` measures less often;
`--torch PYTHON` adds PyTorch's loader and torchvision's ImageFolder, run by a Python
that has torch, torchvision and Pillow; `--write` also writes bench/decode.md.

All read the images of the bundled archive, one reader after the other in each round.
The stage reads in a clone of the working tree, guarded, in a new process each time; its
time leaves out the start of Python and the imports. The notebook reads unpacked files,
and only the first thousand; it does not stack them, which is what takes the notebook
most of its time. ImageFolder opens files by Image.open, since its own loader converts
them to RGB. The same images packed by the standard library show what decompression
costs.
"""

import argparse
import bz2
import gzip
import io
import lzma
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from bench.pipeline import ROOT, Bench
from bench.tables import count_cores, machine, show, table
from stages.plumbing.workers import available_processors

ARCHIVE = ROOT / "data/mnist_sample.tgz"
NOTEBOOK = "the notebook: jnp.array of each file"
NOTEBOOK_IMAGES = 1000
WORKERS = (0, 2)
# Prints the seconds of the stage's work. Arguments: the number of cores, and `all` for
# what main does or `read` for reading the archive into arrays.
STAGE = """
import os, sys, time
cores, work = int(sys.argv[1]), sys.argv[2]
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from stages.plumbing import artifacts, parameters, runtime
runtime.start("preprocess")
from stages import preprocess
start = time.perf_counter()
if work == "all":
    preprocess.main()
else:
    preprocess.read_splits(artifacts.ARCHIVE, parameters.load(parameters.Data))
print(time.perf_counter() - start)
"""
# Prints the images per second of each run of PyTorch's loader. Arguments: the folder of
# the splits, `files` or `ImageFolder`, the numbers of worker processes and of runs.
TORCH = """
import sys, time
from pathlib import Path
import numpy, torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset

class Images(Dataset):
    def __init__(self, folder):
        self.paths = sorted(folder.glob("*/*/*.png"))
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, i):
        return torch.from_numpy(numpy.array(Image.open(self.paths[i])))

folder, kind, workers, repeats = sys.argv[1:]
if kind == "files":
    images = Images(Path(folder))
else:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor
    images = ConcatDataset(
        ImageFolder(split, PILToTensor(), loader=Image.open)
        for split in Path(folder).iterdir() if split.is_dir()
    )
loader = DataLoader(images, batch_size=256, num_workers=int(workers))
for _ in range(int(repeats)):
    start = time.perf_counter()
    for batch in loader:
        pass
    print(len(images) / (time.perf_counter() - start))
"""
OPENERS: dict[str, Callable[[Path], Any]] = {
    ".tar": lambda path: path.open("rb"),
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
"""What decompresses a tar, by its suffix; w:gz, for example, packs it."""


def cores() -> list[int]:
    """Return on how many cores to run the stage: on one, on two, and on all.

    On all only, where the system cannot restrict a process.
    """
    count = available_processors()
    if not hasattr(os, "sched_setaffinity"):
        return [count]
    return sorted({1, min(2, count), count})


def pack(images: Path, folder: Path) -> list[Path]:
    """Pack the folder of images in all formats."""
    archives = [folder / f"images{suffix}" for suffix in (*OPENERS, ".zip")]
    for archive, compression in zip(archives, ("", "gz", "bz2", "xz"), strict=False):
        with tarfile.open(
            archive,
            f"w:{compression}",  # type: ignore[call-overload]
            format=tarfile.USTAR_FORMAT,
        ) as tar:
            tar.add(images, images.name)
    with zipfile.ZipFile(archives[-1], "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(images.rglob("*.png")):
            file.write(path, path.relative_to(images.parent))
    return archives


def decompress(archive: Path) -> None:
    """Read all that is in an archive."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                file.read(name)
        return
    with OPENERS[archive.name.removeprefix("images")](archive) as stream:
        while stream.read(2**20):
            pass


class Decoders:
    """The images in several forms, and the images per second of all that read them."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.bench.new_clone()
        with tarfile.open(ARCHIVE) as tar:
            tar.extractall(folder, filter="data")
        self.paths = sorted(folder.glob("mnist_sample/*/*/*.png"))
        self.images = folder / "mnist_sample"
        self.contents = [path.read_bytes() for path in self.paths]
        self.archives = pack(self.images, folder)
        self.rates: dict[str, list[float]] = defaultdict(list)
        """By reader, and by archive and reader."""

    def time(self, name: str, read: Callable[[], Any], count: int = 0) -> None:
        """Measure a reader of `count` images, by default of all."""
        start = time.perf_counter()
        read()
        seconds = time.perf_counter() - start
        self.rates[name].append((count or len(self.paths)) / seconds)

    def time_stage(
        self, name: str, archive: Path, count: int, *, whole: bool = False
    ) -> None:
        """Measure the stage's work on an archive, on `count` cores."""
        target = self.bench.clone / "data/archive"
        target.unlink(missing_ok=True)
        os.link(archive, target)
        work = "all" if whole else "read"
        finished = self.bench.run(
            "-c", STAGE, str(count), work, folder=self.bench.clone
        )
        seconds = float(finished.output.splitlines()[-1])
        self.rates[name].append(len(self.paths) / seconds)

    def time_torch(self, python: str, repeats: int) -> None:
        """Measure PyTorch's loader, and torchvision's ImageFolder if it is there."""
        kinds = {"files": "PyTorch's loader of files"}
        if subprocess.run([python, "-c", "import torchvision"]).returncode:
            print("no torchvision: ImageFolder is left out", file=sys.stderr)
        else:
            kinds["ImageFolder"] = "torchvision's ImageFolder"
        for kind, name in kinds.items():
            for workers in WORKERS:
                arguments = [str(self.images), kind, str(workers), str(repeats)]
                done = subprocess.run(
                    [python, "-c", TORCH, *arguments],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                rates = [float(line) for line in done.stdout.split()]
                self.rates[f"{name}, {workers} workers"] = rates

    def round(self) -> None:
        """Measure all readers but PyTorch's once."""
        for count in cores():
            self.time_stage(read_case(count), ARCHIVE, count)
        count = cores()[-1]
        self.time_stage(whole_case(count), ARCHIVE, count, whole=True)

        def from_memory() -> None:
            for content in self.contents:
                np.asarray(Image.open(io.BytesIO(content), formats=["PNG"]))

        def from_files() -> None:
            for path in self.paths:
                np.asarray(Image.open(path))

        def notebook() -> None:
            paths = self.paths[:NOTEBOOK_IMAGES]
            jax.block_until_ready([jnp.array(Image.open(path)) for path in paths])

        self.time("Pillow and NumPy, from memory", from_memory)
        self.time("Pillow and NumPy, from files", from_files)
        self.time(NOTEBOOK, notebook, NOTEBOOK_IMAGES)
        for archive in self.archives:
            self.time(archive.name, partial(decompress, archive))
            for count in cores():
                self.time_stage(f"{archive.name}, {count}", archive, count)

    def readers_table(self) -> list[str]:
        """Format a table with a row for every reader."""
        base = statistics.median(self.rates[NOTEBOOK])
        rows = []
        for name, values in self.rates.items():
            if not name.startswith("images."):
                median = statistics.median(values)
                spread = f"{min(values):.0f}–{max(values):.0f}"
                rows.append([name, f"{median:.0f}", spread, f"{median / base:.1f}"])
        return table(["", "images per second", "spread", "times the notebook"], rows)

    def archives_table(self) -> list[str]:
        """Format a table with a row for every format of archive."""
        rows = []
        for archive in self.archives:
            names = [archive.name, *(f"{archive.name}, {n}" for n in cores())]
            rates = [f"{statistics.median(self.rates[name]):.0f}" for name in names]
            size = f"{archive.stat().st_size / 2**20:.1f}"
            rows.append([archive.name.removeprefix("images"), size, *rates])
        stage = [f"the stage on {count_cores(count)}" for count in cores()]
        return table(["archive", "MiB", "decompressed alone", *stage], rows)


def read_case(count: int) -> str:
    """Name the case of the stage's reading."""
    return f"the stage: archive to arrays, on {count_cores(count)}"


def whole_case(count: int) -> str:
    """Name the case of all the stage does."""
    return f"the stage: all of its work, on {count_cores(count)}"


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="measure less often")
    parser.add_argument(
        "--torch", metavar="PYTHON", help="a Python that has torch and Pillow"
    )
    parser.add_argument(
        "--write", action="store_true", help="also write bench/decode.md"
    )
    arguments = parser.parse_args()
    repeats = 2 if arguments.quick else 5
    with tempfile.TemporaryDirectory() as name:
        decoders = Decoders(Path(name).resolve())
        for i in range(repeats):
            print(f"round {i + 1} of {repeats}", file=sys.stderr)
            decoders.round()
        if arguments.torch:
            decoders.time_torch(arguments.torch, repeats)
        command = f"python -m bench.decode{' --quick' if arguments.quick else ''}"
        lines = [
            f"Measured on {machine()}, by `{command}`.",
            "",
            *decoders.readers_table(),
            "",
            "The same images in archives of other formats, in images per second. A tar "
            "is one stream, which no",
            "number of cores decompresses faster than one does alone; a zip's members "
            "are compressed one by one.",
            "",
            *decoders.archives_table(),
        ]
    show("Decoding", lines, ROOT / "bench/decode.md" if arguments.write else None)


if __name__ == "__main__":
    main()
