"""The devices that compute together, in this process and in those started beside it."""

import math
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

Block = tuple[Array, Array, int]
"""Images (N, H, W), labels (N,), and how many of them are valid: padding follows."""
Batches = tuple[Array, Array, Any]
"""Images (S, B, H, W), labels (S, B), and whether a batch is valid, (S,)."""


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

    Each process reads its own share only. The length of the axis must be a multiple of
    the number of devices.
    """
    shares = np.array_split(order, jax.process_count(), axis=-1)
    spec = PartitionSpec(*[None] * (order.ndim - 1), "device")
    own_rows = rows[shares[jax.process_index()]]
    return jax.make_array_from_process_local_data(NamedSharding(mesh(), spec), own_rows)


def replicate(tree: Any) -> Any:
    """Give every device all of these arrays, inside a compiled function or outside."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    # Leaf by leaf, so that jax.vmap may map each along another axis.
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), tree)


class Blocks:
    """A split to loop over, some images at a time, padded.

    The sizes are powers of two, so that few programs are compiled. The blocks of a
    small split stay on the devices from one loop to the next.
    """

    def __init__(self, split: Split) -> None:
        """Take a split, but load nothing yet."""
        self.image_count = len(split.images)
        self._split = split
        self._kept: list[Block] = []

    def __iter__(self) -> Iterator[Block]:
        """Yield all blocks."""
        if self._split.images.nbytes > KEPT_BYTES:
            return self._load()
        self._kept = self._kept or list(self._load())
        return iter(self._kept)

    def _load(self) -> Iterator[Block]:
        images, labels = self._split
        largest = int(math.log2(max(BLOCK_BYTES / images[0].size, 1)))
        power = min(largest, math.ceil(math.log2(len(images))))
        size = 2**power * jax.device_count()
        for rows, n in _padded(np.arange(len(images)), size):
            yield shard(images, rows), shard(labels, rows), n


def batches(split: Split, order: NDArray[np.integer]) -> Iterator[Batches]:
    """Yield some batches of `order` (steps, B) at a time.

    Padded to the same number S, so that a single program is compiled.
    """
    chunks = math.ceil(order.size * split.images[0].size / BATCHES_BYTES)
    size = math.ceil(len(order) / chunks)
    for rows, n in _padded(order, size):
        is_valid = np.arange(size) < n
        yield shard(split.images, rows), shard(split.labels, rows), is_valid


def _padded(
    rows: NDArray[np.integer], size: int
) -> Iterator[tuple[NDArray[np.integer], int]]:
    """Yield `size` rows at a time: the first `n` are valid, the last one fills up."""
    for start in range(0, len(rows), size):
        n = min(size, len(rows) - start)
        yield rows[np.minimum(np.arange(start, start + size), len(rows) - 1)], n


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
