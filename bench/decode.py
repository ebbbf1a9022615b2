"""Time how many images per second come out of the archive, and out of plain files.

Run `python -m bench.decode`: about three minutes. `--torch PYTHON` adds PyTorch's
loader, run by a Python that has torch and Pillow; `--write` also writes
bench/decode.md. All read the images of the bundled archive, one after the other in
each round. The notebook reads unpacked files, and only the first thousand; it does not
stack them, which is what takes the notebook most of its time.
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from bench.pipeline import ROOT
from bench.tables import machine, show, table
from stages import preprocess
from stages.plumbing import parameters

ARCHIVE = ROOT / "data/mnist_sample.tgz"
REPEATS = 5
NOTEBOOK = "the notebook: jnp.array of each file"
NOTEBOOK_IMAGES = 1000
WORKERS = (0, 2)
# Prints the images per second of each run of PyTorch's loader. Arguments: the folder
# of the images, and the number of worker processes.
TORCH = f"""
import sys, time
from pathlib import Path
import numpy, torch
from PIL import Image

class Images(torch.utils.data.Dataset):
    def __init__(self, folder):
        self.paths = sorted(Path(folder).glob("*/*/*.png"))
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, i):
        return torch.from_numpy(numpy.array(Image.open(self.paths[i])))

images, workers = Images(sys.argv[1]), int(sys.argv[2])
loader = torch.utils.data.DataLoader(images, batch_size=256, num_workers=workers)
for _ in range({REPEATS}):
    start = time.perf_counter()
    count = sum(map(len, loader))
    print(count / (time.perf_counter() - start))
"""


def measure(torch: str | None) -> dict[str, list[float]]:
    """Return the images per second of every run, by reader."""
    data = parameters.load(parameters.Data)
    with tarfile.open(ARCHIVE) as tar, tempfile.TemporaryDirectory() as folder:
        tar.extractall(folder, filter="data")
        paths = sorted(Path(folder).glob("*/*/*/*.png"))
        contents = [path.read_bytes() for path in paths]

        def from_archive() -> int:
            with contextlib.redirect_stdout(io.StringIO()):
                splits = preprocess.read_splits(str(ARCHIVE), data)
            return sum(len(split.images) for split in splits)

        def from_memory() -> int:
            files = map(io.BytesIO, contents)
            images = [np.asarray(Image.open(file, formats=["PNG"])) for file in files]
            return len(images)

        def from_files() -> int:
            return len([np.asarray(Image.open(path)) for path in paths])

        def notebook() -> int:
            arrays = [jnp.array(Image.open(path)) for path in paths[:NOTEBOOK_IMAGES]]
            return len(jax.block_until_ready(arrays))

        readers: dict[str, Callable[[], int]] = {
            "the stage: archive to arrays": from_archive,
            "Pillow and NumPy, from memory": from_memory,
            "Pillow and NumPy, from files": from_files,
            NOTEBOOK: notebook,
        }
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(REPEATS):
            for name, read in readers.items():
                start = time.perf_counter()
                count = read()
                rates[name].append(count / (time.perf_counter() - start))
        for workers in WORKERS if torch else ():
            images = str(paths[0].parents[2])
            done = subprocess.run(
                [str(torch), "-c", TORCH, images, str(workers)],
                capture_output=True,
                text=True,
                check=True,
            )
            name = f"PyTorch's loader of files, {workers} workers"
            rates[name] = [float(line) for line in done.stdout.split()]
    return rates


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch", metavar="PYTHON", help="a Python that has torch and Pillow"
    )
    parser.add_argument(
        "--write", action="store_true", help="also write bench/decode.md"
    )
    arguments = parser.parse_args()
    rates = measure(arguments.torch)
    base = statistics.median(rates[NOTEBOOK])
    rows = []
    for name, values in rates.items():
        median = statistics.median(values)
        spread = f"{min(values):.0f}–{max(values):.0f}"
        rows.append([name, f"{median:.0f}", spread, f"{median / base:.1f}"])
    lines = [f"Measured on {machine()}, by `python -m bench.decode`.", ""]
    lines += table(["", "images per second", "spread", "times the notebook"], rows)
    show("Decoding", lines, ROOT / "bench/decode.md" if arguments.write else None)


if __name__ == "__main__":
    main()
