"""Measure time and peak memory as images grow in number, in classes and in size.

Run `python -m bench.growth`: half an hour, and 8 GB of disk for a while. `--quick`
leaves out the largest case; `--write` also writes bench/growth.md. The images are the
bundled ones, shifted by up to two pixels by a seeded generator, numbered in two pixels
so that no two are equal, enlarged, and dealt out to the classes in turns. A case is an
archive of them, on which the stages run in a temporary clone.

Anonymous memory is what the kernel cannot drop: RssAnon, added up over all processes of
a stage every 20 ms. A page that processes share after a fork counts for each of them,
so that the sum is an upper bound. Mapped pages are those of files, which the kernel may
drop. Without /proc (macOS) the peak is ru_maxrss, of both kinds.

On the largest case preprocess also runs on one core and on two, and every stage once
under a limit: RLIMIT_DATA bounds the private writable memory of a process, whether it
is touched or not. On one core a stage is one process, so that the limit holds for all.
"""

import argparse
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.pipeline import ROOT, Bench
from bench.tables import count_cores, machine, show, table
from tools.ten_digits import png

ARCHIVE = ROOT / "data/mnist_sample.tgz"
SEED = 0
STAGES = ("preprocess", "baseline", "train", "report")
MIB = 2**20
HAS_PROC = Path("/proc/self/status").exists()
INTERVAL = 0.02
"""Seconds between two looks at the memory of a stage."""
REPEATS = 3
"""How often to run preprocess on one core and on two."""
MANY_CORES = 16
"""How many to extrapolate to."""
LIMIT = 600 * MIB
"""Bytes."""


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


class Memory(NamedTuple):
    """Bytes of memory."""

    anonymous: int
    mapped: int


class Cost(NamedTuple):
    """What a stage took."""

    seconds: float
    peak: Memory


class Result(NamedTuple):
    """What the stages took on the images of a case."""

    case: Case
    images: int
    tensor_bytes: int
    costs: dict[str, Cost]


def class_name(number: int, classes: int) -> str:
    """Name the folder of a class; a pair keeps the names of the bundled one."""
    return ["3", "7"][number] if classes == 2 else f"c{number:02}"


def copies(image: tuple[int, str, bytes], case: Case) -> bytes:
    """Return the members of a tar that hold the copies of an image.

    The image is given as its number, the name of its member, and a PNG file.
    """
    number, source, content = image
    _, split, digit, name = source.split("/")
    pixels = np.asarray(Image.open(io.BytesIO(content)).resize((case.side, case.side)))
    generator = np.random.default_rng([SEED, number])
    half = case.classes // 2
    members = []
    for i, shift in enumerate(generator.integers(-2, 3, (case.copies, 2))):
        copy = pixels
        if i:
            copy = np.roll(pixels, shift, (0, 1))
            copy[0, :2] = divmod(i, 256)
        file = png(copy)
        label = (number + i) % half + (half if digit == "7" else 0)
        folder = f"{split}/{class_name(label, case.classes)}"
        member = tarfile.TarInfo(f"{folder}/{digit}_{Path(name).stem}_{i}.png")
        member.size = len(file)
        padding = bytes(-len(file) % tarfile.BLOCKSIZE)
        members += [member.tobuf(tarfile.USTAR_FORMAT), file, padding]
    return b"".join(members)


def grow(target: Path, case: Case) -> str:
    """Write the images of a case into a tar, and return its SHA-256."""
    with tarfile.open(ARCHIVE) as source:
        members = [member for member in source if member.name.endswith(".png")]
        images = [
            (number, member.name, file.read())
            for number, member in enumerate(members)
            if (file := source.extractfile(member))
        ]
    digest = hashlib.sha256()
    end = bytes(2 * tarfile.BLOCKSIZE)
    with multiprocessing.Pool() as pool, target.open("wb") as file:
        parts = pool.imap(partial(copies, case=case), images, 16)
        for part in itertools.chain(parts, [end]):
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    with suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from family(int(child))


def memory(pid: int) -> Memory:
    """Return the memory that a process and its descendants have now."""
    anonymous = mapped = 0
    for member in family(pid):
        with suppress(OSError):  # it has ended
            status = Path(f"/proc/{member}/status").read_text()
            sizes = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", status))
            anonymous += 1024 * int(sizes.get("RssAnon", 0))
            mapped += 1024 * sum(int(sizes.get(k, 0)) for k in ("RssFile", "RssShmem"))
    return Memory(anonymous, mapped)


def watch(pid: int) -> Memory:
    """Return the peaks of a process and its descendants, when it has ended."""
    handle = os.pidfd_open(pid)
    peak = Memory(0, 0)
    while not select.select([handle], [], [], INTERVAL)[0]:
        peak = Memory(*map(max, peak, memory(pid)))
    os.close(handle)
    return peak


def confine(cores: int | None, limit: int | None) -> None:
    """Restrict this process, and those it starts, to some cores and bytes of data."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def run(
    bench: Bench, stage: str, cores: int | None = None, limit: int | None = None
) -> Cost:
    """Run a stage in the clone; raise RuntimeError with its errors if it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [bench.environment / "bin/python", "-m", "stages", stage],
            cwd=bench.clone,
            env=bench.variables,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=partial(confine, cores, limit),
        )
        peak = watch(process.pid) if HAS_PROC else None
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(errors.read())
    return Cost(seconds, peak or Memory(usage.ru_maxrss, 0))


def measure(bench: Bench, case: Case, archive: Path) -> Result:
    """Run all stages on the images of a case, packed into a temporary `archive`.

    The clone remains.
    """
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
    return Result(case, images, path.stat().st_size, costs)


def results_table(results: list[Result]) -> list[str]:
    """Format a table with a row for every stage of every case."""
    rows = []
    for case, images, tensor_bytes, costs in results:
        size = [f"{images:,}", str(case.classes), f"{case.side}²"]
        size.append(f"{tensor_bytes / MIB:.0f}")
        for stage, (seconds, peak) in costs.items():
            times = [f"{seconds:.2f}", f"{seconds / images * 1e6:.0f}"]
            peaks = [f"{count / MIB:.0f}" if count else "" for count in peak]
            rows.append([*size, stage, *times, *peaks])
    header = [
        *("images", "classes", "pixels", "tensors (MiB)", "stage", "seconds"),
        "µs per image",
        "anonymous (MiB)" if HAS_PROC else "peak, by ru_maxrss (MiB)",
        "mapped (MiB)",
    ]
    return table(header, rows)


def compare_cores(bench: Bench, images: int) -> list[str]:
    """Run preprocess on one core and on two; extrapolate to many by Amdahl's law."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(REPEATS):
        for cores, runs in seconds.items():
            runs.append(run(bench, "preprocess", cores).seconds)
    one, two = (statistics.median(runs) for runs in seconds.values())
    serial = max(0.0, 2 * two - one)
    many = serial + (one - serial) / MANY_CORES
    rows = [
        [
            str(cores),
            f"{statistics.median(runs):.2f}",
            f"{min(runs):.2f}–{max(runs):.2f}",
        ]
        for cores, runs in seconds.items()
    ]
    rows.append([f"{MANY_CORES}, extrapolated", f"{many:.2f}", ""])
    for row, median in zip(rows, (one, two, many), strict=True):
        row.append(f"{images / median:,.0f}")
    return [
        f"preprocess on {images:,} images, the median of {REPEATS} runs:",
        "",
        *table(["cores", "seconds", "spread", "images per second"], rows),
        "",
        f"The row of {MANY_CORES} cores was not measured: it extrapolates by Amdahl's "
        f"law from {serial:.2f} serial",
        "seconds, twice the time on two cores less the time on one.",
    ]


def try_limit(bench: Bench, images: int) -> list[str]:
    """Run every stage under the limit, and say whether it ends well."""
    lines = [
        f"With {images:,} images and an RLIMIT_DATA of {LIMIT >> 20} MiB for each "
        "process:",
        "",
    ]
    for stage, cores in [*((stage, 1) for stage in STAGES), ("preprocess", 2)]:
        try:
            run(bench, stage, cores, LIMIT)
            ending = "runs"
        except RuntimeError as error:
            ending = "fails: " + str(error).strip().partition("\n")[0]
        lines.append(f"- {stage} on {count_cores(cores)}: {ending}")
    return lines


def main() -> None:
    """Measure, and print the tables."""
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
    cases = [case for case in CASES if not (arguments.quick and case.copies > 10)]
    results, notes = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        bench = Bench(folder)
        # A first run compiles, and reads the libraries from disk.
        measure(bench, Case(), folder / "first.tar")
        for case in cases:
            print(case, file=sys.stderr)
            result = measure(bench, case, folder / "grown.tar")
            results.append(result)
            if case.copies == max(case.copies for case in cases) and HAS_PROC:
                notes += ["", *compare_cores(bench, result.images)]
                notes += ["", *try_limit(bench, result.images)]
        shutil.rmtree(bench.clone)
    command = f"python -m bench.growth{' --quick' if arguments.quick else ''}"
    lines = [f"Measured on {machine()}, by `{command}`.", "", *results_table(results)]
    lines += notes
    show("Growth", lines, ROOT / "bench/growth.md" if arguments.write else None)


if __name__ == "__main__":
    main()
