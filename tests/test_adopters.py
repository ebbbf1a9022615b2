"""Pipelines of other people, with the guard copied into them and called first."""

import json
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from stages.plumbing.hermetic import landlock
from tests.conftest import ROOT, commit, edit, run, succeed

GUARD = ROOT / "stages/plumbing/hermetic"
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
    assert "Running stage" not in succeed(folder, "dvc", "repro")
    edit(folder / "params.yaml", "n_est: 3", "n_est: 1")
    assert succeed(folder, "dvc", "repro").count("Running stage") == 2


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
    count: int = 1


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
        count=2,
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
        count=2,
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
    assert succeed(folder, "dvc", "repro", *where).count("Running stage") == kind.count
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
