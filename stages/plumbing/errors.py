"""Errors a user can cause, each reported on one line."""

import errno
import os
import sys

from hermetic import UndeclaredAccess

OUT_OF_MEMORY = (
    "out of memory: use fewer classes (data.classes) or smaller images (data.size)"
)
REBUILD = "build it again with the library that this needs, or use another Python"
NO_AVX = (
    "JAX needs a processor with AVX: use another computer; if this is a virtual "
    "machine, let it have the host's processor (QEMU: -cpu host)"
)
TOO_MANY = (
    "cannot start more processes or threads: raise their limit (ulimit -u or -v, or "
    "Docker's --pids-limit)"
)


class UserError(Exception):
    """An error the user can fix; its text names the culprit and says what to do."""


def activation() -> str | None:
    """Say what to do if the environment is not the repository's; None if it is."""
    if os.path.realpath(sys.prefix) == os.path.realpath(".venv"):
        return None
    return "activate .venv, which make creates"


def damaged(path: str, reason: str) -> UserError:
    """Return the error to raise for a damaged file."""
    return UserError(
        f"{path} is damaged ({reason}): delete it and run dvc repro; if it comes back "
        "damaged, delete its copy in .dvc/cache, too (by its md5 in dvc.lock)"
    )


class Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP; not an Exception, so that no library swallows it."""


def one_line(error: BaseException) -> str | None:
    """Describe an error on one line; return None for a bug, which needs a traceback."""
    match error:
        case UserError() | Stopped() | UndeclaredAccess():
            text = str(error)
        case ModuleNotFoundError(name=str(name)) if name in sys.stdlib_module_names:
            text = f"this Python was built without {name}: {REBUILD}"
        case ModuleNotFoundError(name=str(name)) if advice := activation():
            text = f"{name} is not installed in {sys.prefix}: {advice}"
        case MemoryError() | OSError(errno=errno.ENOMEM):
            text = OUT_OF_MEMORY
        case _ if "RESOURCE_EXHAUSTED" in str(error):  # from JAX, as any type
            text = OUT_OF_MEMORY
        case BlockingIOError(filename=None):  # from fork
            text = TOO_MANY
        case RuntimeError() if "jaxlib was built using AVX" in str(error):
            text = NO_AVX
        case RuntimeError() if str(error) == "can't start new thread":
            text = TOO_MANY
        case OSError(strerror=reason, filename=name) if reason:
            text = f"{os.fsdecode(name)}: {reason}" if name else reason
        case _:
            return None
    return " ".join(text.split())  # a file name, too, can hold a newline
