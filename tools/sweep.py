"""Train a grid of settings, two at a time, and rank them by log loss.

`make sweep` runs it. A grid of your own is written as DVC takes it, and `-j 4` trains
four settings at a time: `python -m tools.sweep -S train.momentum=0,0.9 -S train.l2=0`.

Every combination becomes an experiment of DVC: HEAD with the uncommitted changes of
tracked files and the combination's parameters. Its name is a digest of these, so a
sweep that is run again, or was interrupted, trains only what is missing.

The experiments run in clones below .dvc/tmp that share DVC's cache, so the files of the
working tree stay as they are and may be edited meanwhile. DVC's own queue runs workers
in the background; one of DVC 3.67 can lose an experiment (docs/experiments.md).
"""

import argparse
import copy
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hermetic
from stages.plumbing import artifacts, parameters, runtime
from stages.plumbing.errors import Stopped, UserError
from hermetic import values
from stages.plumbing.progress import progress

JOBS = 2
PIPELINE = "dvc.yaml"
FOLDER = Path(".dvc/tmp/sweep")
"""Has the clones, one for each job, and the logs of the experiments that failed."""

GRACE = 3.0
"""Seconds that an interrupted experiment has to end by itself."""

IDENTITY = ("user.name", "user.email")
"""What DVC needs to know of Git, which a clone does not inherit."""

BIN = os.path.join(sys.prefix, "bin")
ENVIRONMENT = {
    # DVC runs `python` from PATH.
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    # DVC cuts its table to a terminal's width, and with it the parameters.
    "COLUMNS": "1000",
}
DVC = [sys.executable, "-m", "dvc"]

PLAIN = r"[\w.+/-]*\w"
"""A value that DVC takes as it is typed: a number or a word."""

Point = Mapping[str, str]
"""A combination: a value, as it was typed, for every parameter of the grid."""


class Start(NamedTuple):
    """What all experiments of a sweep start from."""

    head: str
    """The commit."""
    params: dict[str, Any]
    """The content of params.yaml in the working tree."""
    code: bytes
    """The uncommitted changes of what the stages depend on, as a patch."""
    changes: bytes
    """All uncommitted changes of tracked files, as a patch."""

    @classmethod
    def read(cls) -> "Start":
        """Read the working tree; raise UserError if it has no commit."""
        try:
            head = git("rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
        except UserError:
            raise UserError(
                "there is no commit to start from: run git init, git add and git commit"
            ) from None
        patch = partial(git, "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=0")
        options = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD")
        return cls(
            head,
            hermetic.read_params(file=parameters.FILE),
            patch("diff", *options, "--", *sources()),
            patch("diff", *options),
        )

    def ref(self, name: str) -> str:
        """Return where Git keeps the experiment of a name."""
        return f"refs/exps/{self.head[:2]}/{self.head[2:]}/{name}"


def git(*arguments: str, **options: Any) -> bytes:
    """Run Git, and return what it prints; raise UserError if it fails."""
    return run("git", *arguments, **options)


def dvc(*arguments: str) -> str:
    """Run DVC, and return what it prints; raise UserError if it fails."""
    return run(*DVC, *arguments).decode()


def run(*command: str, **options: Any) -> bytes:
    """Run a command, and return what it prints; raise UserError if it fails."""
    env = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, env=env, capture_output=True, **options)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace")
        raise UserError(f"{' '.join(command)} failed: {said}")
    return done.stdout


def sources() -> list[str]:
    """Return dvc.yaml and what the stages depend on, but for what they write."""
    names = hermetic.read_params("stages", PIPELINE)
    declared = [stage for name in names if (stage := hermetic.declaration(name))]
    deps = frozenset[str]().union(*(stage.deps for stage in declared))
    outs = frozenset[str]().union(*(stage.outs for stage in declared))
    return [PIPELINE, *sorted(deps - outs)]


def parse_grid(assignments: Iterable[str], params: Mapping[str, Any]) -> list[Point]:
    """Return all combinations of `key=value,value…`, in the order of the values.

    Raises UserError for a parameter that `params` lacks, and for a value that is not a
    plain number or word.
    """
    grid: dict[str, list[str]] = {}
    for assignment in assignments:
        key, _, listed = assignment.partition("=")
        typed = listed.split(",")
        if not all(re.fullmatch(PLAIN, value) for value in typed):
            raise UserError(
                f"{assignment!r} is no part of a grid: write a parameter and plain "
                "values, as in train.l2=0,5e-4"
            )
        try:
            replaced = values.find(params, key)
        except KeyError:
            raise UserError(f"{parameters.FILE} has no parameter {key}") from None
        if isinstance(replaced, Mapping):
            raise UserError(
                f"{key} is a section of {parameters.FILE}: name a parameter"
            )
        grid[key] = list(dict.fromkeys(typed))
    return [
        dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())
    ]


def default_grid(params: Mapping[str, Any]) -> list[str]:
    """Return the grid around the learning rate that params.yaml has."""
    rate = params["train"]["learning_rate"]
    return [
        f"train.learning_rate={rate / 4:g},{rate / 2:g},{rate:g}",
        "train.l2=0,5e-4",
    ]


def params_at(point: Point, start: Start) -> dict[str, Any]:
    """Return all parameters of an experiment."""
    params = copy.deepcopy(start.params)
    for key, value in point.items():
        above, _, last = key.rpartition(".")
        values.find(params, above)[last] = values.parse_yaml(value)
    return params


def check(params: Mapping[str, Any]) -> None:
    """Raise UserError for a value that a stage would refuse."""
    for section in parameters.Section.__subclasses__():
        parameters.check(section, params.get(section.__name__.lower()))


def name_of(params: Mapping[str, Any], start: Start) -> str:
    """Name an experiment after its parameters and the uncommitted changes."""
    made_from = json.dumps(params, sort_keys=True, default=str).encode() + start.code
    return f"sweep-{hashlib.sha256(made_from).hexdigest()[:7]}"


def show_point(point: Point) -> str:
    """Write a combination as options of `dvc exp run`."""
    return " ".join(f"-S {key}={value}" for key, value in point.items())


@contextmanager
def clones(count: int) -> Iterator[list[Path]]:
    """Make clones of the repository that share DVC's cache; remove them at the end.

    Raises UserError if another sweep is running.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack, (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another sweep is running here: wait for its end") from None
        folders = [FOLDER / f"clone-{i}" for i in range(count)]
        for left in FOLDER.glob("clone-*"):  # by a sweep that was killed
            shutil.rmtree(left)
        cache, local = dvc("cache", "dir").strip(), Path(".dvc/config.local")
        identity = [f"--config={key}={git_config(key)}" for key in IDENTITY]
        for folder in folders:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            git("clone", "--quiet", "--shared", *identity, ".", str(folder))
            if local.exists():
                shutil.copy(local, folder / local)
            dvc("--cd", str(folder), "cache", "dir", "--local", cache)
        yield folders


def git_config(key: str) -> str:
    """Return a setting of Git in this repository, or else "sweep"."""
    return git("config", "--get", "--default=sweep", key).decode().strip()


def train(
    waiting: Mapping[str, Point], jobs: int, start: Start
) -> Generator[tuple[str, bool], None, None]:
    """Run an experiment for every name; yield it as it ends, and whether it succeeded.

    Whatever ends the iteration ends the experiments that still run.
    """
    if not (left := list(waiting.items())):
        return
    with clones(min(jobs, len(left))) as free:
        running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        try:
            while left or running:
                while left and free:
                    name, point = left.pop(0)
                    folder = free.pop()
                    git("reset", "--quiet", "--hard", start.head, cwd=folder)
                    if start.changes:
                        apply = ("apply", "--index", "--whitespace=nowarn")
                        git(*apply, input=start.changes, cwd=folder)
                    with runtime.uninterrupted():  # else nobody would end the process
                        running[name] = launch(name, point, folder), folder
                ended = [
                    name for name, (p, _) in running.items() if p.poll() is not None
                ]
                for name in ended:
                    process, folder = running[name]
                    if process.returncode == 0:
                        collect(start.ref(name), folder)
                        log_file(name).unlink()
                    del running[name]
                    free.append(folder)
                    yield name, process.returncode == 0
                time.sleep(0.05)
        finally:
            with runtime.uninterrupted():
                end([p for p, _ in running.values() if p.returncode is None])
                for name in running:
                    log_file(name).unlink(missing_ok=True)


def log_file(name: str) -> Path:
    """Return where the output of an experiment goes."""
    return FOLDER / f"{name}.log"


def launch(name: str, point: Point, folder: Path) -> subprocess.Popen[bytes]:
    """Start `dvc exp run` in a clone, in a process group of its own."""
    options = [*show_point(point).split(), "--name", name]
    with log_file(name).open("wb") as log:
        return subprocess.Popen(
            [*DVC, "exp", "run", *options],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=partial(
                signal.pthread_sigmask, signal.SIG_UNBLOCK, runtime.STOPS
            ),
        )


def collect(ref: str, folder: Path) -> None:
    """Take over an experiment from a clone; its outputs are in the cache already."""
    quiet = ["--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"]
    git("fetch", *quiet, str(folder), f"+{ref}:{ref}")


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Interrupt processes and what they started; kill what does not end in time."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log_loss(ref: str) -> float:
    """Read the log loss of an experiment."""
    return json.loads(git("show", f"{ref}:{artifacts.MODEL_METRICS}"))["log_loss"]


def table(points: Iterable[Point]) -> str:
    """Return HEAD and its experiments, best first, with the parameters that differ.

    Only those of the sections that the sweep varies.
    """
    sections = "|".join({key.split(".")[0] for point in points for key in point})
    path = artifacts.MODEL_METRICS
    shown = rf"Experiment$|({path}:)?accuracy$|({path}:)?log_loss$"
    return dvc(
        *("exp", "show", "--no-pager", "--hide-workspace", "--only-changed"),
        *("--hide-queued", "--hide-failed", "--sort-by", f"{path}:log_loss"),
        *("--keep", shown, "--drop", rf"(?!({parameters.FILE}:)?({sections})\.)"),
    )


def finish(points: Mapping[str, Point], start: Start) -> None:
    """Print the table, how sure the choice of the best is, and how to apply it."""
    print(table(points.values()))
    best, *others = sorted(points, key=lambda name: log_loss(start.ref(name)))
    print(f"Best of the sweep: {best} ({show_point(points[best])})")
    if others:
        from tools.compare.text import sentence  # here, since the import takes 0.2 s

        print(f"Second: {others[0]} ({show_point(points[others[0]])})")
        print(sentence(best, others[0]))
    print(
        "The validation images chose the best: its own figures on them are optimistic."
    )
    print(f"Apply it: dvc exp apply {best}")


def train_missing(points: Mapping[str, Point], jobs: int, start: Start) -> list[str]:
    """Train what has no experiment yet; return the names of those that failed."""
    refs = set(git("for-each-ref", "--format=%(refname)", "refs/exps").decode().split())
    missing = {n: point for n, point in points.items() if start.ref(n) not in refs}
    print(f"Experiments: {len(points)}, {len(points) - len(missing)} of them done.")
    if missing and start.changes:
        print("They start from HEAD with your uncommitted changes.")
    if missing and (new := git("ls-files", "-o", "--exclude-standard", *sources())):
        print(
            "Without these files, which Git does not track:", *new.decode().splitlines()
        )
    sys.stdout.flush()
    left, failed = len(missing), list[str]()
    try:
        with closing(train(missing, jobs, start)) as ended:
            for name, succeeded in progress(ended, "sweep", "experiments", left):
                left -= 1
                if not succeeded:
                    failed.append(name)
    except Stopped as stopped:
        stopped.args = (
            f"stopped with {left} of {len(points)} experiments to go: run it again",
        )
        raise
    return failed


def main() -> int:
    """Run what is missing of a grid, and print the results; return 1 if any failed."""
    parser = argparse.ArgumentParser(
        "python -m tools.sweep",
        description="Train a grid of settings, and rank them by log loss.",
    )
    grid_help = "a parameter and its values; without any, some learning rates and l2"
    parser.add_argument("-S", "--set-param", metavar="KEY=VALUE,…", action="append",
                        help=grid_help)  # fmt: skip
    jobs_help = f"how many settings to train at a time: {JOBS} unless given"
    parser.add_argument("-j", "--jobs", type=int, default=JOBS, help=jobs_help)
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("--jobs: at least 1")
    start = Start.read()
    assignments = arguments.set_param or default_grid(start.params)
    points: dict[str, Point] = {}
    for point in parse_grid(assignments, start.params):
        params = params_at(point, start)
        check(params)
        points.setdefault(name_of(params, start), point)
    failed = train_missing(points, arguments.jobs, start)
    if done := {n: point for n, point in points.items() if n not in failed}:
        finish(done, start)
    for name in failed:
        told = f"{show_point(points[name])} failed: see {log_file(name)}"
        print(f"sweep: {told}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    runtime.explain_errors("sweep")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    sys.exit(main())
