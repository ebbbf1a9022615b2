"""A stage reads and writes what dvc.yaml declares for it, or it is refused.

DVC reruns a stage when something that dvc.yaml declares has changed; it cannot know
what the stage really reads. `enforce` makes the two the same. From then on, reading a
file of the repository needs a line in `deps`, writing one needs a line in `outs` (or
`metrics` or `plots`), reading a value of a parameter file needs a line in `params`,
and importing a module of the repository needs that module in `deps`. All other modules
come from the standard library or the environment that runs the stage. The network and
files outside the repository are out of reach, unless `enforce` allows them. The refusal
names the stage, the path and the line to add.

To use it in a pipeline of your own, copy this folder and call `enforce()` before the
stage's other imports; it needs nothing but PyYAML, which DVC brings.

How: Python tells an audit hook (PEP 578) what it is about to do, and the hook may
refuse. On Linux, the kernel (Landlock) refuses the files that C code and other programs
open, too; elsewhere, programs may not be started. Neither sees stat and exists, and
both guard against mistakes, not against attackers.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import values
from .declaration import Declaration, UndeclaredAccess, declaration
from .guard import RECORD, WATCHED, Guard
from .sandbox import Hold, temporary

__all__ = [
    "Declaration",
    "Guard",
    "UndeclaredAccess",
    "declaration",
    "enforce",
    "protection",
    "read_params",
    "refusal",
    "remove_temporary_files",
    "temporary",
]

FOLDER = "HERMETIC_FOLDER"
"""The variable that tells a started Python where its stage is described."""

_guard: Guard | None = None  # one per process: an audit hook cannot be removed
_hold: Hold | None = None  # of this process and of what it starts
_owner = 0  # the process that made the folder for temporary files


def enforce(stage: str | None = None, allow: Sequence[str] = ()) -> Guard | None:
    """Hold this process to `declaration(stage)`; if that is None, do nothing.

    `allow` lists what else the stage may use, on the word of the pipeline's owner:
    files and folders to read and write (`~` is the home; a folder with a slash at its
    end is made if it is missing), and URLs, any of which allows the network. Raises
    UndeclaredAccess if a module is imported already that is not declared and not installed,
    and from then on for everything else. After a refusal of a module, or of anything
    inside the repository, nothing can be written, and the exit status is 1 even if the
    error was swallowed, by this process or by one that it started.
    """
    global _guard, _hold, _owner
    if _guard:
        return _guard
    if folder := os.environ.get(FOLDER):  # of the process that started this one
        _guard = _inherit(folder)
    elif declared := declaration(stage):
        folder = os.path.realpath(tempfile.mkdtemp(prefix="hermetic-"))
        _guard, _owner = Guard(declared, folder, allow), os.getpid()
    else:
        return None
    atexit.register(_end)
    if RECORD in os.environ:
        for dep in _guard.declared.deps:
            _guard.record(dep)
        for param in _guard.declared.params:
            _guard.record(param)
    _guard.check_read(os.path.dirname(__file__))
    for module in list(sys.modules.values()):
        if isinstance(file := getattr(module, "__file__", None), str):
            _guard.check_read(file, is_module=file.endswith(".so"))
    if not _guard.is_held:
        _hold = _guard.hold()
    if _hold and _hold.is_on:
        _describe(_guard)
    tempfile.tempdir = os.environ["TMPDIR"] = _guard.folder
    if os.environ.get("HERMETIC") == "verbose":
        stage = _guard.declared.stage
        print(f"stage {stage} is held by {protection()}", file=sys.stderr)
    guard = _guard

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED:  # there are tens of thousands of others
            guard(event, arguments)

    sys.addaudithook(hook)
    return guard


def protection() -> str:
    """Return what holds this process to dvc.yaml, in a few words."""
    if not _guard:
        return "nothing"
    return "Python's audit hook" + (" and the kernel" if _guard.is_held else "")


def _describe(guard: Guard) -> None:
    """Leave to the Pythons that this one will start what they may no longer read."""
    texts = {file: text for file, text in guard.texts.items() if type(text) is bytes}
    fields = [list(f) if isinstance(f, frozenset) else f for f in guard.declared]
    description = repr((fields, guard.allow, texts))
    Path(guard.folder, "description").write_text(description, "utf-8")
    os.environ[FOLDER] = guard.folder


def _inherit(folder: str) -> Guard:
    text = Path(folder, "description").read_text("utf-8")
    from ast import literal_eval

    fields, allow, texts = literal_eval(text)
    stage, root, base, *sets = fields
    declared = Declaration(stage, root, base, *map(frozenset, sets))
    guard = Guard(declared, folder, allow, texts)
    guard.is_held = True
    return guard


def refusal(error: BaseException | None = None) -> UndeclaredAccess | None:
    """Return the first refusal that is remembered; libraries may have wrapped it.

    Or else what the kernel may have denied, if that can have led to this error.
    """
    if not _guard:
        return None
    told = _guard.refusal
    if not told and error and _hold:
        told = _hold.explain(error)
    return told


def _end() -> None:
    """Fail the process if it hid a refusal, or wrote what dvc.yaml does not declare."""
    # Python sets last_value to the error that ended the program.
    raised = getattr(sys, "last_value", None)
    told = refusal(raised)
    if _guard:
        _guard.is_over = True
    if _hold and os.getpid() == _owner and not raised and not told:
        told = _hold.stray()
    remove_temporary_files()
    if told and not isinstance(raised, UndeclaredAccess):
        sys.excepthook(type(told), told, None)
    if told and not raised:
        sys.stdout.flush()
        os._exit(1)


def remove_temporary_files() -> None:
    """Remove what the guard made for this process; for ends that skip atexit."""
    if _guard and os.getpid() == _owner:
        _guard.is_over = True
        shutil.rmtree(_guard.folder, ignore_errors=True)
        if _hold:
            _hold.release()


def read_params(key: str = "", file: str = "params.yaml") -> Any:
    """Read a dotted key of a parameter file; outside a guarded stage, any key.

    Where a stage declares only some keys below this one, a mapping of these; without a
    key, of all that it declares. Raises UndeclaredAccess if the stage declares none, KeyError
    if the file lacks it, and OSError, UnicodeDecodeError or what the format's parser
    raises if the file cannot be read.
    """
    if _guard:
        return _guard.read_params(key, file)
    parsed = values.parse(Path(file).read_text("utf-8-sig"), file)
    return values.select(parsed, {"*"}, key, KeyError)
