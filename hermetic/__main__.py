"""Run stages and show which line of them used what dvc.yaml declares.

    python -m hermetic [TARGET …]

runs `dvc repro --force` and lists, for each stage, its deps and params with the first
line that used each one. What no line used, or what another line of dvc.yaml declares
already, makes the exit status 1. What only C code or other programs read is not seen.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable

from .guard import RECORD

NOT_USED = "not used by Python"


def tables(records: Iterable[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return, by stage and by what it declares, the first line that used that."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        table, declared = found[record["stage"]], record["declared"]
        table[declared] = table.get(declared) or record["line"]
    return found


def remarks(table: dict[str, str]) -> dict[str, str]:
    """Return what to say of each thing declared: the line, or what is wrong."""
    return {
        declared: next(
            (
                f"declared twice: it is in {other}"
                for other in table
                if declared.startswith(f"{other}/")
            ),
            line or NOT_USED,
        )
        for declared, line in table.items()
    }


def main() -> int:
    """Return the exit status of DVC, or else 1 if a declaration is too much."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as file:
        command = [sys.executable, "-m", "dvc", "repro", "--force", *sys.argv[1:]]
        done = subprocess.run(command, env={**os.environ, RECORD: file.name})
        found = tables(json.loads(line) for line in file)
    too_much = False
    for stage, table in sorted(found.items()):
        print(f"\n{stage}")
        width = max(map(len, table))
        for declared, remark in sorted(remarks(table).items()):
            print(f"  {declared:{width}}  {remark}")
            too_much |= remark == NOT_USED or remark.startswith("declared twice")
    return done.returncode or int(too_much)


if __name__ == "__main__":
    sys.exit(main())
