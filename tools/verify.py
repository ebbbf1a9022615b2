"""Rebuild this commit from scratch and compare its outputs with dvc.lock.

`make verify` runs it. On x86-64, it fails if any byte differs. On other processors, the
last digits of floats may differ, so it fails if values differ by more than 1e-5.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stages import download
from stages.plumbing import parameters, runtime
from stages.plumbing.errors import UserError
from tools import git

TOLERANCE = 1e-5
SAME = "same bytes"


def outputs(lock: Path) -> dict[str, str]:
    """Return the MD5 of every output in a dvc.lock, by path; UserError if damaged."""
    try:
        stages = yaml.safe_load(lock.read_text("utf-8"))["stages"].values()
    except (FileNotFoundError, yaml.YAMLError) as error:
        reason = getattr(error, "problem", None) or "it is missing"
        raise UserError(
            f"dvc.lock of this commit cannot be read ({reason}): run dvc repro and "
            "commit it"
        ) from None
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
    if not rebuilt.exists():
        return "DIFFERENT: not rebuilt"
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


def is_rebuilt(verdicts: Collection[str], machine: str) -> bool:
    """Return whether the bytes are the same or, except on x86-64, the values."""
    if machine == "x86_64":
        return all(verdict == SAME for verdict in verdicts)
    return not any("DIFFERENT" in verdict for verdict in verdicts)


def link_archives(root: Path, clone: Path) -> None:
    """Link the local archives that are not in Git into the clone; say so.

    data/archive, which a DVC remote has, serves as well: the rebuild checks the digest.
    Raises UserError if the working tree has neither.
    """
    with chdir(clone):
        sources = download.sources(parameters.load(parameters.Download))
    for output, (url, _) in sources.items():
        if "://" not in url and not (clone / url).exists():
            _link_archive(root, clone, url, output)


def _link_archive(root: Path, clone: Path, url: str, output: str) -> None:
    with chdir(root):
        has_output = not Path(url).is_file() and Path(output).is_file()
        found = output if has_output else download.find_archive(url)
    target = Path(os.path.normpath(clone / url))
    if not target.is_relative_to(clone):
        raise UserError(
            f"download.url: {url} is outside of the repository: give an absolute path"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(root / str(found))
    print(f"{url} is not in Git: using {found} of the working tree", flush=True)


def main() -> int:
    """Print a row per output; return 1 unless `is_rebuilt`."""
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        clone = git.clone(Path(folder, "clone"))
        link_archives(root, clone)
        committed = outputs(clone / "dvc.lock")
        dvc = [sys.executable, "-m", "dvc"]
        # Not --quiet, which would hide DVC's errors, too.
        repro = [*dvc, "repro", "--force", "--no-run-cache"]
        if subprocess.run(repro, cwd=clone, stdout=subprocess.DEVNULL).returncode:
            raise UserError("the rebuild failed")
        rebuilt = outputs(clone / "dvc.lock")
        verdicts = {
            path: SAME
            if rebuilt.get(path) == committed.get(path)
            else compare(clone / path, root / path)
            for path in committed | rebuilt
        }
    for path, verdict in verdicts.items():
        print(f"{path:26} {committed.get(path, 'not in dvc.lock'):32}  {verdict}")
    same = sum(verdict == SAME for verdict in verdicts.values())
    print(f"{same} of {len(verdicts)} outputs have the bytes recorded in dvc.lock.")
    return int(not is_rebuilt(verdicts.values(), os.uname().machine))


if __name__ == "__main__":
    runtime.explain_errors("verify")
    sys.exit(main())
