"""How many images a second come out of the archive: the stage's way, the notebook's, and Pillow's alone.

Run it with `python -m bench.decode`, for some three minutes. Every way gets the images of the bundled archive, in
turns; the notebook's gets its files unpacked already, only the first thousand of them, and does not stack them, which
is what takes the notebook most of its time.
"""

import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from stages import parameters, preprocess

ARCHIVE = Path(__file__).parent.parent / "data/mnist_sample.tgz"
REPEATS = 5
FEW = 1000


def main() -> None:
    """Measure, and print a table."""
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
    base = statistics.median(rates["the notebook: jnp.array of each file"])
    print(f"{'':38}{'images/s':>10}{'spread':>16}{'notebook':>10}")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name:38}{median:10.0f}{f'{min(values):.0f}–{max(values):.0f}':>16}{median / base:9.1f}×")


if __name__ == "__main__":
    main()
