"""Measure time and peak memory as images grow in number, in classes and in size.

Run `python -m bench.growth`: half an hour, and 5 GB of disk for a while. `--quick`
leaves out the largest case; `--write` also writes bench/growth.md. The images are the
bundled ones, shifted by up to two pixels by a seeded generator, enlarged, and dealt out
to the classes in turns. A case is an archive of them, on which the stages run in a
temporary clone.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.pipeline import ROOT, Bench
from bench.tables import machine, show, table
from tools.ten_digits import png

ARCHIVE = ROOT / "data/mnist_sample.tgz"
SEED = 0
STAGES = ("preprocess", "baseline", "train", "report")
MIB = 2**20
# Linux counts the peak of the process that starts another as the other's, too: so let a
# small one start the stage.
LAUNCH = """
import os, sys, time
command = ["python", "-m", "stages", sys.argv[1]]
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawnp("python", command, os.environ), 0)
print(f"[{time.perf_counter() - start}, {usage.ru_maxrss}]")
sys.exit(status != 0)
"""


class Case(NamedTuple):
    """How the bundled images are multiplied."""

    copies: int = 1
    classes: int = 2
    side: int = 28
    """In pixels."""


CASES = [
    Case(),
    Case(copies=10),
    Case(copies=100),
    Case(classes=10),
    Case(classes=100),
    Case(side=64),
    Case(side=128),
]


class Cost(NamedTuple):
    """What a stage took."""

    seconds: float
    peak: int
    """Bytes of memory."""


class Result(NamedTuple):
    """What the stages took on the images of a case."""

    case: Case
    images: int
    tensor_bytes: int
    costs: dict[str, Cost]


def class_name(number: int, classes: int) -> str:
    """Name the folder of a class; a pair keeps the names of the bundled one."""
    return ["3", "7"][number] if classes == 2 else f"c{number:02}"


def grow(target: Path, case: Case) -> str:
    """Write the images of a case into an archive, and return its SHA-256."""
    generator = np.random.default_rng(SEED)
    half = case.classes // 2
    with (
        tarfile.open(ARCHIVE) as source,
        tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, member in enumerate(source):
            file = source.extractfile(member)
            if file is None or not member.name.endswith(".png"):
                continue
            _, split, digit, name = member.name.split("/")
            image = Image.open(io.BytesIO(file.read())).resize((case.side, case.side))
            pixels = np.asarray(image)
            for i in range(case.copies):
                label = (number + i) % half + (half if digit == "7" else 0)
                folder = f"{split}/{class_name(label, case.classes)}"
                shift = tuple(generator.integers(-2, 3, 2)) if i else (0, 0)
                content = png(np.roll(pixels, shift, (0, 1)))
                copy = tarfile.TarInfo(f"{folder}/{digit}_{Path(name).stem}_{i}.png")
                copy.size = len(content)
                tar.addfile(copy, io.BytesIO(content))
                tar.members = []  # type: ignore[attr-defined]  # unused, and large
    with target.open("rb") as archive:
        return hashlib.file_digest(archive, "sha256").hexdigest()


def run(bench: Bench, stage: str) -> Cost:
    """Run a stage in the clone."""
    done = subprocess.run(
        ["python", "-I", "-S", "-c", LAUNCH, stage],
        cwd=bench.clone,
        env=bench.variables,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{stage} failed: {done.stderr}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return Cost(seconds, peak * (1 if sys.platform == "darwin" else 1024))


def measure(bench: Bench, case: Case, archive: Path) -> Result:
    """Run all stages on the images of a case, packed into a temporary `archive`."""
    bench.new_clone()
    classes = [class_name(i, case.classes) for i in range(case.classes)]
    values = {
        "url": str(archive),
        "sha256": grow(archive, case),
        "classes": json.dumps(classes),
    }
    params = bench.clone / "params.yaml"
    text = params.read_text()
    for key, value in values.items():
        text = re.sub(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text)
    params.write_text(text)
    bench.run("-m", "stages", "download", folder=bench.clone)
    archive.unlink()
    costs = {stage: run(bench, stage) for stage in STAGES}
    path = bench.clone / "data/tensors.npz"
    with np.load(path) as file:
        images = sum(len(file[f"{split}_labels"]) for split in ("train", "valid"))
    result = Result(case, images, path.stat().st_size, costs)
    shutil.rmtree(bench.clone)
    return result


def results_table(results: list[Result]) -> list[str]:
    """Format a table with a row for every stage of every case."""
    rows = []
    for case, images, tensor_bytes, costs in results:
        size = [f"{images:,}", str(case.classes), f"{case.side}²"]
        size.append(f"{tensor_bytes / MIB:.0f}")
        for stage, (seconds, peak) in costs.items():
            times = [f"{seconds:.2f}", f"{seconds / images * 1e6:.0f}"]
            memory = [f"{peak / MIB:.0f}", f"{peak / tensor_bytes:.1f}"]
            rows.append([*size, stage, *times, *memory])
    header = [
        *("images", "classes", "pixels", "tensors (MiB)", "stage", "seconds"),
        *("µs per image", "peak (MiB)", "peak / tensors"),
    ]
    return table(header, rows)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out the largest case"
    )
    parser.add_argument(
        "--write", action="store_true", help="also write bench/growth.md"
    )
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        bench = Bench(folder)
        # A first run compiles, and reads the libraries from disk.
        measure(bench, Case(), folder / "first.tar")
        for case in CASES:
            if not (arguments.quick and case.copies > 10):
                print(case, file=sys.stderr)
                results.append(measure(bench, case, folder / "grown.tar"))
    command = f"python -m bench.growth{' --quick' if arguments.quick else ''}"
    lines = [f"Measured on {machine()}, by `{command}`.", "", *results_table(results)]
    show("Growth", lines, ROOT / "bench/growth.md" if arguments.write else None)


if __name__ == "__main__":
    main()
