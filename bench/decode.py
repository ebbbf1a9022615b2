"""How many images a second come out of the archive: the stage's way, the notebook's, and Pillow's alone.

Run it with `python -m bench.decode`, for some three minutes. `--torch PYTHON` names a Python that has torch and Pillow,
`--write` puts the table into bench/decode.md too. Every way gets the images of the bundled archive, in turns; the
notebook's gets its files unpacked already, only the first thousand of them, and does not stack them, which is what
takes the notebook most of its time.
"""

import argparse
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
from stages import parameters, preprocess

ARCHIVE = ROOT / "data/mnist_sample.tgz"
REPEATS = 5
FEW = 1000
# Prints the images a second of each run of PyTorch's loader, without and with worker processes.
TORCH = f"""
import sys, time
from pathlib import Path
import numpy, torch
from PIL import Image
class Images(torch.utils.data.Dataset):
    def __init__(self, folder): self.paths = sorted(Path(folder).glob("*/*/*.png"))
    def __len__(self): return len(self.paths)
    def __getitem__(self, i): return torch.from_numpy(numpy.array(Image.open(self.paths[i])))
loader = torch.utils.data.DataLoader(Images(sys.argv[1]), batch_size=256, num_workers=int(sys.argv[2]))
for _ in range({REPEATS}):
    start = time.perf_counter()
    count = sum(map(len, loader))
    print(count / (time.perf_counter() - start))
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has torch and Pillow")
    parser.add_argument("--write", action="store_true", help="write bench/decode.md too")
    arguments = parser.parse_args()
    data = parameters.load(parameters.Data)
    with tarfile.open(ARCHIVE) as tar, tempfile.TemporaryDirectory() as folder:
        tar.extractall(folder, filter="data")
        paths = sorted(Path(folder).glob("*/*/*/*.png"))
        contents = [path.read_bytes() for path in paths]

        def stage() -> int:
            return len(preprocess.read_images(str(ARCHIVE), data)[0])

        def bare() -> int:
            return len([np.asarray(Image.open(io.BytesIO(content), formats=["PNG"])) for content in contents])

        def unpacked() -> int:
            return len([np.asarray(Image.open(path)) for path in paths])

        def notebook() -> int:
            return len(jax.block_until_ready([jnp.array(Image.open(path)) for path in paths[:FEW]]))

        ways: dict[str, Callable[[], int]] = {
            "the stage: archive to arrays": stage,
            "Pillow and NumPy, from memory": bare,
            "Pillow and NumPy, from files": unpacked,
            "the notebook: jnp.array of each file": notebook,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(REPEATS):
            for name, read in ways.items():
                start = time.perf_counter()
                count = read()
                rates[name].append(count / (time.perf_counter() - start))
        if arguments.torch:
            for workers in (0, 2):
                command = [arguments.torch, "-c", TORCH, str(paths[0].parents[2]), str(workers)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rates[f"PyTorch's loader of files, {workers} workers"] = [float(line) for line in done.stdout.split()]
    base = statistics.median(rates["the notebook: jnp.array of each file"])
    cells = []
    for name, values in rates.items():
        median = statistics.median(values)
        cells.append([name, f"{median:.0f}", f"{min(values):.0f}–{max(values):.0f}", f"{median / base:.1f}"])
    lines = [f"Measured on {machine()}, by `python -m bench.decode`.", ""]
    lines += table(["", "images a second", "spread", "times the notebook"], cells)
    show("Decoding", lines, ROOT / "bench/decode.md" if arguments.write else None)


if __name__ == "__main__":
    main()
