"""Run Git for the tools: in this repository, whatever the caller's environment says.

A hook of Git runs with variables such as GIT_INDEX_FILE and GIT_DIR, with which another
Git command, even a clone, would work on the caller's index or repository.
"""

import os
import subprocess
from pathlib import Path

from stages.plumbing.errors import UserError


def git(*arguments: str) -> str:
    """Run Git in the current folder and return what it prints.

    Raises UserError with Git's own reason if it fails.
    """
    forget_caller()
    return _run(*arguments)


def _run(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True)
    if done.returncode:
        reason = os.fsdecode(done.stderr).strip() or f"exit status {done.returncode}"
        raise UserError(f"git {' '.join(arguments)} failed: {reason}")
    return os.fsdecode(done.stdout).removesuffix("\n")


def forget_caller() -> None:
    """Drop the variables that point Git to a repository, for DVC as well."""
    for name in _run("rev-parse", "--local-env-vars").split():
        os.environ.pop(name, None)


def prefix() -> str:
    """Return the path of the current folder in its repository: "" or "a/b/".

    Raises UserError if the folder is in no repository, or in that of another user.
    """
    try:
        return git("rev-parse", "--show-prefix")
    except UserError as error:
        raise UserError(f"this needs a clone of the repository: {error}") from None


def clone(target: Path) -> Path:
    """Clone the current commit; return the folder that is the current one there."""
    inside = prefix()
    top = git("rev-parse", "--show-toplevel")
    fetch_missing("HEAD")  # a sparse checkout may lack files
    # Without hooks: one from the user's template may fail, and is not of this commit.
    # From this disk, even if the user's configuration forbids that.
    options = ("-c", "protocol.file.allow=always", "-c", "clone.rejectShallow=false")
    config = ("--config", "core.hooksPath=/dev/null")
    git(*options, "clone", "--quiet", *config, top, str(target))
    return target / inside


def fetch_missing(rev: str) -> None:
    """Fetch what a partial clone lacks of a revision: DVC would wait for it for ever.

    Raises UserError if it cannot be fetched.
    """
    try:
        tree = git("rev-parse", "--verify", "--quiet", f"{rev}^{{tree}}")
    except UserError:  # no commit, or one of DVC's experiments, which are complete
        return
    listed = git("rev-list", "--objects", "--missing=print", "--no-walk", tree)
    if any(line.startswith("?") for line in listed.splitlines()):
        # Counting lines needs the files: Git fetches all that are missing, at once.
        empty = git("hash-object", "-t", "tree", os.devnull)
        git("diff-tree", "-r", "--numstat", empty, tree)
