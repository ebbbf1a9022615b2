"""The devices that compute together: those of this process, and of the processes started beside it."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from stages import hermetic, running
from stages.running import Refusal

ENGINES = ("OMPI_COMM_WORLD_RANK", "SLURM_STEP_NODELIST", "JOB_COMPLETION_INDEX")
"""What Open MPI, Slurm and Kubernetes set for each of the processes that they start."""
SECONDS_TO_START = 60
SECONDS_OF_SILENCE = 10
BLOCK = 2**21
"""How many bytes of images a device gets at a time."""


@contextmanager
def joined() -> Iterator[None]:
    """Compute together with the processes that an engine has started beside this one, if one has.

    If they do not find each other, or one of them ends early, the others say so and end too.
    """
    if not any(name in os.environ for name in ENGINES):
        yield
        return
    hermetic.permit("tcp://")
    missing = Refusal(f"not all processes that were started together have come within {SECONDS_TO_START} seconds")
    late = threading.Timer(SECONDS_TO_START, running.give_up, [missing])  # JAX would abort with a stack trace
    late.start()
    try:
        jax.distributed.initialize(
            initialization_timeout=2 * SECONDS_TO_START,
            heartbeat_timeout_seconds=SECONDS_OF_SILENCE,
            shutdown_timeout_seconds=SECONDS_OF_SILENCE,
        )
        late.cancel()
        yield
    except BaseException as error:  # on leaving as usual, JAX would wait for the others
        lost = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
        if lost or "Unable to initialize backend" in str(error):
            error = Refusal("another of the processes that compute together has ended: see what it said")
        running.give_up(error)


@cache
def mesh() -> Mesh:
    """All devices of all processes, in a row."""
    return Mesh(np.array(jax.devices()), ("device",))


def spread(rows: NDArray, order: NDArray[np.integer]) -> Array:
    """rows[order], with the last axis of `order` divided among the devices.

    Each process reads its share of the rows only. The axis must be a multiple of the number of devices.
    """
    mine = np.array_split(order, jax.process_count(), axis=-1)[jax.process_index()]
    axes = PartitionSpec(*[None] * (order.ndim - 1), "device")
    return jax.make_array_from_process_local_data(NamedSharding(mesh(), axes), rows[mine])


def blocks(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Iterator[tuple[Array, Array, int]]:
    """Images (N, H, W) and labels (N,) on the devices, some at a time, and how many are left with them; more are void.

    The sizes are powers of two, so that few programs are compiled.
    """
    count, devices = len(images), jax.device_count()
    largest = int(math.log2(max(BLOCK / math.prod(images.shape[1:]), 1)))
    size = 2 ** min(largest, math.ceil(math.log2(count))) * devices
    for start in range(0, count, size):
        order = np.minimum(np.arange(start, start + size), count - 1)
        yield spread(images, order), spread(labels, order), count - start


def everywhere(tree: Any) -> Any:
    """Arrays that every process has, on every device."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), tree)


def alike(tree: Any) -> Any:
    """Within a compiled function: let every device have the whole of these arrays."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh(), PartitionSpec()))
