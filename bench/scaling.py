"""Measure whether more processes train faster: with one and two, and a model for more.

Run `python -m bench.scaling`: about a minute. `--write` also writes bench/scaling.md.
Every process has a core of its own, and they add up their gradients through the
loopback network, which is faster than any real one. Two processes are not pinned to
their cores: JAX's threads would then wait for each other, ten times as long.

The model: a step on B images takes P processes compute(B) / P, plus log2(P) times what
two take to add up the smallest gradient. Where two are slower than that, they got in
each other's way on one machine.
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
from stages.plumbing import parameters, runtime

CASES = [(64, 28), (1024, 28), (8192, 28), (64, 128), (1024, 128)]
"""Images per step, and the pixels of a side."""
PROCESSES = [2, 8, 64]
"""For the model."""
STEPS, REPEATS = 50, 5


def seconds_per_step(batch_size: int, side: int) -> float:
    """Return the median time of a step whose batch this job's processes share."""
    import jax
    import numpy as np

    from stages import train
    from stages.evaluation import devices

    config = parameters.Train(
        seed=0,
        loss="log_loss",
        learning_rate=0.1,
        schedule="cosine",
        momentum=0.9,
        l2=1e-4,
        batch_size=batch_size,
        epochs=1,
        init_std=0.0,
    )
    hyperparams = train.Hyperparams(config.learning_rate, config.momentum, config.l2)
    shape = (batch_size, side, side)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = (np.arange(batch_size) % 2).astype(np.uint8)
    steps = max(2, min(STEPS, 2**28 // images.nbytes))
    order = np.broadcast_to(np.arange(batch_size), (steps, batch_size))
    shards = devices.shard(images, order), devices.shard(labels, order)
    batches = *shards, np.ones(steps, bool)  # all are valid
    params = train.init_params(0, side * side, 1, config.init_std)
    opt_state = train.sgd(hyperparams, config.schedule, STEPS).init(params)
    state = devices.replicate((params, opt_state))
    seconds = []
    for _ in range(REPEATS + 1):  # the first one compiles
        start = time.perf_counter()
        result = train.train_steps(
            state, batches, hyperparams, config=config, steps=STEPS
        )
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start) / steps)
    return statistics.median(seconds[1:])


def work() -> None:
    """Measure all cases as one process of a job; the first process prints."""
    if "SLURM_PROCID" not in os.environ:
        os.sched_setaffinity(0, {0})
    import jax

    from stages.evaluation import devices

    with devices.distributed():
        seconds = [seconds_per_step(*case) for case in CASES]
        if jax.process_index() == 0:
            print(json.dumps(seconds))


def measure(count: int) -> list[float]:
    """Start `count` processes as Slurm would; return the seconds per step of a case."""
    processes = []
    for rank in range(count):
        variables = {**os.environ, **runtime.PINNED}
        if count > 1:
            variables |= {
                "SLURM_JOB_ID": str(os.getpid()),
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": str(count),
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
            }
        command = [sys.executable, "-m", "bench.scaling", "--work"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a process failed")
    return json.loads(outputs[0].splitlines()[-1])


def verdict(one: list[float], two: list[float]) -> list[str]:
    """Say whether two processes pay, from the seconds per step of one and of two."""
    best = max(alone / shared for alone, shared in zip(one, two, strict=True))
    pay = "pay for the largest steps only" if best > 1.1 else "do not pay"
    adding = 1000 * (two[0] - one[0] / 2)
    return [
        f"Two processes {pay} on this machine: at best they are {best:.2f} times as "
        "fast as one.",
        f"The smallest step takes one process {1000 * one[0]:.2f} ms; adding up its "
        f"gradient takes two {adding:.2f} ms.",
    ]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help="also write bench/scaling.md"
    )
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
        return
    one, two = measure(1), measure(2)
    adding = two[0] - one[0] / 2
    rows = []
    for (batch_size, side), alone, shared in zip(CASES, one, two, strict=True):
        times = [f"{1000 * alone:.2f}", f"{1000 * shared:.2f}", f"{alone / shared:.2f}"]
        modelled = [alone / count + adding * math.log2(count) for count in PROCESSES]
        speedups = [f"{alone / seconds:.2f}" for seconds in modelled]
        rows.append([f"{batch_size}", f"{side}²", *times, *speedups])
    header = ["images per step", "pixels", "ms with 1", "ms with 2", "times as fast"]
    lines = [
        f"Measured on {machine()}, by `python -m bench.scaling`.",
        "",
        *table([*header, *(f"model of {count}" for count in PROCESSES)], rows),
        "",
        *verdict(one, two),
    ]
    show("Scaling", lines, ROOT / "bench/scaling.md" if arguments.write else None)


if __name__ == "__main__":
    main()
