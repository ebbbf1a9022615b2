"""Run stages and list the first line that used each declared dep and param.

    python -m hermetic [TARGET …]

runs `dvc repro --force`. The exit status is 1 if anything is declared twice or unused.
Reads by C code or other programs are not seen.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict

from .hook import RECORD


def main() -> int:
    """Return DVC's exit status, or 1 if a dep or param is superfluous."""
    stages: dict[str, dict[str, str]] = defaultdict(dict)
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as file:
        command = [sys.executable, "-m", "dvc", "repro", "--force", *sys.argv[1:]]
        done = subprocess.run(command, env={**os.environ, RECORD: file.name})
        for entry in map(json.loads, file):
            lines = stages[entry["stage"]]
            lines[entry["declared"]] = lines.get(entry["declared"]) or entry["line"]
    superfluous = False
    for stage, lines in sorted(stages.items()):
        print(f"\n{stage}")
        width = max(map(len, lines))
        for declared, line in sorted(lines.items()):
            above = next((o for o in lines if declared.startswith(f"{o}/")), None)
            remark = f"declared twice: it is in {above}" if above else line
            print(f"  {declared:{width}}  {remark or 'not used by Python'}")
            superfluous |= bool(above) or not line
    return done.returncode or int(superfluous)


if __name__ == "__main__":
    sys.exit(main())
