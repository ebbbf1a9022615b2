"""Pipelines of other people, with hermetic copied into them and called first."""

import json
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from hermetic.tests.conftest import (
    edit,
    is_quiet,
    needs_landlock,
    run,
    succeed,
    under_dvc,
    violates,
)

ENFORCE = "import hermetic; hermetic.enforce()\n"


def script(body: str) -> str:
    """Return a stage that calls hermetic first."""
    return ENFORCE + textwrap.dedent(body)


def by_hand(
    folder: Path, *arguments: str, stage: str = "s", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as DVC does, but faster."""
    command = ["python", "-W", "ignore", *arguments]
    return run(folder, *command, DVC_STAGE=stage, **variables)


KINDS = {
    "dvc.yaml": """
        stages:
          module: {cmd: python -m src.module a, deps: [src], outs: [a]}
          commands:
            cmd: [python src/write.py b, python src/write.py c]
            deps: [src]
            outs: [b, c]
          wdir:
            wdir: part
            cmd: python ../src/transfer.py d
            deps: [in, ../src]
            params: [p.q]
            outs: [d]
          folder: {cmd: python src/folder.py h/i/j, deps: [src], outs: [h]}
          formats:
            cmd: python src/formats.py k
            deps: [a, src]
            params: [p.json: [a.b], p.toml: [a.b], p.py: [A.b], params.yaml: ]
            outs: [k]
        """,
    # A file of their own: for templates, hermetic has to import DVC.
    "sub/dvc.yaml": """
        stages:
          foreach:
            foreach: [e, f]
            do:
              cmd: python ../src/write.py ${item}
              deps: [../src]
              outs: ["${item}"]
          template:
            cmd: python ../src/write.py ${g}
            deps: [../src]
            outs: ["${g}"]
        """,
    "sub/params.yaml": "g: g",
    "params.yaml": "g: g",
    "p.json": '{"a": {"b": 1}}',
    "p.toml": "[a]\nb = 2\n",
    "p.py": "class A:\n    b = 3\n",
    "part/in": "done",
    "part/params.yaml": "p: {q: in}",
    "src/write.py": script("""
        import sys
        open(sys.argv[1], "w").write("done")
        """),
    "src/module.py": "from src " + script("open('a', 'w').write('done')\n"),
    "src/transfer.py": script("""
        text = open(hermetic.read_params("p.q")).read()
        open("d", "w").write(text)
        """),
    "src/folder.py": script("""
        import os
        os.makedirs("h/i")
        import write
        """),
    "src/formats.py": script("""
        assert hermetic.read_params("a.b", "p.json") == 1
        assert hermetic.read_params("a.b", "p.toml") == 2
        assert hermetic.read_params("A.b", "p.py") == 3
        assert open("params.yaml").read() == "g: g"
        assert open("a").read() == "done"
        import write
        """),
}
RESULTS = [*"abck", "part/d", "h/i/j", "sub/e", "sub/f", "sub/g"]


def test_every_kind_of_stage_is_checked_under_dvc(make):
    folder = make(KINDS)
    under_dvc(folder)
    repro = ("dvc", "repro", "--all-pipelines", "--keep-going")
    assert succeed(folder, *repro).count("Running stage") == 8
    assert {(folder / name).read_text() for name in RESULTS} == {"done"}
    for file in (folder / "src").glob("*.py"):
        edit(file, "enforce()\n", f"enforce()\nopen('{folder}/.gitignore')\n")
    said = run(folder, *repro).stderr
    refused = re.findall(r"stage (\S+) reads \S*\.gitignore, which dvc.yaml does", said)
    assert len({*refused}) == 7, said
    last = by_hand(folder, "src/formats.py", "k", stage="formats")  # DVC skipped it
    assert violates(last, "reads .gitignore", stage="formats")


# Libraries that do more than a stage declares: README.md lists what to allow.

FUNCTIONS = """
import contextlib, multiprocessing

def read(name):
    return open(name).read()

def read_and_hide(name):
    with contextlib.suppress(OSError):
        return open(name).read()

def write(text):
    open('out/result', 'w').write(text)
"""


def one_stage(body: str, *allow: str, out: str = "out/result") -> dict[str, str]:
    """Return a pipeline of one stage, whose main module may be imported again."""
    main = textwrap.indent(textwrap.dedent(body), "    ")
    enforce = f"import hermetic; hermetic.enforce(allow={[*allow]})\n"
    return {
        "in": "done",
        "other": "secret",
        "src/w.py": f"{enforce}{FUNCTIONS}\nif __name__ == '__main__':\n{main}",
        "dvc.yaml": "stages: {s: {cmd: python src/w.py, deps: [src, in], "
        f"outs: [{out}]}}}}",
    }


SHORT = {"TMPDIR": "/tmp"}  # the path of a socket has at most 107 bytes
POOL = """
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        write(pool.apply(read, ['in']))
    """
JOBLIB = """
    import joblib, numpy as np
    rows = np.ones((4, 300_000))
    for how in ({}, {'prefer': 'threads'}, {'max_nbytes': '1M'}):
        jobs = [joblib.delayed(np.sum)(row) for row in rows]
        assert joblib.Parallel(2, **how)(jobs) == [300_000] * 4
    write(joblib.Parallel(2)(joblib.delayed(read)(name) for name in ['in', 'in'])[1])
    """


@needs_landlock
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_are_checked(make, method):
    folder = make(one_stage(POOL.format(method=method)))
    assert is_quiet(by_hand(folder, "src/w.py", **SHORT))
    assert (folder / "out/result").read_text() == "done"
    edit(folder / "src/w.py", "(read, ['in'])", "(read_and_hide, ['other'])")
    done = by_hand(folder, "src/w.py", **SHORT)
    assert violates(done, "reads other, which dvc.yaml does not", stage="s")


@needs_landlock
def test_joblib_works_and_its_workers_are_checked(make):
    folder = make(one_stage(JOBLIB))
    assert is_quiet(by_hand(folder, "src/w.py", **SHORT))
    assert (folder / "out/result").read_text() == "done"
    edit(folder / "src/w.py", "['in', 'in']", "['in', 'other']")
    done = by_hand(folder, "src/w.py", **SHORT)
    assert violates(done, "other, which dvc.yaml does not declare: add", stage="s")


def test_a_cache_in_the_home_may_be_allowed(make):
    body = """
    import os
    name = os.path.expanduser('~/.cache/huggingface/hub/model')
    os.makedirs(os.path.dirname(name), exist_ok=True)
    open(name, 'a').write('done')
    write(open(name).read())
    """
    folder = make(one_stage(body, "~/.cache/huggingface/"))
    for text in ("done", "donedone"):
        assert is_quiet(by_hand(folder, "src/w.py"))
        assert (folder / "out/result").read_text() == text
    edit(folder / "src/w.py", "['~/.cache/huggingface/']", "[]")
    assert violates(by_hand(folder, "src/w.py"), ".cache/huggingface", stage="s")


@needs_landlock
def test_git_works_if_its_files_are_allowed(make):
    body = """
    import subprocess
    command = ['git', 'rev-parse', 'HEAD']
    write(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    """
    folder = make(one_stage(body, ".git", "~/.gitconfig"))
    under_dvc(folder)
    assert is_quiet(by_hand(folder, "src/w.py"))
    head = succeed(folder, "git", "rev-parse", "HEAD")
    assert (folder / "out/result").read_text() == head
    edit(folder / "src/w.py", "'.git', ", "")
    told = "and the programs it starts can use only what dvc.yaml"
    assert violates(by_hand(folder, "src/w.py"), told, stage="s")


DVCLIVE = [
    *(".", ".dvc", ".dvcignore", ".git", ".gitignore", "dvc.lock", "dvc.yaml"),
    *("~/.config/dvc", "~/.config/git", "~/.gitconfig", "~/dvc/"),
]
"""The last one is the folder DVC_SITE_CACHE_DIR of the tests."""


@needs_landlock
def test_dvclive_works(make):
    pytest.importorskip("dvclive")
    body = """
    from dvclive import Live
    with Live() as live:
        for step in range(2):
            live.log_metric('loss', step)
            live.next_step()
    """
    folder = make(one_stage(body, *DVCLIVE, out="dvclive/"))
    under_dvc(folder)
    for _ in range(2):
        succeed(folder, "dvc", "repro", "--force")
        assert json.loads((folder / "dvclive/metrics.json").read_text())["loss"] == 1
