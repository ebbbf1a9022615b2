"""Forked workers: the same result for any number, and none outlives its stage."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pytest

from stages import preprocess
from stages.plumbing import workers
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import Split
from stages.plumbing.parameters import Data, Splits
from tests.conftest import ROOT, edit, environment, home
from tests.images.test_archive import pack, png

PROCESSES = [1, 2, 3]
GRACE = 2
"""Seconds that a worker may outlive its stage."""


def alive_after(processes: list[psutil.Process], seconds: float = GRACE) -> list[int]:
    """Return the processes that still run after some seconds; a zombie has ended."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + seconds
    while (alive := [*filter(runs, processes)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [process.pid for process in alive]


@pytest.mark.parametrize("processes", PROCESSES)
def test_every_job_is_done_and_told_in_order(tmp_path, processes):
    def work(job: int) -> None:
        time.sleep(0.02 * (job % 3 == 0))
        (tmp_path / str(job)).write_text(str(os.getpid()))

    with workers.forked(work, range(10), processes) as done:
        assert list(done) == list(range(10))
    pids = {(tmp_path / str(job)).read_text() for job in range(10)}
    assert len(pids) <= processes
    assert (str(os.getpid()) in pids) == (processes == 1)


@pytest.mark.parametrize("processes", PROCESSES)
def test_the_first_error_in_the_order_of_the_jobs_is_raised(processes):
    def work(job: int) -> None:
        time.sleep(0.1 * (job == 3))  # the later one comes up first
        if job in (3, 4):
            raise UserError(f"job {job}")

    for _ in range(3):
        with (
            pytest.raises(UserError, match="job 3"),
            workers.forked(work, range(9), processes) as done,
        ):
            list(done)


def test_an_error_does_not_wait_for_the_jobs_of_others():
    def work(job: int) -> None:
        if job == 0:
            raise UserError("at once")
        time.sleep(60)

    start = time.monotonic()
    with (
        pytest.raises(UserError, match="at once"),
        workers.forked(work, range(4), 2) as done,
    ):
        list(done)
    assert time.monotonic() - start < GRACE


def test_a_killed_worker_ends_all_in_a_line():
    def work(job: int) -> None:
        if job == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1 if job < 2 else 60)

    with (
        pytest.raises(UserError, match="one of its processes was killed"),
        workers.forked(work, range(4), 2) as done,
    ):
        list(done)


def test_an_interrupt_is_all_that_is_told(monkeypatch):
    """Up to Python 3.11 a pool whose futures were cancelled fails on its own thread."""
    shutdown = ProcessPoolExecutor.shutdown

    def work(job: int) -> None:
        time.sleep(0.05)
        if job == 3:
            os.kill(os.getppid(), signal.SIGINT)

    def late(pool: ProcessPoolExecutor, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.2)  # until the pool sees that its processes are gone
        shutdown(pool, *args, **kwargs)

    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", late)
    with (
        pytest.raises(KeyboardInterrupt),
        workers.forked(work, range(60), 2) as done,
    ):
        list(done)
    assert told == []


@cache
def read_with(processes: int) -> tuple[Split, Split]:
    """Read the bundled archive with so many workers."""
    data = Data(("3", "7"), Splits("train", "valid"), None, False, None)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(workers, "available_processors", lambda: processes)
        return preprocess.read_splits(str(ROOT / "data/mnist_sample.tgz"), data)


@pytest.mark.parametrize("processes", [2, 5])
def test_the_tensors_are_the_same_for_any_number_of_workers(processes):
    for split, other in zip(read_with(1), read_with(processes), strict=True):
        np.testing.assert_array_equal(split.images, other.images)
        np.testing.assert_array_equal(split.labels, other.labels)


@pytest.mark.parametrize("processes", PROCESSES)
def test_the_first_damaged_image_in_the_archive_is_named(
    tmp_path, monkeypatch, processes
):
    """Members are in reverse order: the first one in the archive is the last row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "available_processors", lambda: processes)
    files = {
        f"{split}/{c}/{i}.png": png(i)
        for split in ("train", "valid")
        for c in "37"
        for i in range(50)
    }
    files |= {"valid/3/10.png": b"damaged", "train/7/40.png": b"damaged, too"}
    Path("archive").write_bytes(pack(dict(reversed(files.items()))))
    data = Data(("3", "7"), Splits("train", "valid"), None, False, None)
    with pytest.raises(UserError, match=r"^valid/3/10\.png: not a readable"):
        preprocess.read_splits("archive", data)


# The stage, stopped while two workers decode.

STOPS = {
    "interrupted": (signal.SIGINT, "interrupted, nothing was written"),
    "interrupted with its workers": (
        -signal.SIGINT,
        "interrupted, nothing was written",
    ),
    "terminated": (signal.SIGTERM, "terminated, nothing was written"),
    "killed": (signal.SIGKILL, ""),
}
needs_two = pytest.mark.skipif(
    workers.available_processors() < 2, reason="needs two processors"
)


def start_slow(clone: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start preprocess with decoding slowed down; return it with its workers."""
    (clone / "data/tensors.npz").unlink()
    edit(
        clone / "stages/preprocess.py",
        "name = source.name(entry)",
        "name = source.name(entry); import time; time.sleep(0.005)",
    )
    process = subprocess.Popen(
        ["python", "-m", "stages", "preprocess"],
        cwd=clone,
        env=environment(**home(clone)),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    stage = psutil.Process(process.pid)
    while len(started := stage.children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(started) >= 2
    time.sleep(0.3)
    return process, started


@needs_two
@pytest.mark.parametrize(("number", "text"), STOPS.values(), ids=STOPS)
def test_a_stopped_stage_leaves_no_worker_and_no_file(clone, number, text):
    process, started = start_slow(clone)
    if number < 0:  # as a terminal does
        os.killpg(process.pid, -number)
    else:
        process.send_signal(number)
    assert alive_after([psutil.Process(process.pid), *started]) == []
    errors = process.communicate(timeout=10)[1]
    assert errors == (text and f"preprocess: {text}\n")
    left = {path.name for path in (clone / "data").iterdir()}
    assert left == {".gitignore", "README.md", "archive", "mnist_sample.tgz"}


@needs_two
def test_a_killed_worker_of_the_stage_is_one_line(clone):
    process, started = start_slow(clone)
    started[0].kill()
    errors = process.communicate(timeout=10)[1]
    assert alive_after(started) == []
    assert errors.splitlines() == [
        "preprocess: one of its processes was killed, maybe for lack of memory: "
        "run dvc repro again"
    ]
    assert process.returncode == 1
    assert not (clone / "data/tensors.npz").exists()
