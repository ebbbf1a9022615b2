"""Training on several devices or in several processes: the same model, or one line."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from stages.evaluation.model_file import TrainedModel
from stages.plumbing import devices
from tests.conftest import contents, copy, edit, once, run, stages_run, start, succeed

TRAIN = ["python", "-m", "stages", "train"]
FEW_EPOCHS = ("epochs: 20", "epochs: 2")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
LAUNCHERS = [
    "mpirun -n 2 --bind-to none --oversubscribe",
    "srun -n 2 --kill-on-bad-exit",
]


@pytest.fixture(scope="module")
def short(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a clone for two epochs, once for all workers; do not edit it."""

    def train(folder: Path) -> None:
        copy(built, folder)
        edit(folder / "params.yaml", *FEW_EPOCHS)
        succeed(folder, *TRAIN)

    return once(tmp_path_factory, "short", train)


@pytest.fixture
def clone(short: Path, tmp_path: Path) -> Iterator[Path]:
    """Copy the clone that trains for two epochs for one test alone."""
    yield copy(short, tmp_path / "a clone")
    shutil.rmtree(tmp_path)


def numbers(folder: Path) -> list[np.ndarray]:
    """Return the params and the history of the model that a clone has trained."""
    params = TrainedModel.load(str(folder / "models/model.npz")).params
    history = np.loadtxt(folder / "metrics/history.csv", delimiter=",", skiprows=1)
    return [*params.values(), history]


def assert_same(folder: Path, other: Path) -> None:
    for ours, others in zip(numbers(folder), numbers(other), strict=True):
        np.testing.assert_allclose(others, ours, atol=1e-5)


def set_device_count(folder: Path, count: int) -> None:
    """Let JAX see several devices, through the flags that runtime.py pins."""
    flag = "--xla_cpu_max_isa=AVX2"
    more = f"--xla_force_host_platform_device_count={count}"
    edit(folder / "stages/plumbing/runtime.py", f'"{flag}"', f'"{flag} {more}"')


def start_process(folder: Path, rank: int, job: int) -> subprocess.Popen[str]:
    """Start one of the two processes of a job, as Slurm would."""
    slurm = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }
    return start(folder, *TRAIN, limit=None, **slurm)


def job_number() -> int:
    """Draw the number of a job, from which JAX derives a port."""
    return random.SystemRandom().randrange(1, 4096)


def test_eight_devices_train_the_same_model_as_one(short, clone):
    set_device_count(clone, 8)
    (clone / "models/model.npz").unlink()
    succeed(clone, *TRAIN)
    assert_same(short, clone)


def test_a_batch_that_cannot_be_divided_among_the_devices_is_refused(clone):
    set_device_count(clone, 8)
    edit(clone / "params.yaml", "batch_size: 64", "batch_size: 63")
    done = run(clone, *TRAIN)
    reason = "cannot be divided among 8 devices: use a multiple of 8"
    assert done.stderr == f"train: train.batch_size: 63 {reason}\n"
    assert done.returncode == 1


def test_two_processes_train_the_same_model_as_one_and_the_first_writes_it(
    short, clone
):
    """The second runs in a folder of its own, to show what it writes."""
    (clone / "models/model.npz").unlink()
    second = copy(clone, clone.parent / "second")
    job = job_number()
    processes = [start_process(clone, 0, job), start_process(second, 1, job)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert_same(short, clone)
    assert not (second / "models/model.npz").exists()


def test_a_process_reads_only_its_own_share_of_the_images(monkeypatch):
    jax = Mock(**{f"{name}_count.return_value": 4 for name in ("process", "device")})
    jax.process_index.side_effect = range(4)
    monkeypatch.setattr(devices, "jax", jax)
    monkeypatch.setattr(devices, "mesh", Mock())
    monkeypatch.setattr(devices, "NamedSharding", Mock())
    order = np.random.default_rng(0).permutation(48).reshape(3, 16)
    for _ in range(4):
        devices.shard(np.arange(48), order)
    calls = jax.make_array_from_process_local_data.call_args_list
    shares = [call.args[1] for call in calls]
    assert [share.shape for share in shares] == [(3, 4)] * 4
    np.testing.assert_array_equal(np.concatenate(shares, 1), order)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_with_a_line_and_without_output(
    clone, victim
):
    edit(clone / "params.yaml", FEW_EPOCHS[1], "epochs: 2000")
    script = clone / "stages/train.py"
    edit(script, ">= TOLERANCE", ">= -1000")  # so it never converges
    begins = "        # Seeded per epoch"
    says_so = f'        epoch == 3 and print("training", flush=True)\n{begins}'
    edit(script, begins, says_so)
    (clone / "models/model.npz").unlink()
    job = job_number()
    processes = [start_process(clone, rank, job) for rank in range(2)]
    for process in processes:
        assert process.stdout
        assert "is connected to 1 peer" in process.stdout.readline()
        assert "training\n" in process.stdout
    assert [process.poll() for process in processes] == [None, None]
    processes[victim].kill()
    survivor = processes[1 - victim]
    _, errors = survivor.communicate(timeout=30)
    assert survivor.returncode not in (0, None)
    # JAX may notice before the stage that the coordinating process has gone.
    line = "train: another process of this job has ended: see its output"
    assert line in errors or "another task died" in errors
    processes[victim].communicate()
    assert not (clone / "models/model.npz").exists()
    assert not list(clone.glob("*/.*.tmp"))


def test_a_process_that_is_left_alone_says_so(clone):
    file = clone / "stages/plumbing/devices.py"
    edit(file, "START_TIMEOUT = 60", "START_TIMEOUT = 3")
    (clone / "models/model.npz").unlink()
    process = start_process(clone, 1, job_number())
    _, errors = process.communicate(timeout=100)
    assert errors == "train: timed out after 3 s waiting for the other processes\n"
    assert process.returncode == 1
    assert not (clone / "models/model.npz").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"JOB_COMPLETION_INDEX": "0"},
        {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"OMPI_COMM_WORLD_RANK": "0"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_MCA_orte_hnp_uri": "4096.0;udp://1"},
        {"SLURM_STEP_NODELIST": "node1"},
    ],
    ids=str,
)
def test_a_variable_that_a_launcher_sets_alone_is_named_in_one_line(lent, variables):
    before = contents(lent, "models", "metrics")
    done = run(lent, *TRAIN, **variables)
    name = next(iter(variables))
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"train: {name} is set, but JAX finds no other")
    assert done.stderr.endswith(f", or unset {name}\n")
    assert done.returncode == 1
    assert contents(lent, "models", "metrics") == before


@pytest.fixture(params=LAUNCHERS, ids=lambda launcher: launcher.split()[0])
def launched(request: pytest.FixtureRequest, clone: Path) -> Path:
    """Let a launcher start the training of a clone, in two processes."""
    program, *options = request.param.split()
    # Slurm needs to be configured, too.
    works = [program, *options, "true"]
    if not shutil.which(program) or run(clone, *works, **AS_ROOT).returncode:
        pytest.skip(f"{program} is not installed or starts nothing")
    command = "python -m stages train"
    edit(clone / "dvc.yaml", f"cmd: {command}", f"cmd: {request.param} {command}")
    return clone


def test_a_launcher_starts_two_processes_for_dvc(short, launched):
    stdout = succeed(launched, "dvc", "repro", "train", **AS_ROOT)
    assert stages_run(stdout) == ["train"]
    assert_same(short, launched)


def test_a_user_error_ends_the_job_of_a_launcher_with_a_line(launched):
    edit(launched / "params.yaml", "batch_size: 64", "batch_size: 63")
    done = run(launched, "dvc", "repro", "train", **AS_ROOT)
    line = "train: train.batch_size: 63 cannot be divided among 2 devices"
    assert done.returncode != 0
    assert line in done.stderr
    assert "Traceback" not in done.stderr
