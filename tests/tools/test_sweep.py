"""A sweep makes every experiment once, whatever happens to it, and names the best."""

import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from stages.plumbing.errors import UserError
from tests.conftest import (
    contents,
    copy,
    edit,
    environment,
    home,
    run,
    succeed,
)
from tools import sweep

SWEEP = ["python", "-m", "tools.sweep"]


@pytest.fixture(scope="module")
def swept(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the built clone for the tests that sweep, each over a grid of its own."""
    return copy(built, tmp_path_factory.mktemp("swept") / "a clone")


def options(**grid: str) -> list[str]:
    """Write a grid of parameters of train."""
    pairs = [["-S", f"train.{key}={values}"] for key, values in grid.items()]
    return list(itertools.chain(*pairs))


def experiments(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what DVC knows of the experiments of HEAD, by name."""
    shown = json.loads(succeed(folder, "dvc", "exp", "show", "--json"))
    (head,) = [state for state in shown if state["rev"] != "workspace"]
    revs = [experiment["revs"][0] for experiment in head["experiments"] or []]
    return {rev["name"]: rev for rev in revs}


def setting(experiment: dict[str, Any]) -> dict[str, Any]:
    return experiment["data"]["params"]["params.yaml"]["data"]["train"]


def log_loss(experiment: dict[str, Any]) -> float:
    return experiment["data"]["metrics"]["metrics/model.json"]["data"]["log_loss"]


def processes(folder: Path) -> Iterator[psutil.Process]:
    """Yield the processes that run in a folder or below it."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                yield process
        except (psutil.Error, OSError):
            continue


def interrupt(folder: Path, grid: list[str], number: int, count: int) -> str:
    """Send a sweep a signal once `count` experiments are there; return its stderr."""
    process = subprocess.Popen(
        [*SWEEP, *grid],
        cwd=folder,
        env=environment(**home(folder)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    refs = ["git", "for-each-ref", "refs/exps/*/*/sweep-*"]
    deadline = time.monotonic() + 60
    while len(succeed(folder, *refs).splitlines()) < count or not [
        p for p in processes(folder) if "stages" in p.cmdline()
    ]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    return stderr


@pytest.mark.slow
def test_a_sweep_may_be_interrupted_and_ends_with_the_best_of_all_combinations(swept):
    grid = options(learning_rate="0.001,0.05,0.01", epochs="1")
    known = experiments(swept).keys()
    before = contents(swept, "stages", "data", "models", "metrics")
    for number, count in ((signal.SIGTERM, 0), (signal.SIGINT, 1)):
        told = interrupt(swept, grid, number, len(known) + count)
        assert re.fullmatch(
            r"sweep: stopped with [123] of 3 experiments to go: .*\n", told
        )
        assert [p.cmdline() for p in processes(swept)] == []
        assert os.listdir(swept / sweep.FOLDER) == ["lock"]
        assert succeed(swept, "git", "status", "--porcelain") == ""
        assert succeed(swept, "git", "stash", "list") == ""
    first = {n: e["rev"] for n, e in experiments(swept).items() if n not in known}
    assert len(first) in (1, 2)

    # What is missing is trained, and nothing twice.
    printed = succeed(swept, *SWEEP, *grid)
    assert printed.startswith(f"Experiments: 3, {len(first)} of them done.\n")
    made = {n: e for n, e in experiments(swept).items() if n not in known}
    rates = sorted(setting(e)["learning_rate"] for e in made.values())
    assert rates == [0.001, 0.01, 0.05]
    assert {setting(e)["epochs"] for e in made.values()} == {1}
    assert first.items() <= {name: e["rev"] for name, e in made.items()}.items()
    assert contents(swept, "stages", "data", "models", "metrics") == before

    # A table, best first, then what the two differ by, then how to apply the best.
    best, second, third = sorted(made, key=lambda name: log_loss(made[name]))
    rows = re.findall(r"\[(sweep-\w+)\]", printed)
    assert [name for name in rows if name in made] == [best, second, third]
    for name in ("accuracy", "log_loss", "train.learning_rate", "train.epochs"):
        assert re.search(rf"Experiment.*{name}\s", printed)
    assert "\nOn the same 2,038 validation images, the difference in acc" in printed
    assert f"only {best} gets" in printed
    apply = printed.splitlines()[-1]
    assert apply == f"Apply it: dvc exp apply {best}"

    # Applied, the files are those of the experiment.
    succeed(swept, *apply.removeprefix("Apply it: ").split())
    params = yaml.safe_load((swept / "params.yaml").read_text("utf-8"))
    assert params["train"]["learning_rate"] == setting(made[best])["learning_rate"]
    metrics = json.loads((swept / "metrics/model.json").read_text("utf-8"))
    assert metrics["log_loss"] == log_loss(made[best])
    assert "up to date" in succeed(swept, "dvc", "status")
    succeed(swept, "git", "reset", "--quiet", "--hard")
    succeed(swept, "dvc", "checkout")


def test_experiments_have_the_uncommitted_changes_and_a_failure_stops_no_other(
    swept: Path,
):
    """The guard holds them: here it refuses what one of two settings reads."""
    before = experiments(swept).keys()
    known = "    config = parameters.load(parameters.Train)\n"
    undeclared = (
        '    if config.learning_rate == 1:\n        open("README.md").close()\n'
    )
    edit(swept / "stages/train.py", known, known + undeclared)
    (swept / "stages/evaluation/staged.py").write_text("", "utf-8")
    succeed(swept, "git", "add", "stages/evaluation/staged.py")
    (swept / "stages/evaluation/untracked.py").write_text("", "utf-8")
    changes = succeed(swept, "git", "diff", "HEAD")
    done = run(swept, *SWEEP, *options(learning_rate="1,0.03", epochs="1"))
    assert succeed(swept, "git", "diff", "HEAD") == changes
    (swept / "stages/evaluation/untracked.py").unlink()
    succeed(swept, "git", "reset", "--quiet", "--hard")

    assert done.returncode == 1
    failure = re.fullmatch(r"sweep: (.*) failed: see (.*)\n", done.stderr)
    assert failure, done.stderr
    assert failure[1] == "-S train.learning_rate=1 -S train.epochs=1"
    log = (swept / failure[2]).read_text("utf-8")
    assert re.search(r"^train: .*README\.md.*dvc\.yaml", log, re.MULTILINE), log
    (made,) = [e for name, e in experiments(swept).items() if name not in before]
    assert setting(made)["learning_rate"] == 0.03
    assert "your uncommitted changes" in done.stdout
    assert "stages/evaluation/untracked.py" in done.stdout
    files = succeed(swept, "git", "ls-tree", "-r", "--name-only", made["rev"])
    assert "stages/evaluation/staged.py" in files
    assert "stages/evaluation/untracked.py" not in files
    train = succeed(swept, "git", "show", f"{made['rev']}:stages/train.py")
    assert undeclared in train


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-S", "train.rate=1"], "has no parameter train.rate"),
        (["-S", "train.seed.x=1"], "has no parameter train.seed.x"),
        (["-S", "train=1"], "is a section"),
        (["-S", "train.loss=log_loss,hinge"], "train.loss: 'hinge' is not allowed"),
        (["-S", "train.seed"], "write a parameter and plain values"),
        (["-S", "train.seed=1,"], "write a parameter and plain values"),
        (["-S", "data.size=[8,8]"], "write a parameter and plain values"),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused_in_one_line(lent, arguments, says):
    done = run(lent, *SWEEP, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"sweep: .*{re.escape(says)}.*\n", done.stderr)


def test_without_a_commit_or_beside_another_sweep_it_says_so_in_one_line(
    lent: Path, tmp_path: Path
):
    succeed(tmp_path, "git", "init", "--quiet", "--bare", "empty")
    for repository in ("empty", "none"):
        done = run(lent, *SWEEP, GIT_DIR=str(tmp_path / repository))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("sweep: there is no commit to start from: ")
        assert done.stderr.count("\n") == 1
    lock = lent / sweep.FOLDER / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run(lent, *SWEEP)
    assert done.returncode == 1
    assert re.fullmatch(r"sweep: another sweep is running here.*\n", done.stderr)


def test_a_grid_has_every_combination_once_and_a_name_for_each():
    params = {"train": {"l2": 5e-4, "schedule": "cosine"}, "seed": 1}
    points = sweep.parse_grid(
        ["train.l2=0,5e-4,0", "train.schedule=constant,cosine", "seed=1"], params
    )
    expected = list(itertools.product(["0", "5e-4"], ["constant", "cosine"], ["1"]))
    assert [tuple(point.values()) for point in points] == expected
    default = sweep.default_grid({"train": {"learning_rate": 0.2}})
    assert default == ["train.learning_rate=0.05,0.1,0.2", "train.l2=0,5e-4"]
    start = sweep.Start("", params, b"", b"")

    def name_of(point: sweep.Point, start: sweep.Start) -> str:
        return sweep.name_of(sweep.params_at(point, start), start)

    assert len({name_of(point, start) for point in points}) == 4
    # A name depends on what a value is, not on how it is written, nor on what it
    # replaces.
    changed = sweep.Start("", {**params, "train": {"l2": 1, "schedule": "x"}}, b"", b"")
    typed = {"train.l2": "0.0005", "train.schedule": "cosine", "seed": "1"}
    assert name_of(typed, changed) == name_of(points[3], start)
    edited = start._replace(code=b"a patch")
    assert name_of(typed, edited) != name_of(typed, start)
    with pytest.raises(UserError, match=r"train\.l1"):
        sweep.parse_grid(["train.l1=0"], params)
