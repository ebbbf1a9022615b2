"""Forked workers: jobs in order, the first error, and none outlives its stage."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from unittest.mock import Mock

import psutil
import pytest

from stages.plumbing import workers
from stages.plumbing.errors import UserError
from tests.conftest import edit, start

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
def test_every_job_is_done_and_yielded_in_order(tmp_path, processes):
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


def fail(_: int) -> None:
    raise UserError("at once")


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "line"), [(fail, "at once"), (die, "one of its processes was killed")]
)
def test_an_error_or_a_killed_worker_does_not_wait_for_the_other_jobs(end, line):
    def work(job: int) -> None:
        time.sleep(60) if job else end(job)

    begun = time.monotonic()
    with (
        pytest.raises(UserError, match=line),
        workers.forked(work, range(4), 2) as done,
    ):
        list(done)
    assert time.monotonic() - begun < GRACE


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 6, 8])
def test_where_the_system_limits_processes_the_jobs_are_done_here(
    monkeypatch, capsys, limit
):
    """As `ulimit -u` does, and `docker run --pids-limit`."""
    start = threading.Thread.start

    def start_if_allowed(thread: threading.Thread) -> None:
        if threading.active_count() + len(multiprocessing.active_children()) >= limit:
            raise RuntimeError("can't start new thread")
        start(thread)

    limit += threading.active_count() - 1
    monkeypatch.setattr(threading.Thread, "start", start_if_allowed)
    done_here: list[int] = []
    with workers.forked(done_here.append, range(9), 2) as done:
        assert list(done) == done_here == list(range(9))
    line = "working in one process: cannot start more processes or threads: raise"
    assert capsys.readouterr().err.startswith(line)
    assert len(threading.enumerate()) <= limit


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EROFS])
def test_without_shared_memory_the_jobs_are_done_here(monkeypatch, capsys, number):
    """The semaphores of a pool are files in /dev/shm."""
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Mock(side_effect=error))
    done_here: list[int] = []
    with workers.forked(done_here.append, range(9), 2) as done:
        assert list(done) == done_here == list(range(9))
    reason = f"no semaphores in /dev/shm ({os.strerror(number)})"
    assert capsys.readouterr().err == f"working in one process: {reason}\n"


# The stage, stopped while two workers decode.

INTERRUPTED = "preprocess: interrupted, nothing was written\n"
STOPS = {
    "interrupted": (signal.SIGINT, INTERRUPTED),
    "interrupted with its workers": (-signal.SIGINT, INTERRUPTED),
    "terminated": (signal.SIGTERM, "preprocess: terminated, nothing was written\n"),
    "killed": (signal.SIGKILL, ""),
    "a worker killed": (
        0,
        "preprocess: one of its processes was killed, maybe for lack of memory: "
        "run dvc repro again\n",
    ),
}


@pytest.mark.skipif(workers.available_processors() < 2, reason="needs two processors")
@pytest.mark.parametrize(("number", "line"), STOPS.values(), ids=STOPS)
def test_a_stopped_stage_leaves_no_worker_and_no_file(clone, number, line):
    (clone / "data/tensors.npz").unlink()
    edit(
        clone / "stages/preprocess.py",
        "name = source.label(entry)",
        "name = source.label(entry); import time; time.sleep(0.005)",
    )
    process = start(clone, "python", "-m", "stages", "preprocess")
    stage = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(started := stage.children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    if not number:
        started[0].kill()
    elif number < 0:  # as a terminal does
        os.killpg(process.pid, -number)
    else:
        process.send_signal(number)
    assert alive_after([stage, *started]) == []
    assert process.communicate(timeout=10)[1] == line
    assert process.returncode == (-signal.SIGKILL if not line else 1)
    left = {path.name for path in (clone / "data").iterdir()}
    assert left == {".gitignore", "README.md", "archive", "mnist_sample.tgz"}
