"""Compute on all devices of this process and of those launched alongside it."""

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from stages.plumbing import runtime, workers
from stages.plumbing.errors import TOO_MANY, UserError
from stages.plumbing.tensors import Split

START_TIMEOUT = 60  # seconds
HEARTBEAT_TIMEOUT = 10  # seconds
BLOCK_BYTES = 2**21  # of images sent to the devices at a time for evaluation
BATCHES_BYTES = 2**22  # of images sent to the devices at a time for training
KEPT_BYTES = 2**24  # a split up to this size is not divided, or stays on the devices

Rows = tuple[Array, Array]
"""Images (…, H, W, C) and labels (…)."""


def check_threads() -> None:
    """Raise UserError unless JAX can start its threads: it would abort the process."""
    # Measured: 9 threads, and 3 for each processor.
    if not workers.can_start(10 + 3 * workers.available_processors()):
        raise UserError(TOO_MANY)


@contextmanager
def distributed() -> Iterator[None]:
    """Compute together with the processes that a launcher started alongside this one.

    If they cannot connect, or if one ends early, the others end, too, each with one
    line on stderr.
    """
    if not (variable := runtime.launcher()):
        yield
        return
    reason = f"timed out after {START_TIMEOUT} s waiting for the other processes"
    # JAX's own timeout would abort with a stack trace.
    timer = threading.Timer(START_TIMEOUT, runtime.give_up, [UserError(reason)])
    timer.start()
    try:
        _initialize(variable)
        timer.cancel()
        yield
    except BaseException as error:
        text = str(error)
        failed = isinstance(error, jax.errors.JaxRuntimeError)
        # Out of memory is this process's own error, not a lost peer.
        lost_peer = failed and "RESOURCE_EXHAUSTED" not in text
        if lost_peer or "Unable to initialize backend" in text:
            error = UserError("another process of this job has ended: see its output")
        runtime.give_up(error)  # a regular exit would wait for the others


def _initialize(variable: str) -> None:
    """Connect to the other processes, which JAX finds by the launcher's variables."""
    try:
        with warnings.catch_warnings(action="ignore"):  # jax[k8s] is missing
            jax.distributed.initialize(
                initialization_timeout=2 * START_TIMEOUT,  # the timer fires first
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
            )
    except jax.errors.JaxRuntimeError:  # another process has ended
        raise
    except (KeyError, ValueError, RuntimeError) as error:  # ill-formed variables
        raise UserError(
            f"{variable} is set, but JAX finds no other processes ({error}): "
            f"start all of them with {runtime.LAUNCHERS[variable]}, or unset {variable}"
        ) from error


@cache
def mesh() -> Mesh:
    """Return a one-dimensional mesh of all devices of all processes."""
    return Mesh(np.array(jax.devices()), ("device",))


def shard(rows: NDArray, order: NDArray[np.integer]) -> Array:
    """Return rows[order], sharded over the devices along the last axis of `order`.

    Each process reads only its own share. If the axis cannot be divided evenly, every
    device gets a full copy.
    """
    axes: list[str | None] = [None] * order.ndim
    if order.shape[-1] % jax.device_count() == 0:
        axes[-1] = "device"
        order = np.array_split(order, jax.process_count(), -1)[jax.process_index()]
    sharding = NamedSharding(mesh(), PartitionSpec(*axes))
    # np.take is twice as fast as rows[order].
    return jax.make_array_from_process_local_data(sharding, np.take(rows, order, 0))


def everywhere() -> NamedSharding:
    """Return the sharding that copies an array to every device."""
    return NamedSharding(mesh(), PartitionSpec())


class Blocks:
    """Batches of all or some rows of a split, to iterate over several at a time.

    The last ones repeat rows: JAX compiles a program for each shape, so all have the
    same. If they are small, they stay on the devices.
    """

    def __init__(
        self, split: Split, batch_size: int, rows: NDArray[np.integer] | None = None
    ) -> None:
        self._split, self._kept = split, list[Rows]()
        rows = np.arange(len(split.images)) if rows is None else rows
        self.count = len(rows)
        self._size = _fitting(split, batch_size, BLOCK_BYTES)
        steps = math.ceil(self.count / (batch_size * self._size)) * self._size
        self._order = np.resize(rows, (steps, batch_size))  # repeats from the first

    def __iter__(self) -> Iterator[Rows]:
        """Yield images (S, B, H, W, C) and labels (S, B)."""
        if self._kept:
            return iter(self._kept)
        blocks = pieces(self._split, self._order, self._size)
        if self._order.size * self._split.images[0].size <= KEPT_BYTES:
            self._kept = list(blocks)
            return iter(self._kept)
        return blocks


def batches(split: Split, order: NDArray[np.integer]) -> Iterator[Rows]:
    """Yield the batches of `order` (steps, B), several at a time."""
    size = _fitting(split, order.shape[1], BATCHES_BYTES)
    if len(order) <= _fitting(split, order.shape[1], KEPT_BYTES):
        size = len(order)  # all at once: for a shorter rest, JAX would compile again
    return pieces(split, order, size)


def _fitting(split: Split, batch_size: int, limit: int) -> int:
    """Return how many batches, at least one, fit this number of bytes."""
    return max(limit // (batch_size * split.images[0].size), 1)


def pieces(split: Split, order: NDArray[np.integer], size: int) -> Iterator[Rows]:
    """Yield `size` rows of `order` at a time, fewer at the end."""
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield shard(split.images, rows), shard(split.labels, rows)


def check_batch_size(batch_size: int, images: int) -> None:
    """Raise UserError unless a batch can be filled and divided among the devices."""
    if batch_size > images:
        raise UserError(
            f"train.batch_size: {batch_size} exceeds the number of training images: "
            f"use 1 to {images}"
        )
    if batch_size % (count := jax.device_count()):
        raise UserError(
            f"train.batch_size: {batch_size} cannot be divided among {count} "
            f"devices: use a multiple of {count}"
        )
