"""The devices that compute together, in this process and in those started beside it."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from stages.plumbing import runtime
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import Split

START_TIMEOUT = 60
HEARTBEAT_TIMEOUT = 10
"""Seconds."""
BLOCK_BYTES = 2**21
"""How many bytes of images a device gets at a time to evaluate them."""
BATCHES_BYTES = 2**22
"""How many bytes of images all devices get at a time to train on."""
KEPT_BYTES = 2**26
"""Up to how many bytes of images a split stays on the devices between epochs."""

Rows = tuple[Array, Array]
"""Images (…, H, W) and labels (…)."""


@contextmanager
def distributed() -> Iterator[None]:
    """Compute together with the processes that a launcher started beside this one.

    If they do not find each other, or if one ends early, the others end too, each with
    one line on stderr.
    """
    variable = runtime.launcher()
    if not variable:
        yield
        return
    timeout = UserError(
        f"timed out after {START_TIMEOUT} s waiting for the other processes"
    )
    # JAX's own timeout would abort with a stack trace.
    timer = threading.Timer(START_TIMEOUT, runtime.give_up, [timeout])
    timer.start()
    try:
        _initialize(variable)
        timer.cancel()
        yield
    except BaseException as error:
        text = str(error)
        failed = isinstance(error, jax.errors.JaxRuntimeError)
        lost_peer = failed and "RESOURCE_EXHAUSTED" not in text
        if lost_peer or "Unable to initialize backend" in text:
            error = UserError("another process of this job has ended: see its output")
        runtime.give_up(error)  # a regular exit would wait for the others


def _initialize(variable: str) -> None:
    """Let JAX find the other processes by the variables that a launcher has set."""
    try:
        with warnings.catch_warnings(action="ignore"):  # that jax[k8s] is missing
            jax.distributed.initialize(
                initialization_timeout=2 * START_TIMEOUT,
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
    """Return all devices of all processes, in one row."""
    return Mesh(np.array(jax.devices()), ("device",))


def shard(rows: NDArray, order: NDArray[np.integer]) -> Array:
    """Return rows[order], the last axis of `order` sharded over the devices.

    Each process reads its own share only. What the devices cannot share evenly, every
    one gets whole.
    """
    axes: list[str | None] = [None] * order.ndim
    if order.shape[-1] % jax.device_count() == 0:
        axes[-1] = "device"
        order = np.array_split(order, jax.process_count(), -1)[jax.process_index()]
    sharding = NamedSharding(mesh(), PartitionSpec(*axes))
    return jax.make_array_from_process_local_data(sharding, rows[order])


def replicate(tree: Any) -> Any:
    """Give every device all of these arrays, inside a compiled function or outside."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    # Leaf by leaf, so that jax.vmap may map each along another axis.
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), tree)


class Blocks:
    """A split to loop over, a block of images at a time.

    The blocks of a small split stay on the devices from one loop to the next.
    """

    def __init__(self, split: Split) -> None:
        """Take a split, but load nothing yet."""
        self.image_count = len(split.images)
        self._split = split
        self._kept: list[Rows] = []

    def __iter__(self) -> Iterator[Rows]:
        """Yield all blocks."""
        if self._split.images.nbytes > KEPT_BYTES:
            return self._load()
        self._kept = self._kept or list(self._load())
        return iter(self._kept)

    def _load(self) -> Iterator[Rows]:
        size = jax.device_count() * _at_a_time(BLOCK_BYTES, self._split.images[0].size)
        yield from _pieces(self._split, np.arange(self.image_count), size)


def batches(split: Split, order: NDArray[np.integer]) -> Iterator[Rows]:
    """Yield some batches of `order` (steps, B) at a time."""
    size = _at_a_time(BATCHES_BYTES, order.shape[1] * split.images[0].size)
    return _pieces(split, order, size)


def _at_a_time(room: int, size: int) -> int:
    return max(room // size, 1)


def _pieces(split: Split, order: NDArray[np.integer], size: int) -> Iterator[Rows]:
    """Yield the rows of `order`, `size` at a time; the rest is compiled by itself."""
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield shard(split.images, rows), shard(split.labels, rows)


def check_batch_size(batch_size: int, images: int) -> None:
    """Raise UserError unless a batch can be filled, and shared by the devices."""
    if batch_size > images:
        raise UserError(
            f"train.batch_size: {batch_size} is more than the training images: "
            f"allowed are 1 to {images}"
        )
    if batch_size % (count := jax.device_count()):
        raise UserError(
            f"train.batch_size: {batch_size} cannot be divided among {count} "
            f"devices: take a multiple of {count}"
        )
