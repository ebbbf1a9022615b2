"""Time and peak memory of every stage as the images grow in number, in classes and in size.

Run it with `python -m bench.growth`: half an hour, and 5 GB of disk for a while. `--quick` leaves out the largest
case, `--write` puts the table into bench/growth.md and the picture into bench/growth.png. The images are the bundled
ones, shifted by up to two pixels by a seeded generator, enlarged, and dealt out to the classes in turns; each case
is a temporary archive that the stages are run on, in a temporary clone.
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
from matplotlib.figure import Figure
from PIL import Image

from bench.pipeline import ROOT, Bench
from bench.tables import machine, show, table
from bench.ten_digits import png

ARCHIVE = ROOT / "data/mnist_sample.tgz"
SEED = 0
STAGES = ("preprocess", "baseline", "train", "report")
MIB = 2**20
# A process begins with the peak of the one that starts it, so that has to be a small one.
LAUNCH = """
import os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawnp("python", ["python", "-m", sys.argv[1]], os.environ), 0)
print(f"[{time.perf_counter() - start}, {usage.ru_maxrss}]")
sys.exit(status != 0)
"""


class Case(NamedTuple):
    """How many copies of the bundled images, in how many classes, of how many pixels a side."""

    copies: int = 1
    classes: int = 2
    side: int = 28


CASES = [Case(), Case(10), Case(100), Case(classes=10), Case(classes=100), Case(side=64), Case(side=128)]


class Cost(NamedTuple):
    """What a stage took: seconds, and bytes of memory at its peak."""

    seconds: float
    peak: int


class Measured(NamedTuple):
    """A case, how many images and bytes of tensors it has, and what each stage took."""

    case: Case
    images: int
    tensors: int
    costs: dict[str, Cost]


def name(number: int, classes: int) -> str:
    """The folder of a class, of which the first are as the bundled ones."""
    return ["3", "7"][number] if classes == 2 else f"c{number:02}"


def grow(target: Path, case: Case) -> str:
    """Write the images of a case into an archive; its SHA-256."""
    generator = np.random.default_rng(SEED)
    with tarfile.open(ARCHIVE) as source, tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, member in enumerate(source):
            if (file := source.extractfile(member)) is None or not member.name.endswith(".png"):
                continue
            _, split, digit, stem = member.name.split("/")
            picture = Image.open(io.BytesIO(file.read())).resize((case.side, case.side))
            pixels = np.asarray(picture)
            for i in range(case.copies):
                half = case.classes // 2
                label = (number + i) % half + (half if digit == "7" else 0)
                shift = tuple(generator.integers(-2, 3, 2)) if i else (0, 0)
                path = f"{split}/{name(label, case.classes)}/{digit}_{stem.removesuffix('.png')}_{i}.png"
                copy = tarfile.TarInfo(path)
                copy.size = len(content := png(np.roll(pixels, shift, (0, 1))))
                tar.addfile(copy, io.BytesIO(content))
                tar.members = []  # type: ignore[attr-defined]  # of no use, and large
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(bench: Bench, stage: str) -> Cost:
    """Run a stage by itself."""
    done = subprocess.run(
        ["python", "-I", "-S", "-c", LAUNCH, f"stages.{stage}"],
        cwd=bench.clone, env=bench.variables, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{stage} failed: {done.stderr}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return Cost(seconds, peak * (1 if sys.platform == "darwin" else 1024))


def measure(bench: Bench, case: Case, archive: Path) -> Measured:
    """Run every stage on the images of a case."""
    bench.new_clone()
    values = {
        "url": str(archive),
        "sha256": grow(archive, case),
        "classes": str([name(i, case.classes) for i in range(case.classes)]).replace("'", '"'),
    }
    params = bench.clone / "params.yaml"
    text = params.read_text()
    for key, value in values.items():
        text = re.sub(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text)
    params.write_text(text)
    bench.run("-m", "stages.download", folder=bench.clone)
    archive.unlink()
    costs = {stage: run(bench, stage) for stage in STAGES}
    path = bench.clone / "data/tensors.npz"
    with np.load(path) as file:
        images = sum(len(file[f"{split}_labels"]) for split in ("train", "valid"))
    measured = Measured(case, images, path.stat().st_size, costs)
    shutil.rmtree(bench.clone)
    return measured


def rows(measured: list[Measured]) -> list[str]:
    """A table with a row for each case and stage."""
    cells = []
    for case, images, tensors, costs in measured:
        for stage, (seconds, peak) in costs.items():
            what = [f"{images:,}", str(case.classes), f"{case.side}²", f"{tensors / MIB:.0f}", stage]
            per_image = f"{seconds / images * 1e6:.0f}"
            cells.append([*what, f"{seconds:.2f}", per_image, f"{peak / MIB:.0f}", f"{peak / tensors:.1f}"])
    header = ["images", "classes", "pixels", "tensors (MiB)", "stage", "seconds", "µs an image", "peak (MiB)"]
    return table([*header, "peak / tensors"], cells)


def draw(measured: list[Measured], path: Path) -> None:
    """Draw seconds and peak memory of the stages over the bytes of the tensors."""
    figure = Figure((9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = {
        "images": ([m for m in measured if m.case[1:] == (2, 28)], "-o"),
        "pixels": ([m for m in measured if m.case[:2] == (1, 2)], "--s"),
    }
    for i, stage in enumerate(STAGES):
        for kind, (chosen, style) in kinds.items():
            sizes = [m.tensors / MIB for m in chosen]
            label = f"{stage}, more {kind}"
            left.loglog(sizes, [m.costs[stage].seconds for m in chosen], style, color=f"C{i}", label=label)
            right.loglog(sizes, [m.costs[stage].peak / MIB for m in chosen], style, color=f"C{i}")
    sizes = sorted(m.tensors / MIB for m in measured)
    right.loglog(sizes, sizes, ":", color="gray", label="the tensors")
    right.loglog(sizes, [3 * size for size in sizes], "-.", color="gray", label="three times the tensors")
    left.set(title="Time", ylabel="seconds", xlabel="tensors (MiB)")
    right.set(title="Memory", ylabel="peak (MiB)", xlabel="tensors (MiB)")
    left.legend(fontsize="x-small")
    right.legend(fontsize="x-small")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the largest case")
    parser.add_argument("--write", action="store_true", help="write bench/growth.md and bench/growth.png too")
    arguments = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        measure(bench, Case(), Path(folder).resolve() / "first.tar")  # compiles, and reads the libraries from disk
        for case in CASES:
            if not (arguments.quick and case.copies > 10):
                print(case, file=sys.stderr)
                measured.append(measure(bench, case, Path(folder).resolve() / "grown.tar"))
    lines = [f"Measured on {machine()}, by `python -m bench.growth{' --quick' if arguments.quick else ''}`.", ""]
    lines += rows(measured)
    lines += ["", "![Time and memory over the size of the tensors](growth.png)"]
    show("Growth", lines, ROOT / "bench/growth.md" if arguments.write else None)
    if arguments.write:
        draw(measured, ROOT / "bench/growth.png")


if __name__ == "__main__":
    main()
