"""The same inputs make the same bytes: for everyone, anywhere, at any time."""

import datetime
import os
import platform
import random
import re
import shutil
import socket
import sys
import tarfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.plumbing import npz
from tests.builders import pack, refusal
from tests.conftest import STAGES, copy, edit, succeed
from tools import verify

ONE_CORE = ["taskset", "-c", "0"]
HASWELL = ["qemu-x86_64", "-cpu", "Haswell-noTSX"]
IS_X86_64 = platform.machine() in ("x86_64", "AMD64")


def outputs(folder: Path, *stages: str) -> dict[str, bytes | None]:
    """Read what stages have written, by path; None for a missing file."""
    entries = yaml.safe_load((folder / "dvc.lock").read_text("utf-8"))["stages"]
    paths = [out["path"] for stage in stages for out in entries[stage]["outs"]]
    files = {path: folder / path for path in paths}
    return {path: f.read_bytes() if f.exists() else None for path, f in files.items()}


def changed_by_rebuild(
    built: Path,
    folder: Path,
    *stages: str,
    prefix: Sequence[str] = (),
    **variables: str,
) -> list[str]:
    """Rerun stages in a folder, and return the outputs that differ from the built ones.

    They start without their outputs and without compiled programs.
    """
    for path in outputs(folder, *stages):
        (folder / path).unlink()
    cache = repr(str(folder.parent / "jax"))
    edit(
        folder / "stages/plumbing/runtime.py",
        'os.path.join(sys.prefix, "cache")',
        cache,
    )
    for stage in stages:
        command = [*prefix, sys.executable, "-m", "stages", stage]
        succeed(folder, *command, **variables)
    before, after = outputs(built, *stages), outputs(folder, *stages)
    return [path for path in before | after if before.get(path) != after.get(path)]


ELSEWHERE = {
    "USER": "zoe",
    "LOGNAME": "zoe",
    "TZ": "Pacific/Kiritimati",
    "LC_ALL": "tr_TR.UTF-8",
    "LANG": "C",
    "PYTHONHASHSEED": "7",
    "COLUMNS": "40",
}
# Variables that change what JAX or Python computes elsewhere.
VARIABLES = {
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
needs_taskset = pytest.mark.skipif(
    not shutil.which("taskset"), reason="taskset is not installed"
)
CALLERS = [
    pytest.param("Zoë's 3 & 7", [], ELSEWHERE, id="elsewhere"),
    pytest.param("one core", ONE_CORE, VARIABLES, id="one core", marks=needs_taskset),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prefix", "variables"), CALLERS)
def test_another_person_at_another_time_writes_the_same_bytes(
    built, tmp_path, name, prefix, variables
):
    """Where this process may use two cores, the built clone was made by two threads."""
    folder = copy(built, tmp_path / name)
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    assert changed_by_rebuild(built, folder, *STAGES, prefix=prefix, **variables) == []


def test_the_order_of_the_archive_changes_only_the_archive_and_its_digest(clone, built):
    path = clone / "data/mnist_sample.tgz"
    before = sha256(path.read_bytes()).hexdigest()
    with tarfile.open(path) as tar:
        files = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
    random.Random(0).shuffle(files)
    path.write_bytes(pack(files))
    edit(clone / "params.yaml", before, sha256(path.read_bytes()).hexdigest())
    # baseline and train read the tensors, and nothing from before them.
    stages = ["download", "preprocess", "report"]
    changed = changed_by_rebuild(built, clone, *stages)
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
@pytest.mark.skipif(not IS_X86_64, reason="the promise of same bytes is for x86-64")
@pytest.mark.skipif(not shutil.which(HASWELL[0]), reason="qemu-user is not installed")
def test_a_haswell_of_2013_trains_the_same_model(clone, built):
    """Emulated: a processor with AVX2 and without AVX-512.

    Most of the time goes into compiling. So two epochs are as good as twenty.
    """
    edit(clone / "params.yaml", "epochs: 20", "epochs: 2")
    path = clone / "data/tensors.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for name in ("train_images", "train_labels"):
        arrays[name] = arrays[name][::6]
    with path.open("wb") as file:
        npz.write(arrays, file)
    native = copy(clone, clone.parent / "native")
    changed = changed_by_rebuild(built, native, "train")
    assert len(changed) > 1  # it was trained
    assert changed_by_rebuild(native, clone, "train", prefix=HASWELL) == []


@pytest.mark.parametrize(
    ("suffix", "own", "rebuilt", "verdict"),
    [
        ("json", '{"a": {"b": 0.5}}', '{"a": {"b": 0.500001}}', "same values to 1e-05"),
        ("json", '{"a": {"b": 0.5}}', '{"a": {"b": 0.5001}}', "DIFFERENT VALUES"),
        ("csv", "p,class\n2e-03,3\n", "p,class\n2.0001e-03,3\n", "same values"),
        ("csv", "p,class\n2e-03,3\n", "p,class\n2.1e-03,3\n", "DIFFERENT VALUES"),
        ("csv", "p,class\n2e-03,3\n", "p,class\n", "DIFFERENT VALUES"),
        ("html", "<p>", "<b>", "look at it"),
        ("html", None, "<b>", "DIFFERENT BYTES"),
    ],
)
def test_where_bytes_may_differ_verify_compares_values(
    tmp_path, suffix, own, rebuilt, verdict
):
    files = tmp_path / f"rebuilt.{suffix}", tmp_path / f"own.{suffix}"
    for file, text in zip(files, (rebuilt, own), strict=True):
        if text is not None:
            file.write_text(text, "utf-8")
    assert verdict in verify.compare(*files)


def test_verify_excuses_other_bytes_only_where_they_may_differ():
    last_digits = [verify.SAME, "different bytes, same values to 1e-05"]
    assert verify.is_rebuilt([verify.SAME], "x86_64")
    assert not verify.is_rebuilt(last_digits, "x86_64")
    assert verify.is_rebuilt(last_digits, "aarch64")
    assert not verify.is_rebuilt([*last_digits, "DIFFERENT VALUES"], "aarch64")


@pytest.mark.parametrize(
    ("url", "here", "used"),
    [
        ("data/my photos.tar", ["data/my photos.tar", "data/archive"], 0),
        ("mine/photos.tar", ["data/archive"], 0),
        ("../photos.tar", ["../photos.tar"], "give an absolute path"),
        ("data/photos.tar", [], "copy it here, or run dvc pull data/archive if there"),
        ("https://a.example/x.tar", ["data/archive"], None),
        ("README.md", ["data/archive"], None),
    ],
)
def test_verify_takes_an_archive_that_is_not_in_git_from_the_working_tree(
    tree, capsys, url, here, used
):
    edit(tree / "params.yaml", "url: data/mnist_sample.tgz", f"url: {url}")
    working = tree.parent / "another/working"
    (working / "data").mkdir(parents=True)
    for name in here:
        (working / name).write_text(name, "utf-8")
    if isinstance(used, str):
        assert used in refusal(verify.link_archives, working, tree)
        return
    verify.link_archives(working, tree)
    linked = [str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_symlink()]
    assert linked == [url] * (used is not None)
    for name in linked:
        assert (tree / name).read_text("utf-8") == here[used]
        line = f"{url} is not in Git: using {here[used]} of the working tree\n"
        assert capsys.readouterr().out == line


def test_verify_finds_each_of_several_archives(tree, tmp_path):
    urls = ["https://a.example/0.tar", "1.tar", "mine/2.tar", "README.md"]
    section = {"url": urls, "sha256": [f"{i:064}" for i in range(4)]}
    (tree / "params.yaml").write_text(yaml.safe_dump({"download": section}), "utf-8")
    working = tmp_path / "working"
    (working / "data/archive").mkdir(parents=True)
    for name in ("1.tar", "data/archive/0001", "data/archive/0002"):
        (working / name).write_text(name, "utf-8")
    verify.link_archives(working, tree)
    linked = {p: p.read_text("utf-8") for p in tree.rglob("*") if p.is_symlink()}
    expected = {"1.tar": "1.tar", "mine/2.tar": "data/archive/0002"}
    assert linked == {tree / url: text for url, text in expected.items()}
