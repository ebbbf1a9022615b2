"""Markdown tables, and the name of the machine that was measured."""

import os
import platform
import re
import subprocess
from pathlib import Path


def machine() -> str:
    """Name the processor, and how many cores it has."""
    if Path("/proc/cpuinfo").exists():
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    else:
        answer = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        )
        model = re.search("(.+)", answer.stdout)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores"


def count_cores(count: int) -> str:
    """Format a number of cores."""
    return f"{count} core{'s' if count > 1 else ''}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Format a Markdown table, one string per line.

    All columns but the first and the last are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    last = len(widths) - 1

    def line(cells: list[str]) -> str:
        padded = [
            cell.rjust(width) if 0 < i < last else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if 0 < i < last else "-" * width
        for i, width in enumerate(widths)
    ]
    return [line(header), line(rule), *map(line, rows)]


def show(title: str, lines: list[str], path: Path | None) -> None:
    """Print the lines; with a path, also write them there, below a title."""
    print("\n".join(lines))
    if path:
        path.write_text("\n".join([f"# {title}", "", *lines, ""]), "utf-8")
