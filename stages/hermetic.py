"""A stage reads and writes what dvc.yaml declares for it, or it is refused.

DVC reruns a stage when something that dvc.yaml declares has changed; it cannot know what the stage really
reads. `enforce` makes the two the same. From then on, reading a file inside the repository needs a line in
`deps`, writing one needs a line in `outs` (or `metrics` or `plots`), a value from a parameter file needs a
line in `params`, importing a module of the repository needs that module in `deps`, and other programs, the
network and other people's files are out of reach. The refusal names the stage, the path and the line to add.
To use it in a pipeline of your own, copy this file and call `enforce()` before the stage's other imports; it
needs nothing but PyYAML.

How: Python reports what it is about to do to an audit hook (PEP 578), which may refuse. That covers whatever
is done through Python, libraries included. Not covered: files that C code opens by itself (the tests run the
stages under strace to see that none does), stat and exists, paths opened relative to a `dir_fd`, and code that
sets out to deceive: this guards against mistakes, not against attackers.
"""

import atexit
import importlib.util
import itertools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SYSTEM = [
    "/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/proc", "/sys", "/dev", "/run",
    "/System", "/Library", "/private/etc",
]  # fmt: skip
TERMINALS = ["/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr"]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: dict[str, list[tuple[int, int | None]]] = {  # where the arguments have a path, and the dir_fd of its folder
    "os.rename": [(0, 2), (1, 3)],
    "os.link": [(0, 2), (1, 3)],
    "os.symlink": [(1, 2)],
    "os.remove": [(0, 1)],
    "os.rmdir": [(0, 1)],
    "os.mkdir": [(0, 2)],
    "os.chmod": [(0, 2)],
    "os.truncate": [(0, None)],
}
LISTINGS = {"os.listdir", "os.scandir"}
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}
SPAWNING = {
    "multiprocessing.popen_spawn_posix",
    "multiprocessing.popen_spawn_win32",
    "multiprocessing.popen_forkserver",
}
"""Modules that start a new, unguarded Python; a forked one inherits the guard."""
NETWORK = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}
WATCHED = frozenset({"open", "import", *CHANGES, *LISTINGS, *PROGRAMS, *NETWORK})


class Undeclared(PermissionError):
    """A stage touched what dvc.yaml does not declare for it; libraries take it for a lack of permission."""


@dataclass(frozen=True)
class Declaration:
    """What dvc.yaml declares for a stage. Paths are absolute."""

    stage: str
    root: str
    """The repository: the nearest folder with .dvc or .git, from that of dvc.yaml upwards."""
    base: str
    """The folder that the stage runs in and that its paths in dvc.yaml are relative to."""
    deps: frozenset[str]
    outs: frozenset[str]
    params: frozenset[tuple[str, str]]
    """Pairs of a parameter file and a key, dotted where nested; the key `*` is the whole file."""


class YamlLoader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML as DVC does: 3e-4 is a number (YAML 1.2), which PyYAML alone takes for a string."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def declaration(stage: str | None = None, folder: str = ".") -> Declaration | None:
    """What the dvc.yaml in `folder`, or in the nearest folder above that has the stage, declares for it.

    Without a name it is the stage that DVC is running, or else the stage whose command runs the module that
    this process was asked to run; None if there is none. Raises Undeclared for a name that is not there.
    Templates (`${…}`, `foreach`, `matrix`) are left to DVC itself, which takes half a second.
    """
    name = stage or os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    for above in [Path(folder).resolve(), *Path(folder).resolve().parents]:
        if (above / "dvc.yaml").is_file() and (found := _declared(name, str(above))):
            return found
        if (above / ".dvc").is_dir():
            break
    if name:
        msg = f"stage {name} is in no dvc.yaml in or above {folder}: set its wdir in or below the folder of dvc.yaml"
        raise Undeclared(msg)
    return None


def _declared(name: str, folder: str) -> Declaration | None:
    text = Path(folder, "dvc.yaml").read_text("utf-8")
    if re.search(r"\$\{|\bforeach:|\bmatrix:", text):
        return _resolved_by_dvc(name, folder)
    stages = (yaml.load(text, YamlLoader) or {}).get("stages") or {}
    name = name or next((name for name, entry in stages.items() if _runs_this_module(entry["cmd"])), "")
    if name not in stages:
        return None
    entry = stages[name]
    base = os.path.realpath(os.path.join(folder, entry.get("wdir", ".")))

    def listed(*kinds: str) -> frozenset[str]:
        items = [item for kind in kinds for item in entry.get(kind, [])]
        return frozenset(
            _absolute(path, base) for item in items for path in ([item] if isinstance(item, str) else item)
        )

    params = set()
    for item in entry.get("params", []):
        for file, keys in ({"params.yaml": [item]} if isinstance(item, str) else item).items():
            params |= {(_absolute(file, base), key) for key in keys or ["*"]}
    outs = listed("outs", "metrics", "plots")
    return Declaration(name, _repository(folder), base, listed("deps"), outs, frozenset(params))


def _repository(folder: str) -> str:
    above = [Path(folder), *Path(folder).parents]
    return next((str(path) for path in above if (path / ".dvc").is_dir() or (path / ".git").exists()), folder)


def _runs_this_module(command: str | list[str]) -> bool:
    words = [word for line in ([command] if isinstance(command, str) else command) for word in shlex.split(line)]
    asked = sys.orig_argv
    pairs = list(itertools.pairwise(words))
    return any(pair in pairs for pair in itertools.pairwise(asked) if pair[0] == "-m")


def _resolved_by_dvc(name: str, folder: str) -> Declaration | None:
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    for stage in Repo(folder).index.stages:
        if os.path.realpath(stage.path) != os.path.join(folder, "dvc.yaml"):
            continue
        if stage.name == name or (not name and _runs_this_module(stage.cmd)):
            params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
            return Declaration(
                stage.name,
                _repository(folder),
                os.path.realpath(stage.wdir),
                frozenset(dep.fs_path for dep in stage.deps if dep not in params),
                frozenset(out.fs_path for out in stage.outs),
                frozenset((dep.fs_path, key) for dep in params for key in dep.params or ["*"]),
            )
    return None


class Guard:
    """An audit hook that holds this process to a declaration."""

    def __init__(self, declared: Declaration, caches: Sequence[str] = ()) -> None:
        self.declared = declared
        self.used: set[str | tuple[str, str]] = set()
        """The deps and params that the stage has read so far."""
        self.permitted: set[str] = set()
        self.reading_params = False
        self._param_files = {file for file, _ in declared.params}
        self.refusal: Undeclared | None = None
        """The first refusal inside the repository; after it nothing may be written."""
        self._caches = [*caches, *(os.path.realpath(cache) for cache in caches)]
        self._temporary_outs = {temporary(out) for out in declared.outs}
        self._temporary_folders = {os.path.realpath(path) for path in (tempfile.gettempdir(), "/tmp", "/var/tmp")}
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
        self._environment = tuple(path + os.sep for path in prefixes | {os.path.realpath(path) for path in prefixes})
        self._import_folders = {declared.base} | {os.path.dirname(dep) for dep in declared.deps if dep.endswith(".py")}

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise Undeclared if the event is not declared; Python calls this before each one."""
        if event not in WATCHED:  # first, since there are tens of thousands of others
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes):
                (self.check_write if flags & WRITING else self.check_read)(os.fsdecode(path))
        elif event in CHANGES:
            for path, folder in [(arguments[i], -1 if j is None else arguments[j]) for i, j in CHANGES[event]]:
                if isinstance(path, str | bytes):
                    self.check_write(_in_folder(os.fsdecode(path), folder))
        elif event in LISTINGS:
            folder = arguments[0] if arguments[0] is not None else "."
            if isinstance(folder, str | bytes) and _absolute(os.fsdecode(folder)) not in self._import_folders:
                self.check_read(os.fsdecode(folder))
        elif event in PROGRAMS or (event == "import" and arguments[0] in SPAWNING):
            raise self._refuse(
                f"starts a program ({arguments[0]}), whose files dvc.yaml cannot answer for", "do its work in Python"
            )
        elif event in NETWORK and "network" not in self.permitted:
            raise self._refuse("uses the network", "let the download stage fetch it")

    def check_read(self, path: str) -> None:
        """Raise Undeclared unless the stage may read `path`."""
        if path.startswith(self._environment) and ".." not in path:
            return
        if os.path.basename(os.path.dirname(path)) == "__pycache__" and path.endswith(".pyc"):
            path = importlib.util.source_from_cache(path)
        path, root = _absolute(path), self.declared.root
        if dep := _covering(path, self.declared.deps):
            self.used.add(dep)
            return
        if _covering(path, self.declared.outs) or (self.reading_params and path in self._param_files):
            return
        real = os.path.realpath(path)
        if real in self.permitted:
            return
        if _covering(real, [root]):
            remedy = "use hermetic.read_params(KEY)" if path in self._param_files else 'add "- {}" to its deps'
            raise self._undeclared("reads", path, remedy)
        if not _covering(real + os.sep, [*self._environment, *self._caches, *self._temporary_folders, *SYSTEM]):
            raise self._refuse(
                f"reads {path}, outside the repository", "copy it into the repository and add it to its deps"
            )

    def check_write(self, path: str) -> None:
        """Raise Undeclared unless the stage may write, rename, create or remove `path`."""
        path, root, outs = _absolute(path), self.declared.root, self.declared.outs
        folder = os.path.dirname(path)
        if "__pycache__" in (os.path.basename(path), os.path.basename(folder)) or _covering(path, self._caches):
            return
        if self.refusal:
            raise self.refusal
        is_folder_of_out = any(out.startswith(path + os.sep) for out in outs)
        if _covering(path, outs) or is_folder_of_out or path in self._temporary_outs:
            return
        if _covering(path, [root]):
            raise self._undeclared("writes", path, 'add "- {}" to its outs')
        if not _covering(path, [*self._temporary_folders, *TERMINALS]):
            raise self._refuse(f"writes {path}, outside the repository", "write to an out inside it")

    def read_params(self, key: str, file: str) -> None:
        """Raise Undeclared unless the stage declares this key of a parameter file."""
        path = _absolute(file)
        self.used |= (declared := {(path, key), (path, "*")} & self.declared.params)
        if not declared:
            raise self._undeclared("reads", key, 'add "- {}" to its params')
        self.reading_params = True

    def _undeclared(self, deed: str, what: str, remedy: str) -> Undeclared:
        shown = os.path.relpath(what, self.declared.base) if os.path.isabs(what) else what
        # Remembered, so that a stage which swallows the error still writes nothing.
        self.refusal = self._refuse(f"{deed} {shown}, which dvc.yaml does not declare", remedy.format(shown))
        return self.refusal

    def _refuse(self, deed: str, remedy: str) -> Undeclared:
        return Undeclared(f"stage {self.declared.stage} {deed}: {remedy}")


_guard: Guard | None = None  # one a process: an audit hook cannot be taken off again


def refusal() -> Undeclared | None:
    """The stage's first refusal inside the repository, which a library may have wrapped in an error of its own."""
    return _guard.refusal if _guard else None


def enforce(declared: Declaration | None = None, caches: Sequence[str] = ()) -> Guard | None:
    """Hold this process to `declared`, by default what `declaration()` finds; do nothing where that is None.

    `caches` are folders in which libraries may keep what only saves them time. Raises Undeclared if a module
    of the repository is imported already without being declared; later, whatever breaks the declaration
    raises it. After a refusal inside the repository nothing can be written, and the exit status is 1, even if
    the error was swallowed.
    """
    global _guard
    if declared := declared or declaration():
        _guard = Guard(declared, caches)
        for module in list(sys.modules.values()):
            if file := getattr(module, "__file__", None):
                _guard.check_read(file)
        sys.addaudithook(_guard)
        atexit.register(_fail_if_swallowed)
    return _guard


def _fail_if_swallowed() -> None:
    if (error := refusal()) and not hasattr(sys, "last_value"):  # which Python sets for what ended the program
        sys.excepthook(type(error), error, None)
        sys.stdout.flush()
        os._exit(1)


def permit(source: str) -> None:
    """Let the stage read one more file or, for a URL, use the network.

    For what a declared digest fixes, and for processes that compute the same stage together.
    """
    if _guard:
        _guard.permitted.add("network" if "://" in source else os.path.realpath(source))


def read_params(key: str, file: str = "params.yaml") -> Any:
    """The value of a top-level key of a parameter file; outside a guarded stage every key may be read.

    Raises Undeclared if the stage does not declare the key, KeyError if the file lacks it, and OSError,
    UnicodeDecodeError or yaml.YAMLError if the file cannot be read.
    """
    if _guard:
        _guard.read_params(key, file)
    try:
        values = yaml.load(Path(file).read_text("utf-8-sig"), YamlLoader)
    finally:
        if _guard:
            _guard.reading_params = False
    return (values if isinstance(values, dict) else {})[key]


def temporary(path: str) -> str:
    """Where to write the content of an out before it is renamed to `path`, so that it appears whole."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")


def _absolute(path: str, base: str = ".") -> str:
    """`path` with the links of its folder resolved but not its own: DVC may link an out into its cache."""
    path = os.path.join(base, path)
    folder, name = os.path.split(path.rstrip(os.sep))
    return os.path.realpath(path) if name in ("", ".", "..") else os.path.join(os.path.realpath(folder), name)


def _in_folder(path: str, folder: int) -> str:
    """`path` relative to an open folder, where Linux tells its name."""
    link = f"/proc/self/fd/{folder}"
    return os.path.join(os.readlink(link), path) if folder >= 0 and os.path.exists(link) else path


def _covering(path: str, declared: Iterable[str]) -> str | None:
    """The declared path that is `path` or a folder that holds it."""
    return next((d for d in declared if path == d or path.startswith(d if d.endswith(os.sep) else d + os.sep)), None)
