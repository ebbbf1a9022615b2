"""Rebuild this commit from scratch and compare its outputs with dvc.lock.

`make verify` runs it. On x86-64 the bytes have to be the same. Elsewhere the last
digits of floating-point numbers may differ: there the values are compared, to 1e-5.
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

from stages.plumbing import runtime
from stages.plumbing.errors import UserError

TOLERANCE = 1e-5


def outputs(lock: Path) -> dict[str, str]:
    """Return the MD5 of every output in a dvc.lock, by path."""
    stages = yaml.safe_load(lock.read_text("utf-8"))["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def numbers(path: Path) -> list[float] | None:
    """Read the numbers of an npz, JSON or CSV file in order; None for other files."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = [file[name] for name in file.files]
        return [x for a in arrays if a.dtype.kind in "uif" for x in a.ravel().tolist()]
    if path.suffix == ".json":
        return list(_leaves(json.loads(path.read_text("utf-8"))))
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        return [float(cell) for cell in cells if _is_number(cell)]
    return None


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _is_number(cell: str) -> bool:
    return cell.replace(".", "").replace("-", "").isdigit()


def compare(rebuilt: Path, own: Path) -> str:
    """Compare a rebuilt file of other bytes with the one in the working tree."""
    if not own.exists():
        return "DIFFERENT BYTES (run dvc repro to compare the values)"
    ours, theirs = numbers(own), numbers(rebuilt)
    if ours is None or theirs is None:
        return "different bytes (a picture or a page: look at it)"
    if len(ours) != len(theirs) or not np.allclose(ours, theirs, TOLERANCE, TOLERANCE):
        return "DIFFERENT VALUES"
    return f"different bytes, same values to {TOLERANCE}"


def main() -> int:
    """Print a row per output; return 1 if any differs by more than its last digits."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
        committed = outputs(clone / "dvc.lock")
        dvc = [sys.executable, "-m", "dvc"]
        repro = [*dvc, "repro", "--quiet", "--force", "--no-run-cache"]
        if subprocess.run(repro, cwd=clone, stdout=subprocess.DEVNULL).returncode:
            raise UserError("the rebuild failed")
        rebuilt = outputs(clone / "dvc.lock")
        verdicts = {
            path: "same bytes"
            if rebuilt.get(path) == md5
            else compare(clone / path, root / path)
            for path, md5 in committed.items()
        }
    for path, verdict in verdicts.items():
        print(f"{path:26} {committed[path]}  {verdict}")
    same = sum(verdict == "same bytes" for verdict in verdicts.values())
    print(f"{same} of {len(verdicts)} outputs have the bytes that dvc.lock names.")
    return int(any("DIFFERENT" in verdict for verdict in verdicts.values()))


if __name__ == "__main__":
    runtime.explain_errors("verify")
    sys.exit(main())
