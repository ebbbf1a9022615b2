"""Training on several devices, and by several processes, gives what one gives, or ends in a line."""

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import commit, copy, edit, environment, run, stages_run, succeed

SAME = 1e-5
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
FEW = ("epochs: 20", "epochs: 2")


@pytest.fixture(scope="module")
def short(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built clone that trains for two epochs; not to be changed."""
    folder = copy(built, tmp_path_factory.mktemp("short") / "a clone")
    edit(folder / "params.yaml", *FEW)
    succeed(folder, "dvc", "repro", "train")
    commit(folder)
    return folder


@pytest.fixture
def clone(short: Path, tmp_path: Path) -> Iterator[Path]:
    yield copy(short, tmp_path / "a clone")
    shutil.rmtree(tmp_path)


def outputs(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "models/linear.npz") as file:
        arrays = {name: file[name] for name in file}
    return arrays | {"history": np.loadtxt(folder / "metrics/history.csv", delimiter=",", skiprows=1)}


def assert_same(folder: Path, other: Path) -> None:
    one, two = outputs(folder), outputs(other)
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, atol=SAME, err_msg=name)


def with_devices(folder: Path, count: int) -> None:
    """Let JAX see several devices, which stages/running.py has to say for it."""
    flag = "--xla_cpu_max_isa=AVX2"
    edit(folder / "stages/running.py", f'"{flag}"', f'"{flag} --xla_force_host_platform_device_count={count}"')


def start(folder: Path, rank: int, job: int) -> subprocess.Popen[str]:
    """One of the two processes of a job, as Slurm would start it."""
    slurm = {
        "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "HOME": str(folder.parent),
    }  # fmt: skip
    return subprocess.Popen(
        ["python", "-m", "stages.train"], cwd=folder, env=environment(**slurm), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def job() -> int:
    """A number for a job, from which JAX makes the number of a port."""
    return random.SystemRandom().randrange(1, 4096)


def test_eight_devices_learn_what_one_learns(short, clone):
    with_devices(clone, 8)
    (clone / "models/linear.npz").unlink()
    (clone / "metrics/baseline.json").unlink()
    for stage in ("baseline", "train"):
        succeed(clone, "python", "-m", f"stages.{stage}")
    assert_same(short, clone)
    assert (clone / "metrics/baseline.json").read_text() == (short / "metrics/baseline.json").read_text()


def test_a_batch_that_cannot_be_divided_among_the_devices_is_refused(clone):
    with_devices(clone, 8)
    edit(clone / "params.yaml", "batch_size: 64", "batch_size: 63")
    done = run(clone, "python", "-m", "stages.train")
    line = "train: train.batch_size: 63 cannot be divided among 8 devices: take a multiple of 8\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_two_processes_learn_what_one_learns_and_one_writes(short, clone):
    """The second process works in a folder of its own, so that it is seen what it writes."""
    (clone / "models/linear.npz").unlink()
    reader = copy(clone, clone.parent / "reader")
    number = job()
    processes = [start(clone, 0, number), start(reader, 1, number)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert_same(short, clone)
    assert not (reader / "models/linear.npz").exists()


def test_each_process_reads_its_own_share_of_the_images(monkeypatch):
    from stages import devices

    shares: list[np.ndarray] = []
    monkeypatch.setattr(devices.jax, "make_array_from_process_local_data", lambda _, rows: shares.append(rows))
    monkeypatch.setattr(devices.jax, "process_count", lambda: 4)
    order = np.random.default_rng(0).permutation(48).reshape(3, 16)
    for rank in range(4):
        monkeypatch.setattr(devices.jax, "process_index", lambda rank=rank: rank)
        devices.spread(np.arange(48), order)
    assert [share.shape for share in shares] == [(3, 4)] * 4
    np.testing.assert_array_equal(np.concatenate(shares, 1), order)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_with_a_line_and_without_output(clone, victim):
    edit(clone / "params.yaml", FEW[1], "epochs: 2000")
    (clone / "models/linear.npz").unlink()
    number = job()
    processes = [start(clone, rank, number) for rank in range(2)]
    for process in processes:
        assert process.stdout
        assert "is connected to 1 peer" in process.stdout.readline()
    time.sleep(3)  # training now
    assert [process.poll() for process in processes] == [None, None]
    processes[victim].kill()
    _, errors = processes[1 - victim].communicate(timeout=30)
    assert processes[1 - victim].returncode not in (0, None)
    # JAX may be faster than the stage in noticing that the process which coordinates the others is gone.
    assert "train: another of the processes that compute together has ended" in errors or "another task died" in errors
    processes[victim].communicate()
    assert not (clone / "models/linear.npz").exists()
    assert not list(clone.glob("*/.*.tmp"))


def test_a_process_that_is_left_alone_says_so(clone):
    edit(clone / "stages/devices.py", "SECONDS_TO_START = 60", "SECONDS_TO_START = 3")
    (clone / "models/linear.npz").unlink()
    process = start(clone, 1, job())
    _, errors = process.communicate(timeout=100)
    line = "train: not all processes that were started together have come within 3 seconds\n"
    assert (process.returncode, errors) == (1, line)
    assert not (clone / "models/linear.npz").exists()


def starts(launcher: str) -> bool:
    """Whether a launcher is installed and, as for Slurm it has to be, set up."""
    words = launcher.split()
    if not shutil.which(words[0]):
        return False
    return (
        subprocess.run([*words, "true"], env=environment(**ROOT_MAY), capture_output=True, timeout=60).returncode == 0
    )


@pytest.fixture(params=["mpirun -n 2 --bind-to none --oversubscribe", "srun -n 2 --kill-on-bad-exit"])
def launched(request: pytest.FixtureRequest, clone: Path) -> Path:
    """A clone whose training an engine starts, in two processes."""
    if not starts(request.param):
        pytest.skip(f"{request.param.split()[0]} is not installed or starts nothing")
    edit(clone / "dvc.yaml", "cmd: python -m stages.train", f"cmd: {request.param} python -m stages.train")
    return clone


def test_an_engine_starts_two_processes_for_dvc(short, launched):
    assert stages_run(succeed(launched, "dvc", "repro", "train", **ROOT_MAY)) == ["train"]
    assert_same(short, launched)


def test_what_a_user_can_mend_ends_the_job_of_an_engine_in_a_line(launched):
    edit(launched / "params.yaml", "batch_size: 64", "batch_size: 63")
    done = run(launched, "dvc", "repro", "train", **ROOT_MAY)
    assert done.returncode != 0
    assert "train: train.batch_size: 63 cannot be divided among 2 devices" in done.stderr
    assert "Traceback" not in done.stderr
