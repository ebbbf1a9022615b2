"""Rebuild this commit from nothing and compare what comes out with dvc.lock: `make verify`.

The bytes have to be the same on x86-64. Elsewhere the last digits of floating-point numbers may differ, so
where bytes differ the values are compared, to 1e-5.
"""

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TOLERANCE = 1e-5


def outputs(lock: Path) -> dict[str, str]:
    """The MD5 of each output that a dvc.lock holds, by path."""
    stages = yaml.safe_load(lock.read_text("utf-8"))["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def numbers(path: Path) -> list[float] | None:
    """The numbers in an npz, JSON or CSV file, in order; None for other files."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return [x for name in file.files if file[name].dtype.kind in "uif" for x in file[name].ravel().tolist()]
    if path.suffix == ".json":
        return list(_leaves(json.loads(path.read_text("utf-8"))))
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [float(x) for row in csv.reader(file) for x in row if x.replace(".", "").replace("-", "").isdigit()]
    return None


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    else:
        yield value


def verdict(built: Path, own: Path) -> str:
    """How a built file whose bytes differ compares with the one of the working tree, if that is there."""
    if not own.exists():
        return "DIFFERENT BYTES (nothing here to compare the values with: run dvc repro)"
    mine, theirs = numbers(own), numbers(built)
    if mine is None or theirs is None:
        return "different bytes (a picture or a page: look at it)"
    close = len(mine) == len(theirs) and np.allclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    return f"different bytes, same values to {TOLERANCE}" if close else "DIFFERENT VALUES"


def main() -> int:
    """Print a table, one row an output; 0 if nothing differs by more than its last digits."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
        committed = outputs(clone / "dvc.lock")
        repro = [sys.executable, "-m", "dvc", "repro", "--quiet", "--force", "--no-run-cache"]
        if subprocess.run(repro, cwd=clone, check=False, stdout=subprocess.DEVNULL).returncode:
            print("the rebuild failed", file=sys.stderr)
            return 1
        rebuilt = outputs(clone / "dvc.lock")
        verdicts = {
            path: "same bytes" if rebuilt.get(path) == md5 else verdict(clone / path, root / path)
            for path, md5 in committed.items()
        }
    for path, text in verdicts.items():
        print(f"{path:26} {committed[path]}  {text}")
    same = sum(text == "same bytes" for text in verdicts.values())
    print(f"{same} of {len(verdicts)} outputs have the bytes that dvc.lock names.")
    return int(any("DIFFERENT" in text for text in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
