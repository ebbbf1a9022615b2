"""Time the pipeline against the notebook and DVC's own floor; show where time goes.

Run `python -m bench.pipeline`: about a quarter of an hour, in temporary clones of the
working tree with a copy of its environment, so that nothing here is touched. `--quick`
measures less often (five minutes); `--write` also writes bench/results.md. The time of
a case is its median, and ratios are of medians from the same run.
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
from typing import NamedTuple

import yaml

from bench.tables import machine, show, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results.md"
NOTEBOOK, SKLEARN, TORCH = "the notebook's cells", "NumPy and scikit-learn", "PyTorch"
FLOOR, FLOOR_NO_OP = "floor: five stages that copy a file", "floor: nothing to do"
NEW = "dvc repro, from nothing, in a new environment"
AGAIN = "dvc repro, from nothing"
NO_OP = "dvc repro, nothing to do"
# An edit takes the first of two values that is not the current one.
EDITS = {
    "learning_rate": ["0.07", "0.08"],
    "distance": ["l2", "l1"],
    "mistakes": ["11", "12"],
    "classes": ['["7", "3"]', '["3", "7"]'],
}
# The libraries of a stage, in the order in which it imports them, but NumPy before JAX:
# what a library imports counts as its own, unless it stands before it.
LIBRARIES = {
    "download": ["msgspec"],
    "preprocess": ["numpy", "PIL.Image", "msgspec"],
    "baseline": ["numpy", "jax", "msgspec"],
    "train": ["numpy", "jax", "optax", "msgspec"],
    "report": ["numpy", "PIL.Image", "jinja2", "msgspec"],
}
PYTHON, GUARD_IMPORTS = "Python starts and ends", "the guard's imports"
GUARD_START, OWN_MODULES = "the guard's start", "own modules, standard library"
WORK, PROCESS = "work", "the whole process"
# Wraps the guard's hook in the probe below.
COUNTED = """
def counted(hook):
    def call(*arguments):
        global events, hook_seconds
        before = time.perf_counter()
        try:
            hook(*arguments)
        finally:
            events += 1
            hook_seconds += time.perf_counter() - before

    return call
"""
# Runs a stage and prints how long its parts take. Arguments: the stage, whether it is
# guarded, unguarded or counted, and its libraries. It is passed to `python -c`, since
# the guard would refuse a module that the stage does not declare.
PROBE = f"""
import sys, time
start = time.perf_counter()
import importlib, json
stage, variant, *libraries = sys.argv[1:]
times, events, hook_seconds = {{}}, 0, 0.0

def timed(part, function, *arguments):
    before = time.perf_counter()
    result = function(*arguments)
    times[part] = time.perf_counter() - before
    return result

timed({GUARD_IMPORTS!r}, importlib.import_module, "stages.plumbing.runtime")
import hermetic
from stages.plumbing import runtime
if variant == "unguarded":
    hermetic.enforce = lambda *_, **__: None
elif variant == "counted":
    # As a frame of the guard, which looks at who calls it.
    exec(compile({COUNTED!r}, hermetic.__file__, "exec"))
    sys.addaudithook = lambda hook, add=sys.addaudithook: add(counted(hook))
timed({GUARD_START!r}, runtime.start, stage)
if variant != "counted":
    for library in libraries:
        timed(library, importlib.import_module, library)
module = timed({OWN_MODULES!r}, importlib.import_module, f"stages.{{stage}}")
timed({WORK!r}, module.main)
times["inside"] = time.perf_counter() - start
if missing := set(libraries) - set(sys.modules):
    sys.exit(f"LIBRARIES: {{stage}} does not import {{missing}}")
print(json.dumps(times | {{"events": events, "hook": hook_seconds}}))
"""


def link(source: str, target: str) -> None:
    """Link a file, or copy it if the two folders are on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Finished(NamedTuple):
    """A process that has ended."""

    seconds: float
    """On the clock."""
    processor: float
    """Seconds on a processor, of all its threads and children."""
    output: str


class Bench:
    """A copied environment, a clone, a pipeline that only copies, and their times."""

    def __init__(self, folder: Path) -> None:
        self.environment = folder / "env"
        self.original, self.clone = folder / "original", folder / "clone"
        self.floor = folder / "floor"
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.processor: dict[str, list[float]] = defaultdict(list)
        self.ran: dict[str, str] = {}
        """The stages that ran, by case."""
        shutil.copytree(
            sys.prefix,
            self.environment,
            symlinks=True,
            copy_function=link,
            ignore=lambda path, _: ["cache"] if path == sys.prefix else [],
        )
        dropped = ("DVC_", "OPENBLAS_", "PYTHON", "VIRTUAL_ENV")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        self.variables = {
            **kept,
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
        }
        listing = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in listing.splitlines():
            if (ROOT / name).is_file():  # Git also lists what is deleted
                (self.original / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.original / name)

    def run(self, *arguments: str, folder: Path, python: str = "") -> Finished:
        """Run a Python process; end the benchmark if it fails."""
        start, before = time.perf_counter(), processor_seconds()
        done = subprocess.run(
            [python or str(self.environment / "bin/python"), *arguments],
            cwd=folder,
            env=self.variables,
            text=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{arguments} failed:\n{done.stdout}{done.stderr}")
        return Finished(seconds, processor_seconds() - before, done.stdout)

    def measure(
        self, case: str, folder: Path, *arguments: str, python: str = ""
    ) -> None:
        """Run a Python process, by default dvc repro, and add its times to a case."""
        arguments = arguments or ("-m", "dvc", "repro")
        finished = self.run(*arguments, folder=folder, python=python)
        self.seconds[case].append(finished.seconds)
        self.processor[case].append(finished.processor)
        print(f"{case}: {finished.seconds:.2f} s", file=sys.stderr)
        ran = re.findall(r"Running stage '(\w+)'", finished.output)
        self.ran[case] = "all" if len(ran) == 5 else ", ".join(ran) or "–"

    def median(self, case: str) -> float:
        """Return the median seconds of a case."""
        return statistics.median(self.seconds[case])

    def new_clone(self) -> None:
        """Make a repository of the working tree, without outputs or caches."""
        shutil.rmtree(self.clone, ignore_errors=True)
        shutil.copytree(self.original, self.clone)
        subprocess.run(["git", "init", "--quiet"], cwd=self.clone, check=True)

    def new_floor(self) -> None:
        """Make a pipeline of five stages that copy a small file."""
        shutil.rmtree(self.floor, ignore_errors=True)
        ignore = shutil.ignore_patterns("cache", "tmp")
        shutil.copytree(self.clone / ".dvc", self.floor / ".dvc", ignore=ignore)
        stages = [
            f"  s{i}: {{cmd: cp {i} {i + 1}, deps: ['{i}'], outs: ['{i + 1}']}}\n"
            for i in range(5)
        ]
        (self.floor / "dvc.yaml").write_text("stages:\n" + "".join(stages))
        (self.floor / "0").write_text("a small file\n")
        subprocess.run(["git", "init", "--quiet"], cwd=self.floor, check=True)

    def edit(self, key: str, values: list[str]) -> None:
        """Set a parameter to the first of these values that it does not have yet."""
        params = self.clone / "params.yaml"
        text = params.read_text()
        for value in values:
            edited = re.sub(rf"(?m)^  {key}: [^#\n]*", f"  {key}: {value} ", text)
            if yaml.safe_load(edited) != yaml.safe_load(text):
                params.write_text(edited)
                return
        sys.exit(f"params.yaml: {key} cannot be edited")

    def round(self, no_ops: int) -> None:
        """Measure all cases of DVC once, and those with nothing to do several times."""
        shutil.rmtree(self.environment / "cache", ignore_errors=True)
        for case in (NEW, AGAIN):
            self.new_clone()
            self.measure(case, self.clone)
        self.new_floor()
        self.measure(FLOOR, self.floor)
        for _ in range(no_ops):
            self.measure(NO_OP, self.clone)
            self.measure(FLOOR_NO_OP, self.floor)
        for key, values in EDITS.items():
            self.edit(key, values)
            self.measure(edit_case(key), self.clone)

    def probe(self, repeats: int) -> dict[str, dict[str, float]]:
        """Return, by stage, the seconds of its parts and what the guard costs it.

        Parts are medians. The guard's costs are minima: the guard does the same in
        every run, so that what is more comes from other processes.
        """
        self.new_clone()
        self.run("-m", "dvc", "repro", folder=self.clone)
        stages: dict[str, dict[str, float]] = {}
        for stage, libraries in LIBRARIES.items():
            samples: dict[str, list[float]] = defaultdict(list)
            for _ in range(repeats):
                for name, value in self._probe_once(stage, libraries).items():
                    samples[name].append(value)
            minima = ("guarded", "unguarded", "events", "hook", "start")
            stages[stage] = {
                name: min(values) if name in minima else statistics.median(values)
                for name, values in samples.items()
            }
        return stages

    def _probe_once(self, stage: str, libraries: list[str]) -> dict[str, float]:
        guarded, unguarded, counted = (
            self.run("-c", PROBE, stage, variant, *libraries, folder=self.clone)
            for variant in ("guarded", "unguarded", "counted")
        )
        times = json.loads(guarded.output.splitlines()[-1])
        counts = json.loads(counted.output.splitlines()[-1])
        return times | {
            PROCESS: guarded.seconds,
            PYTHON: guarded.seconds - times["inside"],
            "guarded": guarded.processor,
            "unguarded": unguarded.processor,
            "events": counts["events"],
            "hook": counts["hook"],
            "start": counts[GUARD_START],
        }


def processor_seconds() -> float:
    """Return the processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def edit_case(key: str) -> str:
    """Name the case in which a parameter is edited."""
    return f"dvc repro, edit of {key}"


def cases_table(bench: Bench) -> list[str]:
    """Format a table with a row for every case that was measured."""
    edits = [edit_case(key) for key in EDITS]
    others = [NOTEBOOK, SKLEARN, TORCH]
    rows = []
    for case in [*others, NEW, AGAIN, *edits, NO_OP, FLOOR, FLOOR_NO_OP]:
        if not (seconds := bench.seconds[case]):
            continue
        median = bench.median(case)
        times = [f"{median:.2f}", f"{min(seconds):.2f}–{max(seconds):.2f}"]
        processor = f"{statistics.median(bench.processor[case]):.2f}"
        ratio = f"{bench.median(NOTEBOOK) / median:.1f}"
        rows.append(
            [case, str(len(seconds)), *times, processor, ratio, bench.ran[case]]
        )
    header = [
        *("", "runs", "seconds", "spread", "processor seconds", "notebook / this"),
        "stages that ran",
    ]
    return table(header, rows)


def parts_table(stages: dict[str, dict[str, float]], whole: float) -> list[str]:
    """Format a table of the parts of every stage's process, in seconds.

    What is left of a `whole` run from nothing is DVC's own share.
    """
    libraries = dict.fromkeys(name for names in LIBRARIES.values() for name in names)
    parts = [PYTHON, GUARD_IMPORTS, GUARD_START, *libraries, OWN_MODULES, WORK, PROCESS]
    rows = []
    for part in parts:
        values = [times.get(part, 0.0) for times in stages.values()]
        cells = [f"{value:.3f}" if value else "" for value in values]
        rows.append([part, *cells, f"{sum(values):.2f}"])
    rest = whole - sum(times[PROCESS] for times in stages.values())
    rows.append(["DVC itself", *[""] * len(stages), f"{rest:.2f}"])
    return table(["", *stages, "sum"], rows)


def guard_table(stages: dict[str, dict[str, float]]) -> list[str]:
    """Format a table of what the guard costs every stage, in milliseconds."""
    rows = []
    for stage, costs in stages.items():
        start, hook, guarded, unguarded = (
            costs[name] * 1000 for name in ("start", "hook", "guarded", "unguarded")
        )
        inside = [f"{start:.1f}", f"{hook:.1f}", f"{start + hook:.1f}"]
        processor = [
            f"{guarded:.0f}",
            f"{unguarded:.0f}",
            f"{guarded - unguarded:+.0f}",
        ]
        rows.append([stage, f"{costs['events']:.0f}", *inside, *processor])
    header = [
        *("", "events", "start (ms)", "in the hook (ms)", "both (ms)"),
        *("processor time (ms)", "without (ms)", "difference"),
    ]
    return table(header, rows)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="measure less often")
    parser.add_argument(
        "--write", action="store_true", help="also write bench/results.md"
    )
    parser.add_argument(
        "--torch",
        metavar="PYTHON",
        help="a Python that has torch, NumPy, Pillow and scikit-learn",
    )
    arguments = parser.parse_args()
    notebooks, rounds, no_ops, probes = (
        (1, 2, 2, 3) if arguments.quick else (3, 4, 3, 5)
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        for i in range(rounds):
            print(f"round {i + 1} of {rounds}", file=sys.stderr)
            bench.round(no_ops)
            bench.measure(SKLEARN, bench.clone, "-m", "bench.in_scikit_learn")
            if torch := arguments.torch:
                bench.measure(TORCH, bench.clone, "-m", "bench.in_torch", python=torch)
            if i < notebooks:
                bench.measure(NOTEBOOK, bench.clone, "-m", "bench.notebook")
        stages = bench.probe(probes)
    overhead = bench.median(NO_OP) / bench.median(FLOOR_NO_OP)
    command = f"python -m bench.pipeline{' --quick' if arguments.quick else ''}"
    lines = [
        f"Measured on {machine()}, by `{command}`.",
        "",
        *cases_table(bench),
        "",
        f"Nothing to do takes {overhead:.2f} times what five idle stages take.",
        "",
        "Where the seconds of a run from nothing go:",
        "",
        *parts_table(stages, bench.median(AGAIN)),
        "",
        "What the guard costs; events are those of a stage's first process:",
        "",
        *guard_table(stages),
    ]
    show("Results", lines, RESULTS if arguments.write else None)


if __name__ == "__main__":
    main()
