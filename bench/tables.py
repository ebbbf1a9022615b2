"""What the benchmarks print and write: tables in Markdown, and the machine that they are of."""

import os
import platform
import re
import subprocess
from pathlib import Path


def machine() -> str:
    """The processor's model and the number of its cores."""
    if Path("/proc/cpuinfo").exists():
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    else:
        answer = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        model = re.search("(.+)", answer.stdout)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown, its columns aligned; all but the first and the last to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * (w - (0 < i < len(widths) - 1)) + ":" * (0 < i < len(widths) - 1) for i, w in enumerate(widths)]

    def line(cells: list[str]) -> str:
        last = len(cells) - 1
        padded = [
            c.rjust(w) if 0 < i < last else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    return [line(header), line(rule), *map(line, rows)]


def show(title: str, lines: list[str], path: Path | None) -> None:
    """Print lines; write them into a file, below a title, if one is given."""
    print("\n".join(lines))
    if path:
        path.write_text("\n".join([f"# {title}", "", *lines, ""]), "utf-8")
