"""Whether more processes train faster: steps measured with one and with two, and a model of more.

Run it with `python -m bench.scaling`, for a minute; `--write` puts what it prints into bench/scaling.md too. There is
a core for each process, and they add up their gradients through the loopback network: the least that a real network
would take. Two are not bound to a core each, since JAX's threads then wait for each other, ten times as long.

The model: with P processes a step on a batch of B images takes their share of what it takes on one,
compute(B) / P, and log2(P) times what two take to add up the smallest gradient. Where two are slower than the model
says, they have been in each other's way on one machine.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

from bench.pipeline import ROOT
from bench.tables import machine, show, table
from stages import running

CASES = [(64, 28), (1024, 28), (8192, 28), (64, 128), (1024, 128)]
PROCESSES = [2, 8, 64]
STEPS, REPEATS = 50, 5


def seconds_a_step(batch: int, side: int) -> float:
    """The median time of a step on a batch of images, shared by the processes of this job."""
    import jax
    import numpy as np

    from stages import descent, devices

    rates, choices = {"learning_rate": 0.1, "momentum": 0.9, "l2": 1e-4}, {"schedule": "cosine", "steps": STEPS}
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side), np.uint8)
    labels = (np.arange(batch) % 2).astype(np.uint8)
    steps = max(2, min(STEPS, 2**28 // images.nbytes))
    order = np.broadcast_to(np.arange(batch), (steps, batch))
    params = descent.Params(np.zeros((side * side, 1), np.float32), np.zeros(1, np.float32))
    state = devices.everywhere((params, descent.optimizer(rates, **choices).init(params)))  # type: ignore[arg-type]
    block = devices.spread(images, order), devices.spread(labels, order)
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(descent.descend(state, *block, rates, loss="log_loss", **choices))
        seconds.append((time.perf_counter() - start) / steps)
    return statistics.median(seconds[1:])


def work() -> None:
    """What each process does: measure every case; the first one prints."""
    if "SLURM_PROCID" not in os.environ:
        os.sched_setaffinity(0, {0})
    import jax

    from stages import devices

    with devices.joined():
        result = [seconds_a_step(*case) for case in CASES]
        if jax.process_index() == 0:
            print(json.dumps(result))


def measure(count: int) -> list[float]:
    """Start processes as Slurm would, and return the seconds a step of each case."""
    processes = []
    for rank in range(count):
        variables = {**os.environ, **running.PINNED}
        if count > 1:
            variables |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
            variables |= {"SLURM_NTASKS": str(count), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        command = [sys.executable, "-m", "bench.scaling", "--work"]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a process failed")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write bench/scaling.md too")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
        return
    one, two = measure(1), measure(2)
    cells, adding = [], two[0] - one[0] / 2
    for (batch, side), alone, shared in zip(CASES, one, two, strict=True):
        speedups = [alone / (alone / count + adding * math.log2(count)) for count in PROCESSES]
        times = [f"{1000 * alone:.2f}", f"{1000 * shared:.2f}", f"{alone / shared:.2f}"]
        cells.append([f"{batch}", f"{side}²", *times, *(f"{each:.2f}" for each in speedups)])
    header = ["images a step", "pixels", "ms with 1", "ms with 2", "times as fast"]
    lines = [
        f"Measured on {machine()}, by `python -m bench.scaling`.",
        "",
        *table([*header, *(f"model of {count}" for count in PROCESSES)], cells),
        "",
        f"To add up the smallest gradient takes two processes {1000 * adding:.2f} ms.",
    ]
    show("Scaling", lines, ROOT / "bench/scaling.md" if arguments.write else None)


if __name__ == "__main__":
    main()
