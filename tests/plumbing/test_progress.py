"""Progress: on a terminal, after a second, and nowhere else."""

import os
import pty
import subprocess
import sys
import termios

from tests.conftest import ROOT, environment

SLOW = """
import sys, time
from stages.plumbing.progress import progress
assert sum(time.sleep(0.4) or i for i in progress(range(4), "count", "images", 4)) == 6
print("tqdm" in sys.modules)
"""


def run_slow(stderr: int) -> str:
    command = [sys.executable, "-c", SLOW]
    return subprocess.check_output(
        command, cwd=ROOT, env=environment(), stderr=stderr, text=True
    )


def test_progress_is_shown_on_a_terminal():
    terminal, end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    try:
        assert run_slow(end) == "True\n"
        shown = os.read(terminal, 10_000).decode()
    finally:
        os.close(terminal)
        os.close(end)
    assert [part for part in ("count: ", "3/4", "images/s") if part not in shown] == []


def test_nothing_is_shown_or_imported_for_a_file(tmp_path):
    with (tmp_path / "stderr").open("w+") as file:
        assert run_slow(file.fileno()) == "False\n"
        file.seek(0)
        assert file.read() == ""
