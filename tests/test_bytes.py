"""The same inputs make the same bytes, whoever runs the stages, and where, when and how."""

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


def outputs(folder: Path, *stages: str) -> dict[str, bytes | None]:
    """What stages write, by path."""
    entries = yaml.safe_load((folder / "dvc.lock").read_text("utf-8"))["stages"]
    paths = [out["path"] for stage in stages for out in entries[stage]["outs"]]
    return {path: (folder / path).read_bytes() if (folder / path).exists() else None for path in paths}


def rebuild(
    folder: Path, *stages: str, prefix: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> dict[str, bytes | None]:
    """What stages write when they run once more, none of their outputs being there, and nothing being compiled yet."""
    for path in outputs(folder, *stages):
        (folder / path).unlink()
    old = 'os.path.join(CACHE, "jax")'
    edit(folder / "stages/running.py", old, repr(str(folder.parent / "jax")))
    for stage in stages:
        succeed(folder, *prefix, sys.executable, "-m", f"stages.{stage}", **(variables or {}))
    return outputs(folder, *stages)


def differing(one: dict[str, bytes | None], other: dict[str, bytes | None]) -> list[str]:
    return [path for path in one | other if one.get(path) != other.get(path)]


@pytest.mark.slow
def test_another_person_elsewhere_at_another_time_writes_the_same_bytes(built, tmp_path):
    folder = copy(built, tmp_path / "Zoë's 3 & 7")
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    person = {"HOME": str(tmp_path), "USER": "zoe", "LOGNAME": "zoe", "TZ": "Pacific/Kiritimati"}
    language = {"LC_ALL": "tr_TR.UTF-8", "LANG": "C", "PYTHONHASHSEED": "7", "COLUMNS": "40"}
    assert differing(rebuild(folder, *STAGES, variables=person | language), outputs(built, *STAGES)) == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is not installed")
def test_one_thread_and_variables_that_change_results_elsewhere_make_the_same_bytes(clone, built):
    """Where this process may use two cores, the built clone was made with two threads."""
    variables = {
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2 --xla_cpu_enable_fast_math=true",
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cuda",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "MPLBACKEND": "svg",
        "MATPLOTLIBRC": "/none",
        "OPENBLAS_CORETYPE": "Prescott",
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",  # with which this locale is plain ASCII
        "PYTHONCOERCECLOCALE": "0",
    }
    assert differing(rebuild(clone, *STAGES, prefix=ONE_CORE, variables=variables), outputs(built, *STAGES)) == []


def test_the_order_of_the_archive_changes_only_what_holds_the_archive_or_its_digest(clone, built):
    path = clone / "data/mnist_sample.tgz"
    before = sha256(path.read_bytes()).hexdigest()
    with tarfile.open(path) as source:
        members = [(member, source.extractfile(member)) for member in source.getmembers()]
        contents = [(member, file.read() if file else b"") for member, file in members]
    random.Random(0).shuffle(contents)
    shuffled = clone.parent / "shuffled.tar"
    with tarfile.open(shuffled, "w") as target:
        for member, content in contents:
            target.addfile(member, io.BytesIO(content))
    shuffled.replace(path)
    edit(clone / "params.yaml", before, sha256(path.read_bytes()).hexdigest())
    stages = ["download", "preprocess", "report"]  # the two others read the tensors and nothing from before them
    assert differing(rebuild(clone, *stages), outputs(built, *stages)) == ["data/archive", "metrics/report.html"]


def test_no_output_tells_where_when_or_on_which_machine_it_was_made(built):
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    names = [str(built), sys.prefix, str(Path.home()), socket.gethostname(), platform.release(), today]
    telling = [name for name in names if len(name) > 5]  # a shorter one is among any bytes
    for path, content in outputs(built, *STAGES[1:]).items():
        for word in telling:
            assert not re.search(rb"\b" + re.escape(word.encode()), content or b""), f"{path}: {word}"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the promise of same bytes is for x86-64")
@pytest.mark.skipif(not shutil.which(HASWELL[0]), reason="qemu-user is not installed")
def test_a_haswell_of_2013_trains_the_same_model(clone, built):
    """Emulated: a processor with AVX2 and without AVX-512."""
    assert differing(rebuild(clone, "train", prefix=HASWELL), outputs(built, "train")) == []
