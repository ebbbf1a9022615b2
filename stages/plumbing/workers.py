"""Run jobs in forked worker processes that never outlive this process."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from stages.plumbing import runtime
from stages.plumbing.errors import TOO_MANY, UserError

T = TypeVar("T")
SPARE = 6
"""Threads: two of a pool, and a margin, since other processes come and go."""

_work: Callable[[Any], None]  # set in worker processes only


def available_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def can_start(count: int) -> bool:
    """Return whether this process may start so many threads, or processes, at once."""
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(count)]
    started = 0
    try:
        for thread in threads:
            thread.start()
            started += 1
    except RuntimeError:
        return False
    finally:
        done.set()
        for thread in threads[:started]:
            thread.join()
    return True


@contextmanager
def forked(
    work: Callable[[T], None], jobs: Sequence[T], processes: int
) -> Iterator[Iterator[T]]:
    """Run jobs in up to `processes` workers; yield an iterator of finished jobs.

    The iterator follows the order of the jobs, and raises the first error in that
    order, or UserError if a worker was killed. Workers are forked here, so `work` may
    refer to any object of this process; they end with the `with` block. If the system
    allows no workers, the jobs run in this process.
    """
    if min(processes, len(jobs)) < 2:  # not worth a fork
        yield _run_here(work, jobs)
        return
    others = set(multiprocessing.active_children())  # not to be killed
    try:
        pool = _pool(work, processes)
    except OSError as error:
        print(f"working in one process: {error}", file=sys.stderr)
        yield _run_here(work, jobs)
        return
    try:
        # Workers inherit the blocked signals, and unblock them in _start_worker.
        with runtime.uninterrupted():
            # Not pool.map, which cancels pending futures when interrupted: up to Python
            # 3.11, killing the workers after that ends in a traceback.
            futures = [pool.submit(_do, job) for job in jobs]
        yield _wait_for(jobs, futures)
    except BaseException as error:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "one of its processes was killed, maybe for lack of memory: "
                "run dvc repro again"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(work: Callable[[Any], None], processes: int) -> ProcessPoolExecutor:
    """Return a pool; raise OSError if the system allows no workers."""
    context = multiprocessing.get_context("fork")
    # Two threads for each process, two for the pool, and some to spare. Once started, a
    # pool that cannot start the rest may wait for ever.
    trial = context.Process(target=_try_to_start, args=(2 * processes + SPARE,))
    try:
        with runtime.uninterrupted():
            trial.start()
            trial.join()
    except BlockingIOError:
        raise OSError(TOO_MANY) from None
    if trial.exitcode:
        raise OSError(TOO_MANY)
    # Unlike multiprocessing.Pool, this pool notices when a worker is killed. With fork,
    # it starts all processes before its own threads, as forking with threads can hang.
    try:
        return ProcessPoolExecutor(processes, context, _start_worker, (work,))
    except OSError as error:
        raise OSError(f"no semaphores in /dev/shm ({error.strerror})") from error


def _try_to_start(count: int) -> None:
    """Exit with 1 if the threads cannot be started; in a process of its own."""
    sys.exit(not can_start(count))


def _run_here(work: Callable[[T], None], jobs: Sequence[T]) -> Iterator[T]:
    for job in jobs:
        work(job)
        yield job


def _wait_for(jobs: Sequence[T], futures: Sequence[Future[None]]) -> Iterator[T]:
    for job, future in zip(jobs, futures, strict=True):
        future.result()  # raises the worker's error
        yield job


def _start_worker(work: Callable[[Any], None]) -> None:
    global _work
    _work = work
    for number in (signal.SIGINT, signal.SIGHUP):  # on these, the parent ends this
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, runtime.STOPS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()  # returns when the parent has ended, even if killed
        os._exit(1)


def _do(job: Any) -> None:
    _work(job)
