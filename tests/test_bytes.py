"""The same inputs make the same bytes: for everyone, anywhere, at any time."""

import datetime
import io
import os
import platform
import random
import re
import shutil
import socket
import sys
import tarfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from tests.conftest import STAGES, copy, edit, succeed

ONE_CORE = ["taskset", "-c", "0"]
HASWELL = ["qemu-x86_64", "-cpu", "Haswell-noTSX"]
Outputs = dict[str, bytes | None]


def outputs(folder: Path, *stages: str) -> Outputs:
    """Read what stages have written, by path; None for a missing file."""
    entries = yaml.safe_load((folder / "dvc.lock").read_text("utf-8"))["stages"]
    paths = [out["path"] for stage in stages for out in entries[stage]["outs"]]
    return {
        path: (folder / path).read_bytes() if (folder / path).exists() else None
        for path in paths
    }


def rebuild(
    folder: Path,
    *stages: str,
    prefix: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Outputs:
    """Rerun stages without their outputs and without compiled programs."""
    for path in outputs(folder, *stages):
        (folder / path).unlink()
    cache = repr(str(folder.parent / "jax"))
    edit(folder / "stages/plumbing/runtime.py", 'os.path.join(CACHE, "jax")', cache)
    for stage in stages:
        command = [*prefix, sys.executable, "-m", "stages", stage]
        succeed(folder, *command, **(variables or {}))
    return outputs(folder, *stages)


def differing(one: Outputs, other: Outputs) -> list[str]:
    return [path for path in one | other if one.get(path) != other.get(path)]


@pytest.mark.slow
def test_another_person_elsewhere_at_another_time_writes_the_same_bytes(
    built, tmp_path
):
    folder = copy(built, tmp_path / "Zoë's 3 & 7")
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    variables = {
        "HOME": str(tmp_path),
        "USER": "zoe",
        "LOGNAME": "zoe",
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "tr_TR.UTF-8",
        "LANG": "C",
        "PYTHONHASHSEED": "7",
        "COLUMNS": "40",
    }
    rebuilt = rebuild(folder, *STAGES, variables=variables)
    assert differing(rebuilt, outputs(built, *STAGES)) == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is not installed")
def test_one_thread_and_variables_that_change_results_elsewhere_make_the_same_bytes(
    clone, built
):
    """Where this process may use two cores, the built clone was made by two threads."""
    variables = {
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2 --xla_cpu_enable_fast_math=true",
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cuda",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "OPENBLAS_CORETYPE": "Prescott",
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",  # with which this locale is plain ASCII
        "PYTHONCOERCECLOCALE": "0",
    }
    rebuilt = rebuild(clone, *STAGES, prefix=ONE_CORE, variables=variables)
    assert differing(rebuilt, outputs(built, *STAGES)) == []


def shuffle_members(source: Path, target: Path) -> None:
    """Write the members of a tar file into another one, in random order."""
    with tarfile.open(source) as file:
        members = [(member, file.extractfile(member)) for member in file.getmembers()]
        contents = [(member, data.read() if data else b"") for member, data in members]
    random.Random(0).shuffle(contents)
    with tarfile.open(target, "w") as file:
        for member, content in contents:
            file.addfile(member, io.BytesIO(content))


def test_the_order_of_the_archive_changes_only_the_archive_and_its_digest(clone, built):
    path = clone / "data/mnist_sample.tgz"
    before = sha256(path.read_bytes()).hexdigest()
    shuffle_members(path, clone.parent / "shuffled.tar")
    (clone.parent / "shuffled.tar").replace(path)
    edit(clone / "params.yaml", before, sha256(path.read_bytes()).hexdigest())
    # baseline and train read the tensors, and nothing from before them.
    stages = ["download", "preprocess", "report"]
    changed = differing(rebuild(clone, *stages), outputs(built, *stages))
    assert changed == ["data/archive", "metrics/report.html"]


def test_no_output_tells_where_when_or_on_which_machine_it_was_made(built):
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = [str(Path.home()), socket.gethostname(), platform.release()]
    words = [str(built), sys.prefix, *machine, today]
    # Any bytes hold a word that is shorter.
    patterns = [rb"\b" + re.escape(word.encode()) for word in words if len(word) > 5]
    for path, content in outputs(built, *STAGES[1:]).items():
        for pattern in patterns:
            assert not re.search(pattern, content or b""), f"{path}: {pattern!r}"


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="the promise of same bytes is for x86-64",
)
@pytest.mark.skipif(not shutil.which(HASWELL[0]), reason="qemu-user is not installed")
def test_a_haswell_of_2013_trains_the_same_model(clone, built):
    """Emulated: a processor with AVX2 and without AVX-512.

    Two epochs run all that twenty run, which take half a minute more.
    """
    edit(clone / "params.yaml", "epochs: 20", "epochs: 2")
    native = copy(clone, clone.parent / "native")
    rebuilt = rebuild(clone, "train", prefix=HASWELL)
    assert differing(rebuilt, rebuild(native, "train")) == []
    assert len(differing(rebuilt, outputs(built, "train"))) > 1  # it was trained
