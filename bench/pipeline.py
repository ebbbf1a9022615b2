"""Time the pipeline against the same lesson in plain scripts, and DVC alone.

Run `python -m bench.pipeline > bench/results.md`: about ten minutes, in temporary
clones of the last commit. Each round runs every case. Times are medians over the
rounds; ratios compare medians of the same run, since machines are noisy.
"""

import argparse
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.clone import STAGES, Clone
from bench.tables import heading, table
from tools.git import git

DVC = ("-m", "dvc", "repro")
NOTEBOOK, SKLEARN, TORCH = "the notebook's cells", "NumPy and scikit-learn", "PyTorch"
NEW = "dvc repro, from nothing, in a new environment"
AGAIN = "dvc repro, from nothing"
NO_OP = "dvc repro, nothing to do"
FLOOR, FLOOR_NO_OP = "five stages that copy a file", "those, nothing to do"
NO_OPS = 3
"""Runs per round of the cases with nothing to do."""
EDITS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("train", "learning_rate"): lambda rate: rate / 2,
    ("baseline", "distance"): lambda distance: "l1" if distance == "l2" else "l2",
    ("report", "mistakes"): lambda count: count + 1,
    ("data", "classes"): lambda classes: classes[::-1],
}
# Runs a stage like `python -m stages`, but without the guard.
UNGUARDED = """
import hermetic
hermetic.enforce = lambda *_, **__: None
from stages.__main__ import main
main()
"""


class Timings:
    """The seconds of each case, and the stages that DVC ran in it."""

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.ran: dict[str, str] = {}

    def measure(self, case: str, *arguments: str, **options: Any) -> None:
        """Run Python and add its time to a case."""
        seconds, output = self.clone.run(*arguments, **options)
        self.seconds[case].append(seconds)
        ran = re.findall(r"Running stage '(\w+)'", output)
        self.ran[case] = "all" if len(ran) == len(STAGES) else ", ".join(ran)

    def median(self, case: str) -> float:
        """Return the median seconds of a case."""
        return median(self.seconds[case])

    def ratio(self, case: str, other: str) -> str:
        """Format the time of a case as a multiple of another's."""
        return f"{self.median(case) / self.median(other):.2f}"


def copying_pipeline(folder: Path, clone: Clone) -> Path:
    """Make a pipeline of five stages that copy a small file, for DVC's own overhead."""
    shutil.rmtree(folder, ignore_errors=True)
    ignore = shutil.ignore_patterns("cache", "tmp")
    shutil.copytree(clone.folder / ".dvc", folder / ".dvc", ignore=ignore)
    stages = [
        f"  s{i}: {{cmd: cp {i} {i + 1}, deps: ['{i}'], outs: ['{i + 1}']}}\n"
        for i in range(len(STAGES))
    ]
    (folder / "dvc.yaml").write_text("stages:\n" + "".join(stages))
    (folder / "0").write_text("a small file\n")
    git("-C", str(folder), "init", "--quiet")
    return folder


def measure_round(timings: Timings, parent: Path, torch: str | None) -> None:
    """Measure every case once, and those with nothing to do several times."""
    clone, measure = timings.clone, timings.measure
    measure(NOTEBOOK, "-m", "bench.notebook")
    measure(SKLEARN, "-m", "bench.in_scikit_learn")
    if torch:
        measure(TORCH, "-m", "bench.in_torch", python=torch)
    shutil.rmtree(clone.environment / "cache", ignore_errors=True)
    for case in (NEW, AGAIN):
        clone.renew()
        measure(case, *DVC)
    floor = copying_pipeline(parent / "floor", clone)
    measure(FLOOR, *DVC, folder=floor)
    for _ in range(NO_OPS):
        measure(NO_OP, *DVC)
        measure(FLOOR_NO_OP, *DVC, folder=floor)
    for (section, key), change in EDITS.items():
        clone.edit(section, key, change)
        measure(f"dvc repro, edit of {key}", *DVC)
    for stage in STAGES:
        measure(f"{stage}, alone", "-m", "stages", stage)
        measure(f"{stage}, alone, unguarded", "-c", UNGUARDED, stage)


def report(timings: Timings) -> str:
    """Format the results as Markdown."""
    cases = [case for case in timings.seconds if ", alone" not in case]
    rows = []
    for case in cases:
        seconds = timings.seconds[case]
        spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
        times = [f"{timings.median(case):.2f}", spread]
        rows.append([case, str(len(seconds)), *times, timings.ran[case]])
    header = ["", "runs", "seconds", "spread", "stages that ran"]
    stage_rows = []
    for stage in STAGES:
        guarded, unguarded = f"{stage}, alone", f"{stage}, alone, unguarded"
        medians = [f"{timings.median(case):.2f}" for case in (guarded, unguarded)]
        stage_rows.append([stage, *medians, timings.ratio(guarded, unguarded)])
    alone = sum(timings.median(f"{stage}, alone") for stage in STAGES)
    return (
        f"{table(header, rows)}\n"
        "With nothing to do, dvc repro takes "
        f"{timings.ratio(NO_OP, FLOOR_NO_OP)} times as long as for five stages that "
        "copy a file.\nFrom nothing, it takes "
        f"{timings.ratio(AGAIN, SKLEARN)} times as long as NumPy and scikit-learn, and "
        f"{timings.median(AGAIN) / alone:.2f} times as long as the stages without "
        "DVC:\n\n"
        f"{table(['', 'seconds', 'without the guard', 'ratio'], stage_rows)}"
    )


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4, help="default: 4")
    parser.add_argument(
        "--torch",
        metavar="PYTHON",
        help="a Python that has torch, NumPy, Pillow and scikit-learn",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name).resolve()
        timings = Timings(Clone(parent))
        if arguments.torch:  # so that it has its bytecode, too
            timings.clone.run("-m", "bench.in_torch", python=arguments.torch)
        for _ in range(arguments.rounds):
            measure_round(timings, parent, arguments.torch)
    print(heading("Results", "pipeline"))
    print(report(timings))


if __name__ == "__main__":
    main()
