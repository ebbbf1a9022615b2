"""Time the pipeline against the notebook's cells and against DVC's own floor, and say where the seconds go.

Run it with `python -m bench.pipeline`: about a quarter of an hour, on temporary clones of the working tree with a
copy of its environment, so that nothing here is touched. `--quick` measures less often (five minutes), `--write`
puts what it prints into bench/results.md too. The time of a case is its median, and ratios are of medians of one run.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import yaml

from bench.tables import machine, show, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results.md"
NOTEBOOK, SKLEARN, TORCH = "the notebook's cells", "NumPy and scikit-learn", "PyTorch"
FLOOR, FLOOR_NO_OP = "floor: five stages that copy a file", "floor: nothing to do"
NEW, AGAIN, NO_OP = "from nothing, in a new environment", "from nothing", "nothing to do"
# Each edit takes the first of two values that is not the current one.
EDITS = {
    "learning_rate": ["0.07", "0.08"],
    "distance": ["l2", "l1"],
    "mistakes": ["11", "12"],
    "classes": ['["7", "3"]', '["3", "7"]'],
}
# The libraries of each stage, in the order in which a new process imports them; the rest counts as the stage's own.
LIBRARIES = {
    "download": ["msgspec", "numpy"],
    "preprocess": ["numpy", "PIL.Image", "msgspec", "tqdm"],
    "baseline": ["numpy", "jax", "msgspec"],
    "train": ["numpy", "jax", "optax", "msgspec"],
    "report": ["numpy", "jinja2", "matplotlib.figure", "msgspec"],
}
# A stage in a process of its own, with the time of each part of it; argv: stage, whether to guard it, libraries.
PROBE = """
import os, sys, time
start = time.perf_counter()
_, stage, how, *libraries = sys.argv
sys.argv[0], sys.path[0] = "bench", os.getcwd()
import importlib, json
times = {}
def timed(name, function, *arguments):
    before = time.perf_counter()
    result = function(*arguments)
    times[name] = time.perf_counter() - before
    return result
timed("the guard's imports", importlib.import_module, "stages.running")
from stages import hermetic, running
hooked = [0, 0.0]
if how == "unguarded":
    hermetic.enforce = lambda **_: None
elif how == "counted":
    call = hermetic.Guard.__call__
    def counted(*arguments):
        before = time.perf_counter()
        try:
            call(*arguments)
        finally:
            hooked[0] += 1
            hooked[1] += time.perf_counter() - before
    hermetic.Guard.__call__ = counted
timed("the guard's start", running.start)
for library in libraries:
    timed(library, importlib.import_module, library)
timed("own modules", lambda: timed("work", importlib.import_module("stages." + stage).main))
times["own modules"] -= times["work"]
times["inside"] = time.perf_counter() - start
print(json.dumps(times | {"events": hooked[0], "hook": hooked[1]}))
"""


def link(source: str, target: str) -> None:
    """A second name for a file, or a copy where the two folders are on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Bench:
    """A folder with an environment, a clone and a pipeline that only copies, and what was measured with them."""

    def __init__(self, folder: Path) -> None:
        self.environment, self.clone, self.floor = folder / "env", folder / "clone", folder / "floor"
        self.original = folder / "original"
        self.cache = self.environment / "cache"
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.processor: dict[str, list[float]] = defaultdict(list)
        self.ran: dict[str, str] = {}
        shutil.copytree(
            sys.prefix,
            self.environment,
            symlinks=True,
            copy_function=link,
            ignore=lambda path, _: ["cache"] if path == sys.prefix else [],
        )
        dropped = ("DVC_", "OPENBLAS_", "PYTHON", "VIRTUAL_ENV")
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(dropped)},
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
        }

        listing = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for name in listing.splitlines():
            if (ROOT / name).is_file():  # Git lists what is deleted, too
                (self.original / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.original / name)

    def run(self, *arguments: str, folder: Path, python: str = "") -> tuple[float, float, str]:
        """Wall and processor seconds of a Python process, and what it printed; ends the benchmark if it fails."""
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [python or str(self.environment / "bin/python"), *arguments],
            cwd=folder,
            env=self.variables,
            text=True,
            capture_output=True,
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{arguments} failed:\n{done.stdout}{done.stderr}")
        return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout

    def measure(self, case: str, folder: Path, *arguments: str, python: str = "") -> None:
        """Add the seconds of a Python process, and those of a processor, to a case's."""
        seconds, processor, output = self.run(*(arguments or ("-m", "dvc", "repro")), folder=folder, python=python)
        self.seconds[case].append(seconds)
        self.processor[case].append(processor)
        print(f"{case}: {seconds:.2f} s", file=sys.stderr)
        ran = re.findall(r"Running stage '(\w+)'", output)
        self.ran[case] = "all" if len(ran) == 5 else ", ".join(ran) or "–"

    def new_clone(self) -> None:
        """A repository of the working tree as it was at the start, without outputs or caches."""
        shutil.rmtree(self.clone, ignore_errors=True)
        shutil.copytree(self.original, self.clone)
        subprocess.run(["git", "init", "--quiet"], cwd=self.clone, check=True)

    def new_floor(self) -> None:
        """A pipeline of five stages that copy a small file."""
        shutil.rmtree(self.floor, ignore_errors=True)
        shutil.copytree(self.clone / ".dvc", self.floor / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        stages = [f"  s{i}: {{cmd: cp {i} {i + 1}, deps: ['{i}'], outs: ['{i + 1}']}}\n" for i in range(5)]
        (self.floor / "dvc.yaml").write_text("stages:\n" + "".join(stages))
        (self.floor / "0").write_text("a small file\n")
        subprocess.run(["git", "init", "--quiet"], cwd=self.floor, check=True)

    def edit(self, key: str, values: list[str]) -> None:
        """Give a parameter a new value."""
        params = self.clone / "params.yaml"
        text = params.read_text()
        edits = (re.sub(rf"(?m)^  {key}: [^#\n]*", f"  {key}: {value} ", text) for value in values)
        params.write_text(next(edited for edited in edits if yaml.safe_load(edited) != yaml.safe_load(text)))

    def round(self, idle: int) -> None:
        """Measure every case but the notebook once, the idle ones several times."""
        shutil.rmtree(self.cache, ignore_errors=True)
        for case in (NEW, AGAIN):
            self.new_clone()
            self.measure(case, self.clone)
        self.new_floor()
        self.measure(FLOOR, self.floor)
        for _ in range(idle):
            self.measure(NO_OP, self.clone)
            self.measure(FLOOR_NO_OP, self.floor)
        for key, values in EDITS.items():
            self.edit(key, values)
            self.measure(f"edit of {key}", self.clone)

    def median(self, case: str) -> float:
        """The median seconds of a case."""
        return statistics.median(self.seconds[case])

    def probe(self, repeats: int) -> dict[str, dict[str, float]]:
        """For each stage the medians of its parts, and the least that the guard costs it, in seconds.

        The guard does the same in each run: what is more than the least is other processes' doing.
        """
        self.new_clone()
        self.run("-m", "dvc", "repro", folder=self.clone)
        stages: dict[str, dict[str, float]] = {}
        for stage, libraries in LIBRARIES.items():
            self.variables["DVC_STAGE"] = f"dvc.yaml:{stage}"
            parts: dict[str, list[float]] = defaultdict(list)
            for _ in range(repeats):
                wall, guarded, output = self.run("-c", PROBE, stage, "guarded", *libraries, folder=self.clone)
                times = json.loads(output.splitlines()[-1])
                _, unguarded, _ = self.run("-c", PROBE, stage, "unguarded", *libraries, folder=self.clone)
                *_, counted = self.run("-c", PROBE, stage, "counted", *libraries, folder=self.clone)
                inside = json.loads(counted.splitlines()[-1])
                times |= {"wall": wall, "Python": wall - times["inside"], "guarded": guarded, "unguarded": unguarded}
                times |= {"events": inside["events"], "hook": inside["hook"], "start": inside["the guard's start"]}
                for name, value in times.items():
                    parts[name].append(value)
            least = ("guarded", "unguarded", "events", "hook", "start")
            stages[stage] = {
                name: min(values) if name in least else statistics.median(values) for name, values in parts.items()
            }
        del self.variables["DVC_STAGE"]
        return stages


def cases_table(bench: Bench) -> list[str]:
    """A row for each case: its median, spread and ratio to the notebook, and the stages that ran."""
    edits = [f"edit of {key}" for key in EDITS]
    rows = []
    for case in [NOTEBOOK, SKLEARN, TORCH, NEW, AGAIN, *edits, NO_OP, FLOOR, FLOOR_NO_OP]:
        if not (times := bench.seconds[case]):
            continue
        ratio = f"{bench.median(NOTEBOOK) / bench.median(case):.1f}"
        spread = f"{min(times):.2f}–{max(times):.2f}"
        name = case if case.startswith(("floor", NOTEBOOK, SKLEARN, TORCH)) else f"dvc repro, {case}"
        processor = f"{statistics.median(bench.processor[case]):.2f}"
        rows.append([name, str(len(times)), f"{bench.median(case):.2f}", spread, processor, ratio, bench.ran[case]])
    return table(["", "runs", "seconds", "spread", "of a processor", "notebook / this", "stages that ran"], rows)


def parts_table(stages: dict[str, dict[str, float]], whole: float) -> list[str]:
    """A row for each part of a stage's process, and DVC's own share of a run from nothing, in seconds."""
    names = ["Python", "the guard's imports", "the guard's start"]
    names += dict.fromkeys(library for libraries in LIBRARIES.values() for library in libraries)
    rows = []
    for name in [*names, "own modules", "work", "wall"]:
        values = [parts.get(name, 0.0) for parts in stages.values()]
        cells = [f"{value:.3f}" if value else "" for value in values]
        labels = {"Python": "Python starts and ends", "wall": "the whole process"}
        rows.append([labels.get(name, name), *cells, f"{sum(values):.2f}"])
    rest = whole - sum(parts["wall"] for parts in stages.values())
    rows.append(["DVC itself", *[""] * len(stages), f"{rest:.2f}"])
    return table(["", *stages, "sum"], rows)


def guard_table(stages: dict[str, dict[str, float]]) -> list[str]:
    """A row for each stage: what the guard costs it, in milliseconds."""
    rows = []
    for stage, parts in stages.items():
        start, hook, guarded, unguarded = (parts[name] * 1000 for name in ("start", "hook", "guarded", "unguarded"))
        cells = [f"{start:.1f}", f"{hook:.1f}", f"{start + hook:.1f}", f"{guarded:.0f}", f"{unguarded:.0f}"]
        rows.append([stage, f"{parts['events']:.0f}", *cells, f"{guarded - unguarded:+.0f}"])
    titles = ["start (ms)", "in the hook (ms)", "both (ms)", "processor time (ms)", "without (ms)", "more"]
    return table(["", "events", *titles], rows)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure less often")
    parser.add_argument("--write", action="store_true", help="write bench/results.md too")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has torch, NumPy, Pillow and scikit-learn")
    arguments = parser.parse_args()
    notebooks, rounds, idle, probes = (1, 2, 2, 3) if arguments.quick else (3, 4, 3, 5)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        for i in range(rounds):
            print(f"round {i + 1} of {rounds}", file=sys.stderr)
            bench.round(idle)
            bench.measure(SKLEARN, bench.clone, "-m", "bench.in_scikit_learn")
            if arguments.torch:
                bench.measure(TORCH, bench.clone, "-m", "bench.in_torch", python=arguments.torch)
            if i < notebooks:
                bench.measure(NOTEBOOK, bench.clone, "-m", "bench.notebook")
        stages = bench.probe(probes)
    overhead = bench.median(NO_OP) / bench.median(FLOOR_NO_OP)
    lines = [
        f"Measured on {machine()}, by `python -m bench.pipeline{' --quick' if arguments.quick else ''}`.",
        "",
        *cases_table(bench),
        "",
        f"Nothing to do takes {overhead:.2f} times what five idle stages take.",
        "",
        "Where the seconds of a run from nothing go:",
        "",
        *parts_table(stages, bench.median(AGAIN)),
        "",
        "What the guard costs:",
        "",
        *guard_table(stages),
    ]
    show("Results", lines, RESULTS if arguments.write else None)


if __name__ == "__main__":
    main()
