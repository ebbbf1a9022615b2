"""Share jobs among forked processes, none of which outlives this one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from stages.plumbing import runtime
from stages.plumbing.errors import UserError

T = TypeVar("T")

_work: Callable[[Any], None]  # of this process, if it is a worker


def available_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def forked(
    work: Callable[[T], None], jobs: Sequence[T], processes: int
) -> Iterator[Iterator[T]]:
    """Let up to so many processes do the jobs; yield those done, in their order.

    The processes are forked here, so they know whatever `work` refers to, and end with
    this block. Raises the first error in the order of the jobs, and UserError if a
    process was killed.
    """
    if min(processes, len(jobs)) < 2:
        yield _done_here(work, jobs)
        return
    # The pool of concurrent.futures notices when a worker is killed; the one of
    # multiprocessing does not. With fork, it starts the processes before any thread.
    context = multiprocessing.get_context("fork")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, _start_worker, (work,))
    try:
        with runtime.uninterrupted():  # until a worker ignores the signals
            # Not map, which cancels what is pending when it is interrupted: up to
            # Python 3.11 the pool ends in a traceback if its workers are killed then.
            futures = [pool.submit(_do, job) for job in jobs]
        yield _done_there(jobs, futures)
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


def _done_here(work: Callable[[T], None], jobs: Sequence[T]) -> Iterator[T]:
    for job in jobs:
        work(job)
        yield job


def _done_there(jobs: Sequence[T], futures: Sequence[Future[None]]) -> Iterator[T]:
    for job, future in zip(jobs, futures, strict=True):
        future.result()
        yield job


def _start_worker(work: Callable[[Any], None]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, runtime.STOPS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _do(job: Any) -> None:
    _work(job)
