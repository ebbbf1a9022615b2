"""A temporary clone of the last commit, with its own environment."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tools import git

ROOT = Path(__file__).parents[1]
STAGES = ("download", "preprocess", "baseline", "train", "report")


class Clone:
    """A clone, a copy of this environment, and a home for DVC's per-user files.

    All modules of the clone and of the environment have their bytecode.
    """

    def __init__(self, parent: Path) -> None:
        self.folder, self.environment = parent / "clone", parent / "environment"
        # A copy, since compiled programs are cached in the environment.
        shutil.copytree(sys.prefix, self.environment, symlinks=True)
        path = f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.variables = {"PATH": path, "HOME": str(parent), "LC_ALL": "C.UTF-8"}
        self.variables["DVC_SITE_CACHE_DIR"] = str(parent / "dvc")
        self.compile(self.environment / "lib")
        self.renew()

    def renew(self) -> None:
        """Clone again, without outputs or a DVC cache."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with chdir(ROOT):
            git.clone(self.folder)
        self.compile(self.folder)

    def compile(self, folder: Path) -> None:
        """Write the bytecode of a folder, so that no run pays for it."""
        self.run("-m", "compileall", "-q", str(folder), folder=folder)

    def edit(self, section: str, key: str, change: Callable[[Any], Any]) -> None:
        """Change a value in params.yaml."""
        yaml, path = YAML(), self.folder / "params.yaml"
        params = yaml.load(path)
        params[section][key] = change(params[section][key])
        yaml.dump(params, path)

    def run(
        self, *arguments: str, folder: Path | None = None, python: str = "python"
    ) -> tuple[float, str]:
        """Run Python, by default in the clone; return the seconds and the output.

        On failure, exit with its output.
        """
        start = time.perf_counter()
        done = subprocess.run(
            [shutil.which(python, path=self.variables["PATH"]) or python, *arguments],
            cwd=folder or self.folder,
            env=self.variables,
            text=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{arguments} failed:\n{done.stdout}{done.stderr}")
        print(f"{seconds:8.2f} s  {arguments[-1]}", file=sys.stderr)
        return seconds, done.stdout
