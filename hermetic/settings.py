"""What pyproject.toml allows the stages beyond dvc.yaml, and presets for libraries."""

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .declaration import Declaration, UndeclaredAccess, absolute, covering

PLACE = "[tool.hermetic] of pyproject.toml"


class Settings(NamedTuple):
    """What a stage may use beyond dvc.yaml; README.md says what each key takes."""

    allow: list[str]
    read: list[str]
    environment: list[str]
    create: list[str]


CACHE = "${XDG_CACHE_HOME:-~/.cache}"
CONFIG = "${XDG_CONFIG_HOME:-~/.config}"
PRESETS: dict[str, dict[str, list[str]]] = {
    "git": {
        "read": ["<root>/.git", "~/.gitconfig", f"{CONFIG}/git"],
        # Git would write .git/index only to be faster the next time.
        "environment": ["GIT_OPTIONAL_LOCKS=0"],
    },
    "dvclive": {
        "allow": [
            *(".", "<root>/.dvc/tmp/", "<root>/.git", "dvc.yaml"),
            "${DVC_ROOT:-<root>}/.dvc/tmp/",  # of an experiment in a copy
            "${DVC_SITE_CACHE_DIR:-/var/tmp/dvc}/",
        ],
        "read": [
            *("<root>/.dvc", "**/dvc.lock", "**/dvc.yaml", "**/*.dvc"),
            *("**/.dvcignore", "**/.gitignore", "**/.gitattributes"),
            *("~/.gitconfig", f"{CONFIG}/git", f"{CONFIG}/dvc"),
        ],
        "environment": ["DVCLIVE_*"],
    },
    "huggingface": {
        "allow": [f"${{HF_HOME:-{CACHE}/huggingface}}/", "https://huggingface.co"],
        "environment": ["HF_*", "TRANSFORMERS_*", "TOKENIZERS_*"],
    },
    "hydra": {"allow": ["outputs/", "multirun/"], "environment": ["HYDRA_*"]},
    # Not the user's own folders: what is in them would be an undeclared input.
    "jupyter": {
        "allow": ["tcp://127.0.0.1"],
        "environment": [
            *("IPYTHONDIR=$TMPDIR/ipython", "JUPYTER_CONFIG_DIR=$TMPDIR/jupyter"),
            "JUPYTER_RUNTIME_DIR=$TMPDIR/jupyter-runtime",
        ],
    },
    "matplotlib": {
        "allow": [f"{CACHE}/hermetic/matplotlib/"],
        "environment": [f"MPLCONFIGDIR={CACHE}/hermetic/matplotlib", "MPLBACKEND"],
    },
    "mlflow": {
        "presets": ["git"],
        "allow": [f"{CONFIG}/mlflow/"],
        "environment": ["MLFLOW_*", "MLFLOW_DISABLE_TELEMETRY=true"],
    },
    "torch": {
        "allow": [
            f"${{TORCH_HOME:-{CACHE}/torch}}/",
            *("https://download.pytorch.org", "https://github.com"),
        ],
        "environment": ["TORCH*", "PYTORCH_*"],
    },
}
"""What libraries use that changes no results: caches, settings, logs.

`<root>` is the repository.
"""


def read(declared: Declaration) -> Settings:
    """Read the settings of a stage from the nearest pyproject.toml that has any.

    Raises UndeclaredAccess if they have a mistake.
    """
    found = Settings([], [], [], [])
    sections = [*_sections(declared)]
    # Its cache of fonts takes seconds to make.
    if os.path.isdir(os.path.join(sysconfig.get_path("purelib"), "matplotlib")):
        sections.append({"presets": ["matplotlib"]})
    for section in sections:
        for key, names in section.items():
            if key not in (known := ["presets", *Settings._fields]):
                there = f"it may have {', '.join(known)}, stages.NAME"
                raise UndeclaredAccess(f"{PLACE} has {key}: {there}")
            if not isinstance(names, list):
                write = f"write [{names!r}]"
                raise UndeclaredAccess(f"{key} in {PLACE} is no list: {write}")
            if key != "presets":
                found_names = [name.replace("<root>", declared.root) for name in names]
                getattr(found, key).extend(found_names)
                continue
            for name in names:
                if name not in PRESETS:
                    there = f"there are {', '.join(PRESETS)}"
                    raise UndeclaredAccess(f"{PLACE} has the preset {name}: {there}")
                sections.append(PRESETS[name])
    return found


def expand(path: str) -> str:
    """Expand `~`, `$NAME` and `${NAME:-default}`."""
    while match := re.search(r"\$\{(\w+):-((?:[^{}]|\$\{[^{}]*\})*)\}", path):
        value = os.environ.get(match[1]) or match[2]
        path = path[: match.start()] + value + path[match.end() :]
    return os.path.expanduser(os.path.expandvars(path))


def _sections(declared: Declaration) -> Iterator[dict[str, Any]]:
    for folder in [declared.base, *map(str, Path(declared.base).parents)]:
        file = Path(folder, "pyproject.toml")
        if file.is_file() and "[tool.hermetic" in (text := file.read_text("utf-8")):
            import tomllib

            try:
                settings = tomllib.loads(text)["tool"]["hermetic"]
            except tomllib.TOMLDecodeError as error:
                raise UndeclaredAccess(f"{file}: {error}") from None
            stages = settings.pop("stages", {})
            yield from (settings, stages.get(declared.stage, {}))
            return
        if folder == declared.root:
            return


def place(path: str, root: str) -> tuple[str, str]:
    """Return the key and the value of PLACE that allow a path."""
    for name, preset in PRESETS.items():
        places = [*preset.get("allow", []), *preset.get("read", [])]
        expanded = (expand(place.replace("<root>", root)) for place in places)
        if covering(path, {absolute(place) for place in expanded if place != "."}):
            return "presets", name
    return "allow", path
