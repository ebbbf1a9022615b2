"""Time and peak memory of preprocess and train as the images grow in number.

Run it with `python -m bench.growth [TIMES …]`, by default 1 and 10: for each it packs the bundled images, then that
many copies of each, shifted by up to two pixels by a seeded generator, into a temporary archive, and runs the stages
on a temporary clone.
"""

import hashlib
import io
import os
import re
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bench.pipeline import ROOT, Bench
from bench.ten_digits import png

ARCHIVE = ROOT / "data/mnist_sample.tgz"
SEED = 0
STAGES = ("preprocess", "baseline", "train")


def grow(target: Path, times: int) -> str:
    """Write `times` shifted copies of each image into an archive; its SHA-256."""
    generator = np.random.default_rng(SEED)
    with tarfile.open(ARCHIVE) as source, tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in source:
            if (file := source.extractfile(member)) is None or not member.name.endswith(".png"):
                continue
            pixels = np.asarray(Image.open(io.BytesIO(file.read())))
            for i in range(times):
                shift = tuple(generator.integers(-2, 3, 2)) if i else (0, 0)
                copy = tarfile.TarInfo(member.name.replace(".png", f"_{i}.png"))
                copy.size = len(content := png(np.roll(pixels, shift, (0, 1))))
                tar.addfile(copy, io.BytesIO(content))
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Print a row for each size and stage."""
    print(f"{'images':>9} {'tensors':>9} {'stage':12} {'seconds':>8} {'µs/image':>9} {'peak':>9}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        for times in map(int, sys.argv[1:] or ["1", "10"]):
            bench.new_clone()
            digest = grow(archive := Path(folder).resolve() / "grown.tar", times)
            params = bench.clone / "params.yaml"
            text = re.sub(r"(?m)^  url: .*$", f"  url: {archive}", params.read_text())
            params.write_text(re.sub(r"(?m)^  sha256: .*$", f"  sha256: {digest}", text))
            bench.run("-m", "stages.download", folder=bench.clone)
            for stage in STAGES:
                start = time.perf_counter()
                arguments = ["python", "-m", f"stages.{stage}"]
                process = os.posix_spawn(
                    "/bin/sh", ["sh", "-c", f"cd {bench.clone} && exec {' '.join(arguments)} >&2"], bench.variables
                )
                _, status, usage = os.wait4(process, 0)
                seconds = time.perf_counter() - start
                if status:
                    sys.exit(f"{stage} failed")
                with np.load(bench.clone / "data/tensors.npz") as file:
                    images = sum(len(file[f"{split}_labels"]) for split in ("train", "valid"))
                size = (bench.clone / "data/tensors.npz").stat().st_size
                peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                print(
                    f"{images:9} {size / 2**20:5.0f} MiB {stage:12} {seconds:8.2f} {seconds / images * 1e6:9.1f} "
                    f"{peak / 2**20:5.0f} MiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
