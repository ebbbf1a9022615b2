"""Killed, stopped, starved, damaged: outputs stay whole, and the error is one line."""

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import jax.numpy as jnp
import pytest
import yaml

from stages.plumbing import artifacts
from stages.plumbing.errors import OUT_OF_MEMORY, one_line
from stages.plumbing.runtime import CACHE, SCRATCH
from tests.conftest import IF_ROOT, contents, copy, edit, run, start
from tools.verify import outputs

FOLDERS = ("data", "models", "metrics")
Limit = tuple[int, int]
"""A resource and its limit."""


def start_stage(
    clone: Path, name: str, *prefix: str, limit: Limit | None = None
) -> subprocess.Popen[str]:
    return start(clone, *prefix, "python", "-m", "stages", name, limit=limit)


def fail(clone: Path, name: str, *prefix: str, limit: Limit | None = None) -> str:
    """Run a stage that fails with one line; return it without the stage's name."""
    process = start_stage(clone, name, *prefix, limit=limit)
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors.count("\n")) == (1, 1), errors
    assert errors.startswith(f"{name}: ")
    return errors.removeprefix(f"{name}: ").strip()


def assert_repro_mends(clone: Path) -> None:
    """`dvc repro` succeeds, keeps dvc.lock, and the outputs are those it names."""
    lock = (clone / "dvc.lock").read_bytes()
    done = run(clone, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "dvc.lock").read_bytes() == lock
    for path, md5 in outputs(clone / "dvc.lock").items():
        assert hashlib.md5((clone / path).read_bytes()).hexdigest() == md5, path


@pytest.fixture
def unchanged(lent: Path) -> Iterator[Path]:
    """A clone whose outputs a fault must leave as they were, with nothing beside."""
    before = contents(lent, *FOLDERS)
    yield lent
    assert contents(lent, *FOLDERS) == before


# Killed

CHANGES: dict[str, Callable[[Path], object]] = {
    "download": lambda clone: (clone / "data/archive").write_bytes(b"earlier"),
    "preprocess": lambda clone: edit(clone / "params.yaml", '["3", "7"]', '["7", "3"]'),
    "train": lambda clone: edit(clone / "params.yaml", "seed: 42", "seed: 43"),
    "report": lambda clone: edit(clone / "params.yaml", "mistakes: 24", "mistakes: 8"),
}
"""Make a stage write other bytes than those that are there."""
KILLS = {"dvc": 4, "report": 3, "train": 3, "preprocess": 4, "download": 36}
"""How often to kill; a stage comes before those whose outputs it reads."""


@pytest.mark.slow
def test_kill_9_leaves_whole_outputs_and_the_next_repro_mends_the_rest(built, tmp_path):
    """Kill stages about to replace their outputs, and dvc, whose stage lives on."""
    assert sum(KILLS.values()) >= 50

    def kill(*names: str) -> None:
        clone = copy(built, tmp_path / names[0] / "a clone")
        for name in names:
            kill_it = kill_dvc if name == "dvc" else kill_stage
            kill_it(clone, name, random.Random(name))
            shutil.copy(built / "params.yaml", clone)
        assert_repro_mends(clone)

    first, *rest = KILLS
    with ThreadPoolExecutor(2) as pool:
        for done in (pool.submit(kill, first), pool.submit(kill, *rest)):
            done.result()


def until(count: int, attempt: Callable[[], bool]) -> None:
    """Repeat an attempt until it has succeeded `count` times."""
    for _ in range(3 * count):
        count -= attempt()
        if not count:
            return
    pytest.fail("it ends before it is killed")


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill a process; return False if it has ended before."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    return process.wait() == -signal.SIGKILL


def kill_dvc(clone: Path, name: str, chance: random.Random) -> None:
    """Kill dvc, not the stage that it started, and run it again at once."""

    def kill_once() -> bool:
        stage = chance.choice(["download", "preprocess"])
        process = start(clone, "dvc", "repro", "--force", "--single-item", stage)
        killed = kill_after(process, chance.uniform(0.2, 2))
        if "\n  report:\n" not in (clone / "dvc.lock").read_text("utf-8"):
            # DVC writes its lock in place; killed just then, it leaves a part.
            assert run(clone, "git", "checkout", "--quiet", "dvc.lock").returncode == 0
        with suppress(FileNotFoundError):  # likewise, its list of who reads and writes
            if not (rwlock := clone / ".dvc/tmp/rwlock").read_text("utf-8"):
                rwlock.unlink()
        assert_repro_mends(clone)
        return killed

    until(KILLS[name], kill_once)


def kill_stage(clone: Path, name: str, chance: random.Random) -> None:
    """Kill a stage again and again; its outputs are always the old or the new ones."""
    lock = yaml.safe_load((clone / "dvc.lock").read_text("utf-8"))
    outs = [out["path"] for out in lock["stages"][name]["outs"]]
    CHANGES[name](clone)
    before = contents(clone, *FOLDERS)
    begun = time.monotonic()
    assert start_stage(clone, name).wait() == 0
    took = time.monotonic() - begun
    after = contents(clone, *FOLDERS)
    assert any(before[path] != after[path] for path in outs)

    def traces() -> list[int]:
        """Return what changes as soon as the stage makes its temporary files."""
        return [(clone / path).parent.stat().st_mtime_ns for path in outs]

    def kill_once() -> bool:
        for path in outs:
            (clone / path).write_bytes(before[path])
        seen = traces()
        process = start_stage(clone, name)
        seconds = took * chance.random()
        if chance.random() < 0.5:  # while it writes, which takes milliseconds
            seconds = chance.uniform(0, 0.01)
            while traces() == seen and process.poll() is None:
                time.sleep(0.0002)
        killed = kill_after(process, seconds)
        for path, content in contents(clone, *FOLDERS).items():
            if path in before:
                assert content in (before[path], after[path]), path
        return killed

    until(KILLS[name], kill_once)


def test_two_writers_of_one_output_take_turns(tmp_path, monkeypatch):
    """dvc was killed and started again while the first stage is still writing."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("slow")
    out = tmp_path / "data/out"
    first, second = b"1" * 200_000, b"2" * 100_000
    writers = [
        threading.Thread(target=artifacts.publish, args=({"data/out": content},))
        for content in (Path("slow"), second)
    ]
    writers[0].start()
    with open("slow", "wb") as slow:
        slow.write(first[:150_000])
        writers[1].start()
        writers[1].join(0.3)
        assert not out.exists() or out.read_bytes() == second
        slow.write(first[150_000:])
    for writer in writers:
        writer.join()
    assert out.read_bytes() in (first, second)
    assert os.listdir("data") == ["out"]


# Stopped


@pytest.mark.parametrize(
    ("sign", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")]
)
@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("preprocess", "data/archive"),
        ("baseline", "data/tensors.npz"),
        ("train", "libjax_common.so"),
        ("report", "data/tensors.npz"),
    ],
)
def test_a_stopped_stage_says_so_in_one_line(unchanged, name, reading, sign, word):
    """While it reads, or starts to compute."""
    for _ in range(3):
        process = start_stage(unchanged, name)
        while not has_open(process.pid, reading):
            assert process.poll() is None
        process.send_signal(sign)
        errors = process.communicate(timeout=60)[1]
        if process.returncode:  # or it ended first, on a machine that is busy
            break
    assert errors == f"{name}: {word}, nothing was written\n"
    assert process.returncode == 1


def has_open(pid: int, name: str) -> bool:
    """Whether a process has opened a file or mapped a library of this name."""
    with suppress(OSError):
        if name.endswith(".so"):
            return name in Path(f"/proc/{pid}/maps").read_text()
        links = Path(f"/proc/{pid}/fd").iterdir()
        return any(name in os.readlink(link) for link in links)
    return False


# Starved


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("download", "data/archive"),
        ("preprocess", SCRATCH),
        ("report", "metrics/predictions.csv"),
    ],
)
def test_a_file_that_cannot_grow_is_one_line(unchanged, name, file):
    limit = resource.RLIMIT_FSIZE, 20_000
    assert fail(unchanged, name, limit=limit) == f"{file}: File too large"


LIMITED = """
import runpy, sys, threading
def start(thread): raise RuntimeError("can't start new thread")
threading.Thread.start = start
sys.argv = ["stages", "train"]
runpy.run_module("stages", run_name="__main__")
"""


def test_a_limit_on_threads_is_one_line(unchanged):
    """Before JAX starts its own: it would abort, and print a C++ stack."""
    done = run(unchanged, "python", "-c", LIMITED)
    line = "train: cannot start more processes or threads: raise their limit"
    assert done.stderr.startswith(line)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_cache_of_compiled_programs_that_cannot_be_written_is_no_matter(clone):
    os.makedirs(CACHE, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=CACHE) as no_folder:
        script = clone / "stages/plumbing/runtime.py"
        edit(script, 'os.path.join(CACHE, "jax")', f'"{no_folder.name}/jax"')
        done = run(clone, "python", "-m", "stages", "train")
    assert (done.returncode, done.stderr) == (0, "")


FULL_DISK = """
mkdir -p {folder} && mount -t tmpfs -o size={size} none {folder} || exit 99
echo earlier >{out} || exit 99
python -m stages {stage}
code=$?
ls -A {folder}
cat {out}
exit $code
"""


@pytest.mark.parametrize(
    ("stage", "folder", "size", "out", "left"),
    [
        ("train", "models", "8k", "models/model.npz", ["model.npz"]),
        ("preprocess", SCRATCH, "64k", "data/tensors.npz", []),
    ],
)
def test_a_full_disk_is_one_line(clone, stage, folder, size, out, left):
    """On a small file system, which a namespace of its own may mount."""
    script = FULL_DISK.format(folder=folder, size=size, out=out, stage=stage)
    namespace = ["unshare", "--map-root-user", "--mount"]
    process = start(clone, *namespace, "sh", "-c", script)
    output, errors = process.communicate(timeout=60)
    if process.returncode == 99 or "unshare" in errors:
        pytest.skip("no file system can be mounted here")
    assert process.returncode == 1
    full = out if folder == "models" else folder
    assert errors == f"{stage}: {full}: No space left on device\n"
    assert output.splitlines() == [*left, "earlier"]


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [("download", "data", "archive"), ("train", "models", "model.npz")],
)
def test_a_folder_that_may_not_be_written_is_one_line(unchanged, name, folder, file):
    true = [*IF_ROOT, "true"]
    if subprocess.run(true, check=False, capture_output=True).returncode:
        pytest.skip("root keeps its capabilities here")
    (unchanged / folder).chmod(0o555)
    try:
        line = fail(unchanged, name, *IF_ROOT)
        assert line == f"{folder}/.{file}.tmp: Permission denied"
    finally:
        (unchanged / folder).chmod(0o755)


@pytest.mark.parametrize("spare", range(3))
def test_out_of_file_handles_is_one_line(tmp_path, monkeypatch, spare):
    """Publishing takes three: for the lock, the source and the temporary."""
    monkeypatch.chdir(tmp_path)
    artifacts.publish({"data/out": b"earlier"})
    Path("source").write_bytes(b"later")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as failed:
            artifacts.publish({"data/out": Path("source")})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert str(one_line(failed.value)).endswith(": Too many open files")
    assert contents(tmp_path, "data") == {"data/out": b"earlier"}


def test_out_of_memory_is_one_line(unchanged):
    before = (unchanged / "params.yaml").read_text("utf-8")
    edit(unchanged / "params.yaml", "size: null", "size: [128, 128]")
    limit = resource.RLIMIT_AS, 300 * 2**20
    try:
        # On one processor: workers would have to do without the memory for threads.
        one = ["taskset", "--cpu-list", "0"]
        assert fail(unchanged, "preprocess", *one, limit=limit) == OUT_OF_MEMORY
    finally:
        (unchanged / "params.yaml").write_text(before, "utf-8")


def test_out_of_device_memory_is_one_line():
    with pytest.raises(RuntimeError) as failed:
        jnp.zeros(10**14, "uint8")
    assert one_line(failed.value) == OUT_OF_MEMORY


# Damaged


def test_a_truncated_tensor_file_is_refused_and_comes_back(clone):
    file = clone / "data/tensors.npz"
    whole = file.read_bytes()
    for keep in (0, -1):
        file.write_bytes(whole[:keep])
        line = fail(clone, "baseline")
        assert line.startswith("data/tensors.npz is damaged (")
        assert ": delete it and run dvc repro;" in line
    assert_repro_mends(clone)


def test_tensors_that_the_disk_has_spoilt_are_refused(clone):
    """DVC trusts a read-only object in its cache; the CRC in the npz file does not."""
    md5 = outputs(clone / "dvc.lock")["data/tensors.npz"]
    cached = clone / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    content = bytearray(cached.read_bytes())
    content[1000:1006] = b"spoilt"
    cached.unlink()  # the clones have one copy of it
    cached.write_bytes(content)
    cached.chmod(0o444)
    (clone / "data/tensors.npz").unlink()
    run(clone, "dvc", "repro", "preprocess")
    assert "data/tensors.npz is damaged (Bad CRC-32" in fail(clone, "baseline")
