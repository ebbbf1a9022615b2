"""Start and end a process: pinned environment, hermetic stage, one-line errors."""

import atexit
import gc
import io
import os
import re
import signal
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import hermetic
from stages.plumbing.errors import Stopped, UserError, activation, one_line

LOCK = "requirements.txt"
CACHE = os.path.join(sys.prefix, "cache")
"""Compiled programs, kept in the environment because they depend on its versions."""

SCRATCH = ".dvc/tmp/scratch"
"""The folder for large temporary files, on the repository's disk."""

# Environment variables with these prefixes can change results unnoticed by DVC. Drop
# them, then set PINNED. To use an accelerator, edit JAX_PLATFORMS here: every stage
# depends on this file, so DVC reruns them.
DROPPED = ("JAX_", "XLA_", "NPY_", "OPENBLAS_CORETYPE")
PINNED = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": os.path.join(CACHE, "jax"),
    # By default, JAX does not cache what compiles in under a second.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    # With threads, the fork in preprocess could hang, and sums in report would vary.
    "OPENBLAS_NUM_THREADS": "1",
}
if os.uname().machine == "x86_64":
    # The SIMD width determines the order of summation. Pinned to AVX2, every x86-64
    # processor writes the same bytes.
    PINNED["XLA_FLAGS"] = "--xla_cpu_max_isa=AVX2"

TRUSTED = (
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "OPENSSL_CONF"),
    "NETRC",
)
"""Environment variables that name what a company's network needs."""

LAUNCHERS = {
    # The variable set for every process, and the launcher that sets it.
    "OMPI_COMM_WORLD_RANK": "mpirun of Open MPI 4",
    "SLURM_STEP_NODELIST": "srun of Slurm",
    "JOB_COMPLETION_INDEX": "a Kubernetes job, with jax[k8s] installed",
}

STOPS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal was closed",
}
_stopped: Stopped | None = None


def start(stage: str) -> None:
    """Pin the environment, and allow only what dvc.yaml declares for the stage.

    Raises UserError if an installed package differs from the lock or the path of the
    repository cannot be decoded, and hermetic.UndeclaredAccess if dvc.yaml has no such
    stage.
    """
    explain_errors(stage)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a stage has files to remove
    if re.search("[\udc80-\udcff]", folder := os.getcwd()):
        # Bytes that Python could not decode: XLA would crash with std::bad_cast.
        raise UserError(
            f"the path {folder} is not valid {sys.getfilesystemencoding()}: rename the "
            "folder, or use a UTF-8 locale and unset PYTHONUTF8"
        )
    pin()
    # Compiled programs only save time; that folder may be full or read-only.
    warnings.filterwarnings("ignore", r"Error .+ compilation cache .+Error: \[Errno")
    # A stage is short and allocates mostly modules. With the default threshold, a fifth
    # of its time would go into searching them for garbage.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)  # no search at exit, either
    hermetic.enforce(stage, allow=allowed(stage), read=readable(stage))
    # After `enforce`, which checks that dvc.yaml declares the lock.
    site_packages = os.listdir(sysconfig.get_path("purelib"))
    check_environment(Path(LOCK).read_text("utf-8"), site_packages)


def pin() -> None:
    """Pin the environment variables that NumPy and JAX will read when imported."""
    for name in [name for name in os.environ if name.startswith(DROPPED)]:
        del os.environ[name]
    os.environ.update(PINNED)


def allowed(stage: str) -> list[str]:
    """Return what a stage may write and read beyond what dvc.yaml declares."""
    places = [f"{CACHE}/"]
    if stage == "preprocess":
        places.append(f"{SCRATCH}/")
    if stage == "download":  # its only sources: the digests pin their content
        from stages.plumbing import parameters

        keys = os.environ.get("SSLKEYLOGFILE")  # which TLS writes, for Wireshark
        places += [*parameters.load(parameters.Download).digests, *filter(None, [keys])]
    if launcher():
        places.append("tcp://")
    return places


def readable(stage: str) -> list[str]:
    """Return what a stage may only read."""
    if stage != "download":
        return [*_library_folders()]
    named = (os.environ.get(name) for name in TRUSTED)
    return [*_library_folders(), *filter(None, named), "~/.netrc", "~/_netrc"]


def _library_folders() -> Iterator[str]:
    """Yield the folders outside the repository that ld.so searches first."""
    root = os.getcwd()
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        real = os.path.realpath(folder)
        if os.path.isdir(real) and os.path.commonpath([real, root]) not in (real, root):
            yield real


def launcher() -> str | None:
    """Return the variable that a launcher of several processes set, or None."""
    return next((name for name in LAUNCHERS if name in os.environ), None)


def check_environment(lock: str, installed: Iterable[str]) -> None:
    """Raise UserError if an installed package has another version than the lock.

    `lock` is the text of requirements.txt; `installed` lists the folders in
    site-packages, among them NAME-VERSION.dist-info.
    """
    pins = re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE)
    locked = {(name.replace("-", "_"), version) for name, version in pins}
    names = {name for name, _ in locked}
    for folder in installed:
        name, _, version = folder.removesuffix(".dist-info").partition("-")
        name = re.sub(r"[-.]", "_", name.lower())
        if not folder.endswith(".dist-info") or name not in names:
            continue
        if (name, version) not in locked:
            raise UserError(
                f"{name} {version} is installed, but {LOCK} locks another version: "
                f"{activation() or 'run make'}, or install {LOCK}"
            )


def explain_errors(command: str) -> None:
    """From now on, print an error the user can fix as one line: `command: error`.

    SIGINT, SIGTERM and SIGHUP raise Stopped, which is such an error, unless the caller
    ignores them, as nohup does; in `| head`, the process ends silently. Characters that
    the terminal cannot encode are printed as backslash escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            _name_errors(stream)

    def explain(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        # A library may have wrapped Stopped in an error of its own.
        text = one_line(_stopped or error)
        if text is None:
            sys.__excepthook__(kind, error, trace)
            return
        print(f"{command}: {text}", file=sys.stderr)
        sys.excepthook = lambda *_: None  # one line, even if more errors follow
        sys.unraisablehook = lambda _: None

    sys.excepthook = explain
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _name_errors(stream: io.TextIOWrapper) -> None:
    """Let errors in writing, as on a full disk, name the stream."""
    write = stream.write

    def write_or_name(text: str) -> int:
        try:
            return write(text)
        except OSError as error:
            error.filename = stream.name
            raise

    stream.write = write_or_name  # type: ignore[method-assign]


def _stop(number: int, _: object) -> None:
    global _stopped
    if not _stopped:  # a second signal must not interrupt the handling of the first
        _stopped = Stopped(f"{STOPS[signal.Signals(number)]}, nothing was written")
        raise _stopped


def _unraisable(dropped: Any) -> None:
    """End the process if C code that called Python ignores Stopped."""
    if isinstance(dropped.exc_value, Stopped):
        give_up(dropped.exc_value)
    sys.__unraisablehook__(dropped)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Block the STOPS: interrupting the import of a C library crashes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def give_up(error: BaseException) -> NoReturn:
    """Print the error and end at once, without waiting for threads or exit handlers."""
    sys.excepthook(type(error), error, error.__traceback__)
    os._exit(1)
