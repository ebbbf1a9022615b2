"""Format results as Markdown."""

import os
import platform
import re
from pathlib import Path

from bench.clone import ROOT
from tools.git import git


def heading(title: str, name: str) -> str:
    """Return a title, and the machine, commit and benchmark of the measurements."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    processor = model[1] if model else platform.machine()
    commit = git("-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return (
        f"# {title}\n\nMeasured on {processor}, {os.cpu_count()} cores, at commit "
        f"{commit}, by `python -m bench.{name}`.\n"
        "All modules were compiled to bytecode before the runs.\n"
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table; all columns but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(n) for cell, n in rest)]
        return f"| {' | '.join(padded)} |\n"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(map(line, [header, rule, *rows]))
