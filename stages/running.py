"""How a stage starts and ends: a pinned environment, the guard, and errors of one line."""

import atexit
import gc
import os
import platform
import re
import signal
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from stages import hermetic

LOCK = "requirements.txt"
CACHE = os.path.join(sys.prefix, "cache")
"""Where libraries keep what only saves them time: in the environment, whose versions it belongs to."""

# Variables that change results although nothing declares them: those that begin like this are dropped, then
# PINNED are set. To compute on an accelerator edit JAX_PLATFORMS here; every stage depends on this file.
DROPPED = ("JAX_", "XLA_", "MPL", "MATPLOTLIB", "NPY_", "OPENBLAS_CORETYPE")
PINNED = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": os.path.join(CACHE, "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": os.path.join(CACHE, "matplotlib"),
}
if platform.machine() in ("x86_64", "AMD64"):
    # The widest vectors decide the order of a sum: with AVX2 for all, every x86-64 writes the same bytes.
    PINNED["XLA_FLAGS"] = "--xla_cpu_max_isa=AVX2"

STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Refusal(Exception):
    """An error that the user can mend: shown as one line that names the culprit and says what to do."""


class Stopped(BaseException):
    """The stage was told to end (SIGINT, SIGTERM); no Exception, which libraries take for theirs."""


def start() -> None:
    """Pin the environment, hold the stage to its declaration, and turn errors that a user can mend into a line.

    A module that no stage of dvc.yaml runs is not held to anything.
    """
    sys.excepthook = _explain
    sys.unraisablehook = _unraisable
    for number in STOPS:
        signal.signal(number, _stop)
    for name in [name for name in os.environ if name.startswith(DROPPED)]:
        del os.environ[name]
    os.environ.update(PINNED)
    # A stage is short, and what it allocates are modules: looking them through for garbage takes a fifth of its time.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    if hermetic.enforce(caches=[CACHE]):
        check_environment(Path(LOCK).read_text("utf-8"), os.listdir(sysconfig.get_path("purelib")))


def check_environment(lock: str, installed: Iterable[str]) -> None:
    """Raise Refusal if a package has another version than the lock, which is what the stages declare.

    `installed` are the names of the folders in site-packages, NAME-VERSION.dist-info among them.
    """
    locked = {
        (name.replace("-", "_"), version) for name, version in re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE)
    }
    names = {name for name, _ in locked}
    for folder in installed:
        name, _, version = folder.removesuffix(".dist-info").partition("-")
        name = re.sub(r"[-.]", "_", name.lower())
        if folder.endswith(".dist-info") and name in names and (name, version) not in locked:
            msg = f"{name} {version} is installed, but {LOCK} locks another version: run make, or install {LOCK}"
            raise Refusal(msg)


def one_line(error: BaseException) -> str | None:
    """What to tell the user about `error`; None for a bug, which deserves its traceback."""
    match error:
        case Refusal() | Stopped() | hermetic.Undeclared():
            text = str(error)
        case _ if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # the latter from JAX
            text = "out of memory: take fewer classes (data.classes) or smaller images (data.size)"
        case OSError(strerror=reason, filename=name) if reason:
            text = f"{name}: {reason}" if name else reason
        case _:
            return None
    return " ".join(text.split())


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (text := one_line(_stopped or hermetic.refusal() or error)) is None:
        sys.__excepthook__(kind, error, trace)
    else:
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else sys.argv[0]
        print(f"{module.rpartition('.')[2]}: {text}", file=sys.stderr)
        sys.excepthook, sys.unraisablehook = lambda *_: None, lambda _: None  # what follows from it need not be told


_stopped: Stopped | None = None


def _stop(number: int, _: object) -> None:
    global _stopped
    _stopped = Stopped(f"{STOPS[signal.Signals(number)]}, nothing was written")
    if not hasattr(sys.modules["__main__"], "main"):  # a library in C that is being imported would crash
        give_up(_stopped)
    raise _stopped


def _unraisable(dropped: Any) -> None:
    """C code that calls Python may drop what it raises: then the stage would go on."""
    if isinstance(dropped.exc_value, Stopped):
        give_up(dropped.exc_value)
    sys.__unraisablehook__(dropped)


def give_up(error: BaseException) -> NoReturn:
    """End the stage at once, without what Python does on leaving."""
    _explain(type(error), error, None)
    os._exit(1)
