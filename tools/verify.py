"""Rebuild this commit from scratch and compare its outputs with dvc.lock.

`make verify` runs it. On x86-64, the bytes must be identical. On other processors, the
last digits of floats may differ, so the values are compared to within 1e-5.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stages.plumbing import artifacts, parameters, runtime
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
        return _leaves(json.loads(path.read_text("utf-8")))
    if path.suffix == ".csv":
        found: list[float] = []
        with path.open(encoding="utf-8", newline="") as file:
            for cell in (cell for row in csv.reader(file) for cell in row):
                with suppress(ValueError):
                    found.append(float(cell))
        return found
    return None


def _leaves(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [value]


def compare(rebuilt: Path, own: Path) -> str:
    """Return how a rebuilt file differs from the one in the working tree."""
    if not own.exists():
        return "DIFFERENT BYTES (run dvc repro to compare the values)"
    ours, theirs = numbers(own), numbers(rebuilt)
    if ours is None or theirs is None:
        return "different bytes (a picture or a page: look at it)"
    if len(ours) == len(theirs) and np.allclose(
        ours, theirs, TOLERANCE, TOLERANCE, equal_nan=True
    ):
        return f"different bytes, same values to {TOLERANCE}"
    return "DIFFERENT VALUES"


def link_archive(root: Path, clone: Path) -> None:
    """Link a local archive that is not in Git into the clone; say so.

    data/archive, which a DVC remote has, serves as well: the rebuild checks the digest.
    Raises UserError if the working tree has neither.
    """
    with chdir(clone):
        url = parameters.load(parameters.Download).url
    if "://" in url or (clone / url).exists():
        return
    found = [name for name in (url, artifacts.ARCHIVE) if (root / name).is_file()]
    if not found:
        raise UserError(
            f"download.url: {url} is neither in Git nor here: copy it here, or run "
            f"dvc pull {artifacts.ARCHIVE} if there is a DVC remote"
        )
    target = Path(os.path.normpath(clone / url))
    if not target.is_relative_to(clone):
        raise UserError(
            f"download.url: {url} is outside of the repository: give an absolute path"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(root / found[0])
    print(f"{url} is not in Git: using {found[0]} of the working tree", flush=True)


def main() -> int:
    """Print a row per output; return 1 if any differs beyond the last digits."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
        link_archive(root, clone)
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
    print(f"{same} of {len(verdicts)} outputs have the bytes recorded in dvc.lock.")
    return int(any("DIFFERENT" in verdict for verdict in verdicts.values()))


if __name__ == "__main__":
    runtime.explain_errors("verify")
    sys.exit(main())
