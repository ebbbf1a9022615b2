"""A stage reads and writes what dvc.yaml declares for it, or it is refused.

DVC reruns a stage when something that dvc.yaml declares has changed; it cannot know
what the stage really reads. `enforce` makes the two the same. From then on, reading a
file of the repository needs a line in `deps`, writing one needs a line in `outs` (or
`metrics` or `plots`), reading a value of a parameter file needs a line in `params`,
and importing a module of the repository needs that module in `deps`. All other modules
come from the standard library or the environment that runs the stage. Programs, the
network and files outside the repository are out of reach. The refusal names the stage,
the path and the line to add. To use it in a pipeline of your own, copy this file and
call `enforce()` before the stage's other imports; it needs nothing that DVC
does not bring.

How: Python tells an audit hook (PEP 578) what it is about to do, and the hook may
refuse. That covers whatever goes through Python, libraries and forked processes
included. It does not cover files that C code opens by itself (the tests run the stages
under strace to see that none does), stat and exists, paths relative to a `dir_fd`, and
code that sets out to deceive: this guards against mistakes, not against attackers.
"""

import atexit
import importlib.util
import mmap
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

SYSTEM = [
    *("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/proc", "/sys"),
    *("/dev", "/run", "/System", "/Library", "/private/etc"),
]
TERMINALS = ["/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr"]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: dict[str, list[tuple[int, int | None]]] = {
    # Where the arguments of an event hold a path, and the dir_fd it is relative to.
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
PROGRAMS = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"),
    "pty.spawn",
}
SPAWNING = {
    # Modules that start a new, unguarded Python; a forked one inherits the guard.
    "multiprocessing.popen_spawn_posix",
    "multiprocessing.popen_spawn_win32",
    "multiprocessing.popen_forkserver",
}
NETWORK = {
    *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"),
    "socket.gethostbyname",
}
WATCHED = frozenset({"open", "import", *CHANGES, *LISTINGS, *PROGRAMS, *NETWORK})


class Undeclared(PermissionError):
    """A stage touched what dvc.yaml does not declare for it.

    A PermissionError, since libraries know how to handle that one.
    """

    def __str__(self) -> str:
        """Return the text, also where a library has set `filename` (shutil does)."""
        return str(self.args[0])


class Declaration(NamedTuple):
    """What dvc.yaml declares for a stage. Paths are absolute."""

    stage: str
    root: str
    """The repository: the nearest folder above dvc.yaml with .dvc or .git."""
    base: str
    """The folder in which the stage runs, and to which its paths are relative."""
    deps: frozenset[str]
    outs: frozenset[str]
    params: frozenset[tuple[str, str]]
    """Pairs of a parameter file and a dotted key; the key `*` is the whole file."""


def parse_yaml(text: str) -> Any:
    """Parse YAML with the library that DVC uses, and so as DVC does.

    YAML 1.2: `no` is a string and 0100 a hundred. Raises ruamel.yaml.YAMLError, or
    another error for an ill-formed value.
    """
    return YAML(typ="safe").load(text)


def declaration(
    stage: str | None = None, folder: str | Path = "."
) -> Declaration | None:
    """Read what dvc.yaml declares for a stage.

    The file is the one in `folder`, or in the nearest folder above it that has the
    stage. The stage is the one that DVC runs (DVC_STAGE), or else `stage`; None if
    there is neither. Raises Undeclared for a stage that no dvc.yaml has. Templates
    (`${…}`, `foreach`, `matrix`) are left to DVC itself, which takes half a second.
    """
    name = os.environ.get("DVC_STAGE", "").rpartition(":")[2] or stage
    if not name:
        return None
    for above in [Path(folder).resolve(), *Path(folder).resolve().parents]:
        has_file = (above / "dvc.yaml").is_file()
        if has_file and (declared := _read_declaration(name, str(above))):
            return declared
        if (above / ".dvc").is_dir():
            break
    raise Undeclared(
        f"stage {name} is in no dvc.yaml in or above {folder}: "
        "set its wdir in or below the folder of dvc.yaml"
    )


def _read_declaration(name: str, folder: str) -> Declaration | None:
    text = Path(folder, "dvc.yaml").read_text("utf-8")
    if re.search(r"\$\{|\bforeach:|\bmatrix:", text):
        return _resolve_templates(name, folder)
    stages = (parse_yaml(text) or {}).get("stages") or {}
    if name not in stages:
        return None
    entry = stages[name]
    base = os.path.realpath(os.path.join(folder, entry.get("wdir", ".")))

    def paths(*kinds: str) -> frozenset[str]:
        items = [item for kind in kinds for item in entry.get(kind, [])]
        # An item with options is a mapping whose one key is the path.
        names = [p for item in items for p in ([item] if type(item) is str else item)]
        return frozenset(_absolute(path, base) for path in names)

    params = set()
    for item in entry.get("params", []):
        files = {"params.yaml": [item]} if isinstance(item, str) else item
        for file, keys in files.items():
            params |= {(_absolute(file, base), key) for key in keys or ["*"]}
    return Declaration(
        stage=name,
        root=_repository(folder),
        base=base,
        deps=paths("deps"),
        outs=paths("outs", "metrics", "plots"),
        params=frozenset(params),
    )


def _resolve_templates(name: str, folder: str) -> Declaration | None:
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    for stage in Repo(folder).index.stages:
        in_folder = os.path.realpath(stage.path) == os.path.join(folder, "dvc.yaml")
        if not in_folder or stage.name != name:
            continue
        params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
        return Declaration(
            stage=name,
            root=_repository(folder),
            base=os.path.realpath(stage.wdir),
            deps=frozenset(dep.fs_path for dep in stage.deps if dep not in params),
            outs=frozenset(out.fs_path for out in stage.outs),
            params=frozenset(
                (dep.fs_path, key) for dep in params for key in dep.params or ["*"]
            ),
        )
    return None


def _repository(folder: str) -> str:
    for above in [Path(folder), *Path(folder).parents]:
        if (above / ".dvc").is_dir() or (above / ".git").exists():
            return str(above)
    return folder


class Guard:
    """An audit hook that holds this process to a declaration."""

    def __init__(self, declared: Declaration, caches: Sequence[str] = ()) -> None:
        self.declared = declared
        self.used: set[str | tuple[str, str]] = set()
        """The deps and params that the stage has read so far."""
        self.permitted: set[str] = set()
        self.reading_params = False
        self._first_refusal = mmap.mmap(-1, 4096)  # shared with the processes it forks
        self._param_files = {file for file, _ in declared.params}
        caches = [*caches, *filter(None, [sys.pycache_prefix])]
        self._caches = [*caches, *map(os.path.realpath, caches)]
        self._temporary_outs = {temporary(out) for out in declared.outs}
        self._out_folders = {os.path.dirname(out) for out in declared.outs}
        temporary_folders = (tempfile.gettempdir(), "/tmp", "/var/tmp")
        self._temporary_folders = {os.path.realpath(path) for path in temporary_folders}
        prefixes = _folders(sys.prefix, sys.base_prefix, sys.exec_prefix)
        # One may lie above the repository: /usr, and the repository is /usr/src/app.
        self._environment = tuple(
            path for path in prefixes if not f"{declared.root}/".startswith(path)
        )
        self._packages = _folders(*map(sysconfig.get_path, ("purelib", "platlib")))
        base = {"platbase": sys.base_exec_prefix}
        stdlib = [
            sysconfig.get_path("stdlib"),
            sysconfig.get_path("platstdlib", vars=base),
        ]
        self._stdlib = _folders(*stdlib)
        # Of the Python from which a virtual environment was made, say.
        self._other_packages = _folders(
            *(os.path.join(path, "site-packages") for path in stdlib),
            *(os.path.join(path, "dist-packages") for path in stdlib),
        )
        modules = [dep for dep in declared.deps if dep.endswith(".py")]
        self._import_folders = {declared.base, *map(os.path.dirname, modules)}

    @property
    def refusal(self) -> Undeclared | None:
        """The first undeclared path, key or module; then nothing may be written.

        Of this process, and of those forked from it.
        """
        if not self._first_refusal[0]:
            return None
        text = self._first_refusal[:].rstrip(b"\0")
        return Undeclared(text.decode("utf-8", "replace"))

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise Undeclared if dvc.yaml does not declare what is about to happen."""
        if event not in WATCHED:  # first: there are tens of thousands of others
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes):
                return
            if flags & WRITING:
                self.check_write(os.fsdecode(path))
            else:
                self.check_read(os.fsdecode(path))
        elif event in CHANGES:
            for index, folder_index in CHANGES[event]:
                path = arguments[index]
                folder = -1 if folder_index is None else arguments[folder_index]
                if isinstance(path, str | bytes):
                    self.check_write(_in_folder(os.fsdecode(path), folder))
        elif event in LISTINGS:
            self._check_listing(arguments[0])
        elif event == "import" and arguments[1]:  # of an extension module, its file
            self.check_read(arguments[1], is_module=True)
        elif event in PROGRAMS or (event == "import" and arguments[0] in SPAWNING):
            raise self._refuse(
                f"starts a program ({arguments[0]}), whose files dvc.yaml "
                "cannot answer for",
                "do its work in Python",
            )
        elif event in NETWORK and "network" not in self.permitted:
            raise self._refuse("uses the network", "let the download stage fetch it")

    def check_read(self, path: str, *, is_module: bool = False) -> None:
        """Raise Undeclared unless the stage may read `path`, or import it."""
        is_module = is_module or path.endswith((".py", ".pyc"))
        if path in sys.path and os.path.isfile(path):  # a zip file of modules
            is_module = True
        if ".." not in path and self._is_installed(path, is_module):
            return
        if re.fullmatch("<.*>", path):  # what a traceback says for code without a file
            return
        if path.endswith(".pyc"):
            with suppress(ValueError):  # one beside its source, or without
                path = importlib.util.source_from_cache(path)
        path, root = _absolute(path), self.declared.root
        if dep := _covering(path, self.declared.deps):
            self.used.add(dep)
            return
        if _covering(path, self.declared.outs) or path in self._out_folders:
            return
        is_param_file = path in self._param_files
        real = os.path.realpath(path)
        if real in self.permitted or (self.reading_params and is_param_file):
            return
        if self._is_installed(path, is_module) or self._is_installed(real, is_module):
            return
        if _covering(real, self._caches):
            return
        if _covering(real, [root]):
            to_deps = 'add "- {}" to its deps'
            remedy = "use hermetic.read_params(KEY)" if is_param_file else to_deps
            raise self._undeclared("reads", path, remedy)
        if is_module:
            raise self._remember(
                f"imports {path}, from outside the environment",
                "unset PYTHONPATH, or install it into the environment",
            )
        if not _covering(real, [*self._temporary_folders, *SYSTEM]):
            raise self._refuse(
                f"reads {path}, outside the repository",
                "copy it into the repository and add it to its deps",
            )

    def _is_installed(self, path: str, is_module: bool) -> bool:
        """Tell whether a file is in the environment or the standard library."""
        path += os.sep
        if path.startswith(self._packages):
            return True
        if is_module:
            in_stdlib = path.startswith(self._stdlib)
            return in_stdlib and not path.startswith(self._other_packages)
        return path.startswith(self._environment)

    def _check_listing(self, folder: Any) -> None:
        if isinstance(folder, int):  # an open folder, where Linux tells its name
            folder = _in_folder(".", folder)
        name = os.fsdecode("." if folder is None else folder)
        folder = _absolute(name)
        if folder in self._out_folders and not _covering(folder, self.declared.deps):
            raise self._undeclared("reads", folder, 'add "- {}" to its deps')
        # Python looks for modules in all folders of its path. One that it then imports
        # is checked by itself.
        is_searched = name in sys.path and not _covering(folder, [self.declared.root])
        if folder not in self._import_folders and not is_searched:
            self.check_read(folder)

    def check_write(self, path: str) -> None:
        """Raise Undeclared unless the stage may write, rename or remove `path`."""
        path, outs = _absolute(path), self.declared.outs
        folder, name = os.path.split(path)
        if "__pycache__" in (name, os.path.basename(folder)):
            return
        if _covering(path, self._caches):
            return
        if refused := self.refusal:
            raise refused
        holds_an_out = any(out.startswith(path + os.sep) for out in outs)
        if _covering(path, outs) or holds_an_out or path in self._temporary_outs:
            return
        if _covering(path, [self.declared.root]):
            raise self._undeclared("writes", path, 'add "- {}" to its outs')
        if not _covering(path, [*self._temporary_folders, *TERMINALS]):
            raise self._refuse(
                f"writes {path}, outside the repository", "write to an out inside it"
            )

    def check_params(self, key: str, file: str) -> None:
        """Raise Undeclared unless the stage declares this key of a parameter file."""
        path = _absolute(file)
        declared = {(path, key), (path, "*")} & self.declared.params
        if not declared:
            raise self._undeclared("reads", key, 'add "- {}" to its params')
        parts = {item for item in self.declared.params if item[1].startswith(f"{key}.")}
        self.used |= declared | parts

    def _undeclared(self, deed: str, what: str, remedy: str) -> Undeclared:
        if os.path.isabs(what):
            what = os.path.relpath(what, self.declared.base)
        deed = f"{deed} {what}, which dvc.yaml does not declare"
        return self._remember(deed, remedy.format(what))

    def _remember(self, deed: str, remedy: str) -> Undeclared:
        error = self._refuse(deed, remedy)
        # So that a stage that swallows the error still writes nothing. The first one
        # is the cause; others may follow from it.
        if not self._first_refusal[0]:
            text = str(error).encode("utf-8", "replace")[: len(self._first_refusal)]
            self._first_refusal[: len(text)] = text
        return error

    def _refuse(self, deed: str, remedy: str) -> Undeclared:
        return Undeclared(f"stage {self.declared.stage} {deed}: {remedy}")


_guard: Guard | None = None  # one per process: an audit hook cannot be removed


def refusal() -> Undeclared | None:
    """Return the first refusal that is remembered; libraries may have wrapped it."""
    return _guard.refusal if _guard else None


def enforce(stage: str | None = None, caches: Sequence[str] = ()) -> Guard | None:
    """Hold this process to `declaration(stage)`; if that is None, do nothing.

    `caches` are folders in which libraries keep what only saves them time. Raises
    Undeclared if a module is imported already that is not declared and not installed,
    and from then on for everything else. After a refusal of a module, or of anything
    inside the repository, nothing can be written, and the exit status is 1 even if the
    error was swallowed, by this process or by one that it forked.
    """
    global _guard
    if declared := declaration(stage):
        _guard = Guard(declared, caches)
        for module in list(sys.modules.values()):
            if isinstance(file := getattr(module, "__file__", None), str):
                _guard.check_read(file, is_module=file.endswith(".so"))
        sys.addaudithook(_guard)
        atexit.register(_fail_if_swallowed)
    return _guard


def _fail_if_swallowed() -> None:
    # Python sets last_value to the error that ended the program.
    if (error := refusal()) and not hasattr(sys, "last_value"):
        sys.excepthook(type(error), error, None)
        sys.stdout.flush()
        os._exit(1)


def permit(source: str) -> None:
    """Let the stage read one more file or, for a URL, use the network.

    For what a declared digest fixes, and for processes that compute a stage together.
    """
    if _guard:
        _guard.permitted.add("network" if "://" in source else os.path.realpath(source))


def read_params(key: str, file: str = "params.yaml") -> Any:
    """Read a top-level key of a parameter file; outside a guarded stage, any key.

    Raises Undeclared if the stage does not declare the key, KeyError if the file lacks
    it, and OSError, UnicodeDecodeError or what `parse_yaml` raises if the file cannot
    be read.
    """
    if _guard:
        _guard.check_params(key, file)
        _guard.reading_params = True
    try:
        values = _parse_once(Path(file).read_text("utf-8-sig"))
    finally:
        if _guard:
            _guard.reading_params = False
    return deepcopy((values if isinstance(values, dict) else {})[key])


@lru_cache(maxsize=1)
def _parse_once(text: str) -> Any:
    """Parse a file of which several keys are read; do not change the result."""
    return parse_yaml(text)


def temporary(path: str) -> str:
    """Return where to write an out before it is renamed to `path`, to appear whole."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")


def _folders(*paths: str) -> tuple[str, ...]:
    """Return folders and what they link to, each with a slash at its end."""
    return tuple({path + os.sep for path in {*paths, *map(os.path.realpath, paths)}})


def _absolute(path: str, base: str = ".") -> str:
    """Resolve the links of the folder of `path`, but not `path` itself.

    DVC may link an out into its cache.
    """
    path = os.path.join(base, path)
    folder, name = os.path.split(path.rstrip(os.sep))
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(folder), name)


def _in_folder(path: str, folder: int) -> str:
    """Join `path` to an open folder, where Linux tells its name."""
    link = f"/proc/self/fd/{folder}"
    if folder >= 0 and os.path.exists(link):
        return os.path.join(os.readlink(link), path)
    return path


def _covering(path: str, declared: Iterable[str]) -> str | None:
    """Return the declared path that is `path` or a folder above it."""
    for candidate in declared:
        folder = candidate if candidate.endswith(os.sep) else candidate + os.sep
        if path == candidate or path.startswith(folder):
            return candidate
    return None
