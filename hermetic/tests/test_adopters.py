"""Pipelines of other people, with the guard copied into them and called first."""

import json
import re
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hermetic import landlock
from tests.conftest import ROOT, commit, edit, run, stages_run, succeed

GUARD = ROOT / "hermetic"
ENFORCE = "import hermetic; hermetic.enforce()\n"
needs_landlock = pytest.mark.skipif(
    not landlock.version(), reason="this kernel has no Landlock"
)

Project = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Make a repository of some files, with the guard beside them, and commit it."""

    def make(files: dict[str, str], guard: str = "src/hermetic") -> Path:
        folder = tmp_path / "project"
        shutil.copytree(
            GUARD, folder / guard, ignore=shutil.ignore_patterns("__pycache__")
        )
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(textwrap.dedent(text), "utf-8")
        (folder / ".dvc").mkdir(exist_ok=True)
        (folder / ".dvc/config").write_text("[core]\nanalytics = false\n", "utf-8")
        (folder / ".dvcignore").write_text("__pycache__/\n", "utf-8")
        (folder / ".gitignore").write_text("__pycache__/\n.dvc/tmp\n", "utf-8")
        commit(folder)
        return folder

    return make


def by_hand(
    folder: Path, *command: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the stage `s` as DVC does, but faster."""
    return run(folder, "python", "-W", "ignore", *command, DVC_STAGE="s", **env)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.stdout, done.stderr)
    return done.stderr.splitlines()[-1]


def script(body: str) -> str:
    """Return a stage that is guarded."""
    return ENFORCE + textwrap.dedent(body)


GET_STARTED = {
    "data/data.xml": "<row>1</row>\n<row>2</row>\n",
    "params.yaml": """
        prepare: {split: 0.5, seed: 20170428, unused: 1}
        featurize: {max_features: 2}
        train: {seed: 1, n_est: 3}
        """,
    "dvc.yaml": """
        stages:
          prepare:
            cmd: python src/prepare.py data/data.xml
            deps: [data/data.xml, src/hermetic, src/prepare.py]
            params: [prepare.seed, prepare.split]
            outs: [data/prepared]
          featurize:
            cmd: python src/featurize.py data/prepared data/features
            deps: [data/prepared, src/hermetic, src/featurize.py]
            params: [featurize.max_features]
            outs: [data/features]
          train:
            cmd: python src/train.py data/features model.pkl
            deps: [data/features, src/hermetic, src/train.py]
            params: [train]
            outs: [model.pkl]
          evaluate:
            cmd: python src/evaluate.py model.pkl data/features
            deps: [data/features, model.pkl, src/hermetic, src/evaluate.py]
            metrics: [eval/metrics.json: {cache: false}]
            plots: [eval/roc.csv: {cache: false}]
        """,
    "src/prepare.py": script("""
        import os, sys
        seed = hermetic.read_params("prepare.seed")
        params = hermetic.read_params("prepare")
        assert params == {"split": 0.5, "seed": seed}
        os.makedirs(os.path.join("data", "prepared"), exist_ok=True)
        text = open(sys.argv[1]).read()
        for name in ("train", "test"):
            with open(f"data/prepared/{name}.tsv", "w") as file:
                file.write(text)
        """),
    "src/featurize.py": script("""
        import os, pickle, sys
        import numpy as np
        count = hermetic.read_params("featurize.max_features")
        os.makedirs(sys.argv[2], exist_ok=True)
        for name in os.listdir(sys.argv[1]):
            rows = open(os.path.join(sys.argv[1], name)).read().split()[:count]
            with open(os.path.join(sys.argv[2], name + ".pkl"), "wb") as file:
                pickle.dump(np.array([len(row) for row in rows]), file)
        """),
    "src/train.py": script("""
        import pickle, sys
        import joblib
        n_est = hermetic.read_params("train")["n_est"]
        with open(sys.argv[1] + "/train.tsv.pkl", "rb") as file:
            model = pickle.load(file) * n_est
        joblib.dump(model, sys.argv[2])
        """),
    "src/evaluate.py": script("""
        import json, os, sys
        import joblib
        model = joblib.load(sys.argv[1])
        assert len(os.listdir(sys.argv[2])) == 2
        os.makedirs("eval", exist_ok=True)
        with open("eval/metrics.json", "w") as file:
            json.dump({"sum": int(model.sum())}, file)
        with open("eval/roc.csv", "w") as file:
            file.write("x,y\\n0,1\\n")
        """),
}


def test_a_pipeline_like_dvcs_example_runs_and_reruns_what_has_changed(project):
    folder = project(GET_STARTED)
    assert succeed(folder, "dvc", "repro").count("Running stage") == 4
    assert json.loads((folder / "eval/metrics.json").read_text()) == {"sum": 72}
    edit(folder / "params.yaml", "unused: 1", "unused: 2")
    edit(folder / "params.yaml", "n_est: 3", "n_est: 1")
    assert stages_run(succeed(folder, "dvc", "repro")) == ["train", "evaluate"]


FORGOTTEN = {
    "a parameter": ("prepare", "prepare.seed, ", "", "prepare.seed"),
    "a dep": (
        "train",
        "[data/features, src/hermetic",
        "[src/hermetic",
        "data/features/",
    ),
    "the guard": ("prepare", "src/hermetic, ", "", "src/hermetic"),
    "an out": ("prepare", "outs: [data/prepared]", "", "data/prepared"),
}


@pytest.mark.parametrize(
    ("stage", "line", "without", "named"), FORGOTTEN.values(), ids=FORGOTTEN
)
def test_what_was_forgotten_is_named_with_the_line_to_add(
    project, stage, line, without, named
):
    folder = project(GET_STARTED)
    before, _, after = (folder / "dvc.yaml").read_text().partition(f"{stage}:")
    after = after.replace(line, without, 1)
    (folder / "dvc.yaml").write_text(f"{before}{stage}:{after}")
    (folder / "data/features").mkdir()
    (folder / "data/features/train.tsv.pkl").touch()
    command = (folder / "dvc.yaml").read_text().partition(f"{stage}:")[2]
    arguments = command.partition("cmd: python ")[2].splitlines()[0].split()
    done = run(folder, "python", *arguments, DVC_STAGE=stage)
    assert f"stage {stage} " in last_line(done)
    assert f'add "- {named}' in last_line(done)


class Kind(NamedTuple):
    """A way to declare or to start a stage, and what it must write to `result`."""

    files: dict[str, str]
    result: str = "done"
    file: str = "result"
    runs: int = 1


WRITE = ENFORCE + "open('result', 'w').write('done')\n"
KINDS = {
    "a module": Kind(
        {
            "src/write.py": "from src import hermetic\nhermetic.enforce()\n"
            "open('result', 'w').write('done')\n",
            "dvc.yaml": """
                stages: {s: {cmd: python -m src.write, deps: [src], outs: [result]}}
                """,
        }
    ),
    "a list of commands": Kind(
        {
            "src/one.py": ENFORCE + "open('one', 'w').write('do')\n",
            "src/two.py": ENFORCE
            + "open('result', 'w').write(open('one').read() + 'ne')\n",
            "dvc.yaml": """
                stages:
                  s:
                    cmd: [python src/one.py, python src/two.py]
                    deps: [src]
                    outs: [one, result]
                """,
        }
    ),
    "a wdir": Kind(
        {
            "part/in": "done",
            "part/params.yaml": "p: {q: 1}",
            "src/w.py": ENFORCE
            + "assert hermetic.read_params('p.q') == 1\n"
            + "open('result', 'w').write(open('in').read())\n",
            "dvc.yaml": """
                stages:
                  s:
                    cmd: python ../src/w.py
                    wdir: part
                    deps: [in, ../src]
                    params: [p.q]
                    outs: [result]
                """,
        },
        file="part/result",
    ),
    "foreach": Kind(
        {
            "src/w.py": ENFORCE + "import sys; open(sys.argv[1], 'w').write('done')\n",
            "dvc.yaml": """
                stages:
                  s:
                    foreach: [1, 2]
                    do:
                      cmd: python src/w.py result${item}
                      deps: [src]
                      outs: ['result${item}']
                """,
        },
        file="result2",
        runs=2,
    ),
    "a matrix": Kind(
        {
            "src/w.py": ENFORCE + "import sys; open(sys.argv[1], 'w').write('done')\n",
            "dvc.yaml": """
                stages:
                  s:
                    matrix: {n: [1, 2]}
                    cmd: python src/w.py result${item.n}
                    deps: [src]
                    outs: ['result${item.n}']
                """,
        },
        file="result2",
        runs=2,
    ),
    "a template": Kind(
        {
            "params.yaml": "name: result",
            "src/w.py": WRITE,
            "dvc.yaml": """
                stages: {s: {cmd: 'python src/w.py', deps: [src], outs: ['${name}']}}
                """,
        }
    ),
    "a subfolder": Kind(
        {
            "sub/dvc.yaml": """
                stages: {s: {cmd: python ../src/w.py, deps: [../src], outs: [result]}}
                """,
            "src/w.py": WRITE,
        },
        file="sub/result",
    ),
    "an out that is a folder": Kind(
        {
            "src/w.py": ENFORCE
            + "import os; os.makedirs('out/a'); open('out/a/b', 'w').write('done')\n",
            "dvc.yaml": "stages: {s: {cmd: python src/w.py, deps: [src], outs: [out]}}",
        },
        file="out/a/b",
    ),
    "parameters in JSON, TOML and Python": Kind(
        {
            "p.json": '{"a": {"b": 1}}',
            "p.toml": "[a]\nb = 2\n",
            "p.py": "class A:\n    b = 3\n",
            "src/w.py": ENFORCE
            + "read = hermetic.read_params\n"
            + "assert read('a.b', 'p.json') == 1\n"
            + "assert read('a.b', 'p.toml') == 2\n"
            + "assert read('A.b', 'p.py') == 3\n"
            + "open('result', 'w').write('done')\n",
            "dvc.yaml": """
                stages:
                  s:
                    cmd: python src/w.py
                    deps: [src]
                    params: [p.json: [a.b], p.toml: [a.b], p.py: [A.b]]
                    outs: [result]
                """,
        }
    ),
    "a whole parameter file": Kind(
        {
            "params.yaml": "a: done",
            "src/w.py": ENFORCE
            + "import yaml; text = yaml.safe_load(open('params.yaml'))['a']\n"
            + "open('result', 'w').write(text)\n",
            "dvc.yaml": """
                stages:
                  s:
                    cmd: python src/w.py
                    deps: [src]
                    params: [params.yaml: ]
                    outs: [result]
                """,
        }
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_stage_is_guarded_under_dvc(project, kind):
    folder = project(kind.files)
    pipeline = next(name for name in kind.files if name.endswith("dvc.yaml"))
    where = [pipeline] if "/" in pipeline else []
    assert succeed(folder, "dvc", "repro", *where).count("Running stage") == kind.runs
    assert (folder / kind.file).read_text() == kind.result
    scripts = [name for name in kind.files if name.startswith("src/")]
    for script in scripts:
        text = (folder / script).read_text()
        (folder / script).write_text(f"{text}open('{folder}/.gitignore')\n")
    done = run(folder, "dvc", "repro", *where)
    assert ".gitignore, which dvc.yaml does not declare: add" in done.stderr


PARAMS = """
    stages: {s: {cmd: python src/w.py, deps: [src], params: [a.b, a.c.d], outs: [o]}}
    """


@pytest.mark.parametrize(
    ("deed", "named"),
    [
        ("hermetic.read_params('a')['x']", "a.x"),
        ("hermetic.read_params('a').get('x')", "a.x"),
        ("'x' in hermetic.read_params('a')", "a.x"),
        ("hermetic.read_params('a')['c']['e']", "a.c.e"),
        ("hermetic.read_params()['z']", "z"),
        ("hermetic.read_params('a.x')", "a.x"),
        ("hermetic.read_params('z')", "z"),
    ],
)
def test_another_parameter_is_refused_by_its_name(project, deed, named):
    good = "assert hermetic.read_params() == {'a': {'b': 1, 'c': {'d': 2}}}\n"
    files = {
        "params.yaml": "{a: {b: 1, c: {d: 2, e: 3}, x: 4}, z: 5}",
        "src/w.py": ENFORCE + good + deed,
        "dvc.yaml": PARAMS,
    }
    told = last_line(by_hand(project(files), "src/w.py"))
    assert f'reads {named}, which dvc.yaml does not declare: add "- {named}" to' in told


def test_a_command_shows_which_line_used_what_and_what_is_too_much(project):
    folder = project(GET_STARTED)
    edit(
        folder / "dvc.yaml",
        "deps: [data/features, src/h",
        "deps: [src, data/features, src/h",
    )
    edit(folder / "dvc.yaml", "params: [train]", "params: [train, prepare]")
    module = {"PYTHONPATH": "src"}
    done = run(folder, "python", "-m", "hermetic", **module)
    table = done.stdout.split("\ntrain\n")[1]
    assert dict(re.findall(r"^  (\S.*?)  +(.+)$", table, re.M)) == {
        "data/features": "src/train.py:6",
        "params.yaml: prepare": "not used by Python",
        "params.yaml: train": "src/train.py:5",
        "src": "src/train.py:1",
        "src/hermetic": "declared twice: it is in src",
        "src/train.py": "declared twice: it is in src",
    }
    assert done.returncode == 1
    edit(folder / "dvc.yaml", "deps: [src, data/features", "deps: [data/features")
    edit(folder / "dvc.yaml", "params: [train, prepare]", "params: [train]")
    done = run(folder, "python", "-m", "hermetic", "evaluate", **module)
    assert "\nevaluate\n" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


# Libraries that do more than a stage declares. docs/guard.md lists what to allow.

ONE_STAGE = """
    stages: {s: {cmd: python src/w.py, deps: [src, in], outs: [out/result]}}
    """


def one_stage(body: str, allow: str = "") -> dict[str, str]:
    """Return a pipeline of one stage, whose main module may be imported again."""
    main = textwrap.indent(textwrap.dedent(body), "    ")
    enforce = f"import hermetic; hermetic.enforce(allow={allow or []})\n"
    text = f"{enforce}{FUNCTIONS}\nif __name__ == '__main__':\n{main}"
    return {"in": "done", "other": "secret", "src/w.py": text, "dvc.yaml": ONE_STAGE}


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
SUM = """
    import joblib, numpy as np
    rows = np.ones((4, 300_000))
    sums = joblib.Parallel(n_jobs=2{how})(joblib.delayed(np.sum)(row) for row in rows)
    assert sums == [300_000] * 4
    write('done')
    """
POOL = """
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        write(pool.apply({function}, [{name!r}]) or '')
    """
METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("method", METHODS)
@needs_landlock
def test_workers_of_multiprocessing_are_held(project, method):
    """Their sockets need a path of at most 107 bytes."""
    short = {"TMPDIR": "/tmp"}
    for function, name in (
        ("read", "in"),
        ("read", "other"),
        ("read_and_hide", "other"),
    ):
        body = POOL.format(method=method, function=function, name=name)
        folder = project(one_stage(body))
        done = by_hand(folder, "src/w.py", **short)
        if name == "in":
            assert (done.returncode, done.stderr) == (0, "")
            assert (folder / "out/result").read_text() == "done"
        else:
            assert "stage s reads other, which dvc.yaml does not" in last_line(done)
        shutil.rmtree(folder)


@needs_landlock
@pytest.mark.parametrize("how", ["", ", prefer='threads'", ", max_nbytes='1M'"])
def test_joblib_works(project, how):
    folder = project(one_stage(SUM.format(how=how)))
    done = by_hand(folder, "src/w.py", TMPDIR="/tmp")
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "out/result").read_text() == "done"


@needs_landlock
def test_workers_of_joblib_are_held(project):
    body = """
    import joblib
    joblib.Parallel(2)(joblib.delayed(read)(name) for name in ['in', 'other'])
    """
    folder = project(one_stage(body))
    done = by_hand(folder, "src/w.py", TMPDIR="/tmp")
    assert "other, which dvc.yaml does not declare: add" in last_line(done)


def test_a_cache_in_the_home_may_be_allowed(project):
    body = """
    import os
    name = os.path.expanduser('~/.cache/huggingface/hub/model')
    os.makedirs(os.path.dirname(name), exist_ok=True)
    open(name, 'a').write('done')
    write(open(name).read())
    """
    folder = project(one_stage(body, "['~/.cache/huggingface/']"))
    for text in ("done", "donedone"):
        succeed(folder, "python", "src/w.py", DVC_STAGE="s")
        assert (folder / "out/result").read_text() == text
    edit(folder / "src/w.py", "['~/.cache/huggingface/']", "[]")
    assert ".cache/huggingface" in last_line(by_hand(folder, "src/w.py"))


GIT = """
    import subprocess
    command = ['git', 'rev-parse', 'HEAD']
    write(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    """


@needs_landlock
def test_git_works_if_its_files_are_allowed(project):
    folder = project(one_stage(GIT, "['.git', '~/.gitconfig']"))
    head = succeed(folder, "git", "rev-parse", "HEAD")
    succeed(folder, "python", "src/w.py", DVC_STAGE="s")
    assert (folder / "out/result").read_text() == head
    edit(folder / "src/w.py", "'.git', ", "")
    told = last_line(by_hand(folder, "src/w.py"))
    assert "stage s and the programs it starts can use only what dvc.yaml" in told


LIVE = """
    from dvclive import Live
    with Live() as live:
        for step in range(2):
            live.log_metric('loss', step)
            live.next_step()
    """
DVCLIVE = [
    *(".", ".dvc", ".dvcignore", ".git", ".gitignore", "dvc.lock", "dvc.yaml"),
    *("~/.config/dvc", "~/.config/git", "~/.gitconfig", "~/dvc/"),
]
"""The last one is the folder DVC_SITE_CACHE_DIR of the tests."""


@needs_landlock
def test_dvclive_works(project):
    pytest.importorskip("dvclive")
    files = one_stage(LIVE, str(DVCLIVE))
    files["dvc.yaml"] = ONE_STAGE.replace("out/result", "dvclive/")
    folder = project(files)
    for _ in range(2):
        succeed(folder, "dvc", "repro", "--force")
        assert json.loads((folder / "dvclive/metrics.json").read_text())["loss"] == 1
