"""Killed, stopped, starved, tampered with: outputs stay whole, `dvc repro` mends them.

The faults: SIGKILL, SIGTERM, SIGINT; too little disk, memory or file handles; outputs
and cached objects that a person or the disk has changed.
"""

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import jax.numpy as jnp
import pytest

from stages.plumbing import artifacts
from stages.plumbing.errors import one_line
from stages.plumbing.runtime import SCRATCH
from tests.conftest import contents, copy, edit, environment, home, run
from tools.verify import outputs

FOLDERS = ("data", "models", "metrics")
OUTS = {
    "download": ["data/archive"],
    "preprocess": ["data/tensors.npz"],
    "baseline": ["models/baseline.npz", "metrics/baseline.json"],
    "train": ["models/model.npz", "metrics/history.csv", "metrics/sensitivity.json"],
    "report": [
        "metrics/predictions.csv",
        "metrics/model.json",
        "metrics/report.html",
        "metrics/means.png",
    ],
}
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
"""Drop root's capabilities: file permissions then hold for root as well."""
IF_ROOT = UNPRIVILEGED if os.geteuid() == 0 else []
OUT_OF_MEMORY = (
    "out of memory: take fewer classes (data.classes) or smaller images (data.size)"
)
Limit = tuple[int, int]
"""A resource and its limit."""


def start(
    clone: Path, *command: str, limit: Limit | None = None
) -> subprocess.Popen[str]:
    """Start a command in a session of its own, with a resource limit."""

    def set_limit() -> None:
        assert limit
        resource.setrlimit(limit[0], (limit[1], limit[1]))

    return subprocess.Popen(
        command,
        cwd=clone,
        env=environment(**home(clone)),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=set_limit if limit else None,
    )


def start_stage(
    clone: Path, name: str, *prefix: str, limit: Limit | None = None
) -> subprocess.Popen[str]:
    return start(clone, *prefix, "python", "-m", "stages", name, limit=limit)


def run_stage(
    clone: Path, name: str, *prefix: str, limit: Limit | None = None
) -> tuple[int, list[str]]:
    """Run a stage by hand; return its exit status and its lines on stderr."""
    process = start_stage(clone, name, *prefix, limit=limit)
    lines = process.communicate(timeout=60)[1].splitlines()
    return process.returncode, lines


def assert_repro_mends(clone: Path) -> None:
    """`dvc repro` succeeds, keeps dvc.lock, and the outputs are those it names."""
    lock = (clone / "dvc.lock").read_bytes()
    done = run(clone, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "dvc.lock").read_bytes() == lock
    for path, md5 in outputs(clone / "dvc.lock").items():
        assert hashlib.md5((clone / path).read_bytes()).hexdigest() == md5, path


def cached(clone: Path, path: str) -> Path:
    """Return the object in DVC's cache that holds an output."""
    md5 = outputs(clone / "dvc.lock")[path]
    return clone / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


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
FORCED = {
    stage: ["dvc", "repro", "--force", "--single-item", stage]
    for stage in ("download", "preprocess")
}
"""What dvc is killed in the midst of."""
KILLS = {"dvc": 5, "preprocess": 7, "train": 3, "report": 3, "download": 32}


@pytest.mark.slow
def test_kill_9_leaves_whole_outputs_and_the_next_repro_mends_the_rest(built, tmp_path):
    """Kill stages about to replace their outputs, and dvc, whose stage lives on.

    Two at a time.
    """
    with ThreadPoolExecutor(2) as pool:
        counts = pool.map(lambda name: kill(built, tmp_path / name, name), KILLS)
        killed = dict(zip(KILLS, counts, strict=True))
    assert killed == KILLS
    assert sum(killed.values()) >= 50


def kill(built: Path, folder: Path, name: str) -> int:
    """Kill dvc or a stage at random moments; return how often."""
    chance = random.Random(name)
    clone = copy(built, folder / "a clone")
    if name == "dvc":
        took = {stage: seconds_of_dvc(clone, stage) for stage in FORCED}
        until(KILLS[name], lambda: kill_dvc(clone, chance, took))
    else:
        kill_stage(clone, name, chance)
        shutil.copy(built / "params.yaml", clone)
        assert_repro_mends(clone)
    return KILLS[name]


def seconds_of_dvc(clone: Path, stage: str) -> float:
    """Return how long dvc takes to run a stage."""
    begun = time.monotonic()
    assert start(clone, *FORCED[stage]).wait() == 0
    return time.monotonic() - begun


def kill_dvc(clone: Path, chance: random.Random, took: dict[str, float]) -> bool:
    """Kill dvc, not the stage that it started, and run it again at once."""
    stage = chance.choice([*FORCED])
    process = start(clone, *FORCED[stage])
    killed = kill_after(process, chance.uniform(0.2, took[stage]))
    if "\n  report:\n" not in (clone / "dvc.lock").read_text("utf-8"):
        # DVC writes its lock in place: killed just then, it leaves a part. Git has it.
        assert run(clone, "git", "checkout", "--quiet", "dvc.lock").returncode == 0
    assert_repro_mends(clone)
    return killed


def kill_stage(clone: Path, name: str, chance: random.Random) -> None:
    """Kill a stage again and again; its outputs are always the old or the new ones."""
    CHANGES[name](clone)
    before = contents(clone, *FOLDERS)
    begun = time.monotonic()
    assert run_stage(clone, name)[0] == 0
    took = time.monotonic() - begun
    after = contents(clone, *FOLDERS)
    assert any(before[path] != after[path] for path in OUTS[name])

    def kill_once() -> bool:
        for path in OUTS[name]:
            (clone / path).write_bytes(before[path])
        seen = traces(clone, name)
        process = start_stage(clone, name)
        seconds = took * chance.random()
        if chance.random() < 0.5:  # while it writes, which takes milliseconds
            seconds = chance.uniform(0, 0.01)
            while traces(clone, name) == seen and process.poll() is None:
                time.sleep(0.0002)
        killed = kill_after(process, seconds)
        for path, content in contents(clone, *FOLDERS).items():
            if path in before:
                assert content in (before[path], after[path]), path
        return killed

    until(KILLS[name], kill_once)


def traces(clone: Path, name: str) -> list[tuple[int, int]]:
    """Return what changes as soon as a stage writes: its outputs and their folders.

    The folders change when it makes its temporaries.
    """
    files = [clone / path for path in OUTS[name]]
    states = [path.stat() for file in files for path in (file, file.parent)]
    return [(state.st_mtime_ns, state.st_size) for state in states]


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill a process; return False if it has ended before."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    return process.wait() == -signal.SIGKILL


def until(count: int, attempt: Callable[[], bool]) -> None:
    """Repeat an attempt until it has succeeded `count` times."""
    for _ in range(3 * count):
        count -= attempt()
        if not count:
            return
    pytest.fail("it ends before it is killed")


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


def assert_fails(
    clone: Path, name: str, text: str, *prefix: str, limit: Limit | None = None
) -> None:
    """A stage fails with one line."""
    code, lines = run_stage(clone, name, *prefix, limit=limit)
    assert lines == [f"{name}: {text}"]
    assert code == 1


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("download", OUTS["download"][0]),
        ("preprocess", SCRATCH),
        ("report", OUTS["report"][0]),
    ],
)
def test_a_file_that_cannot_grow_is_one_line(unchanged, name, file):
    limit = resource.RLIMIT_FSIZE, 20_000
    assert_fails(unchanged, name, f"{file}: File too large", limit=limit)


FULL_DISK = """
mkdir -p {folder} && mount -t tmpfs -o size={size} none {folder} || exit 99
echo earlier >{out} || exit 99
python -m stages {stage}
code=$?
ls -A {folder}
cat {out}
exit $code
"""
FULL_DISKS = {
    "for the out": ("train", "models", "8k", "models/model.npz"),
    "for what is decoded": ("preprocess", SCRATCH, "64k", SCRATCH),
}


@pytest.mark.parametrize(
    ("stage", "folder", "size", "told"), FULL_DISKS.values(), ids=FULL_DISKS
)
def test_a_full_disk_is_one_line(clone, stage, folder, size, told):
    """On a small file system, which a namespace of its own may mount."""
    out = OUTS[stage][0]
    script = FULL_DISK.format(folder=folder, size=size, out=out, stage=stage)
    namespace = ["unshare", "--map-root-user", "--mount"]
    process = start(clone, *namespace, "sh", "-c", script)
    output, errors = process.communicate(timeout=60)
    if process.returncode == 99 or "unshare" in errors:
        pytest.skip("no file system can be mounted here")
    assert process.returncode == 1
    assert errors == f"{stage}: {told}: No space left on device\n"
    left = [Path(out).name] if folder == "models" else []
    assert output.splitlines() == [*left, "earlier"]


@pytest.mark.parametrize("name", ["download", "train"])
def test_a_folder_that_may_not_be_written_is_one_line(unchanged, name):
    true = [*IF_ROOT, "true"]
    if subprocess.run(true, check=False, capture_output=True).returncode:
        pytest.skip("root keeps its capabilities here")
    out = Path(OUTS[name][0])
    text = f"{out.parent}/.{out.name}.tmp: Permission denied"
    (unchanged / out.parent).chmod(0o555)
    try:
        assert_fails(unchanged, name, text, *IF_ROOT)
    finally:
        (unchanged / out.parent).chmod(0o755)


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


def test_a_stage_with_few_file_handles_works_or_says_so(unchanged):
    """Five are the fewest with which Python starts."""
    code, lines = run_stage(unchanged, "report", limit=(resource.RLIMIT_NOFILE, 5))
    if code or lines:
        assert (code, len(lines)) == (1, 1)
        assert "Too many open files" in lines[0]


def test_out_of_memory_is_one_line(unchanged):
    before = (unchanged / "params.yaml").read_text("utf-8")
    edit(unchanged / "params.yaml", "size: null", "size: [128, 128]")
    limit = resource.RLIMIT_AS, 300 * 2**20
    try:
        assert_fails(unchanged, "preprocess", OUT_OF_MEMORY, limit=limit)
    finally:
        (unchanged / "params.yaml").write_text(before, "utf-8")


def test_out_of_device_memory_is_one_line():
    with pytest.raises(RuntimeError) as failed:
        jnp.zeros(10**14, "uint8")
    assert one_line(failed.value) == OUT_OF_MEMORY


# Tampered with


def test_deleted_outputs_come_back(clone):
    for path in (path for paths in OUTS.values() for path in paths):
        (clone / path).unlink()
    assert_repro_mends(clone)


def test_a_truncated_tensor_file_is_refused_and_comes_back(clone):
    file = clone / "data/tensors.npz"
    whole = file.read_bytes()
    for keep in (0, -1):
        file.write_bytes(whole[:keep])
        code, lines = run_stage(clone, "baseline")
        assert (code, len(lines)) == (1, 1)
        assert lines[0].startswith("baseline: data/tensors.npz is damaged (")
        assert lines[0].endswith("delete it and run dvc repro")
    assert_repro_mends(clone)


def test_objects_edited_in_the_cache_are_built_again(clone):
    """An editor leaves them writable, and DVC hashes those anew.

    It trusts a read-only one: what a disk spoils is found by the CRC in the npz file.
    """
    for path in ("data/archive", "data/tensors.npz"):
        spoil(cached(clone, path))
        (clone / path).unlink()
    assert_repro_mends(clone)


def test_tensors_that_the_disk_has_spoilt_are_refused(clone):
    spoil(cached(clone, "data/tensors.npz"), mode=0o444)
    (clone / "data/tensors.npz").unlink()
    run(clone, "dvc", "repro", "preprocess")
    code, lines = run_stage(clone, "baseline")
    assert (code, len(lines)) == (1, 1)
    assert "data/tensors.npz is damaged (Bad CRC-32" in lines[0]


def spoil(file: Path, mode: int = 0o644) -> None:
    """Change a few bytes."""
    file.chmod(0o644)
    with file.open("r+b") as content:
        content.seek(1000)
        content.write(b"spoilt")
    file.chmod(mode)


def test_two_repros_at_once_end_well_or_in_one_line(clone):
    command = ["dvc", "repro", "--force", "--single-item", "preprocess"]
    both = [start(clone, *command) for _ in range(2)]
    for process in both:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0 or errors.count("ERROR: ") == 1, errors
    assert any(process.returncode == 0 for process in both)
    assert_repro_mends(clone)
