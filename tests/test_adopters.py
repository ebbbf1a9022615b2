"""Pipelines of other people, with the guard copied into them and called first."""

import json
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from stages.plumbing.hermetic import landlock
from tests.conftest import ROOT, commit, copy, edit, run, stages_run, succeed

GUARD = ROOT / "stages/plumbing/hermetic"
ENFORCE = "import hermetic; hermetic.enforce()\n"
needs_landlock = pytest.mark.skipif(
    not landlock.version(), reason="this kernel has no Landlock"
)

Project = Callable[..., Path]


def make(folder: Path, files: dict[str, str]) -> Path:
    """Make a repository of some files, with the guard in src, and commit it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(GUARD, folder / "src/hermetic", ignore=ignored)
    always = {
        ".dvc/config": "[core]\nanalytics = false\n",
        ".dvcignore": "__pycache__/\n",
        ".gitignore": "__pycache__/\n/.dvc/tmp\n/.dvc/cache\n",
    }
    for name, text in {**always, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), "utf-8")
    commit(folder)
    return folder


@pytest.fixture
def project() -> Iterator[Project]:
    """Return a function that makes a repository of some files.

    Its home and its temporary files lie beside it, where sockets are allowed no more
    than 107 bytes for a path: the folders of pytest have too long names.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield lambda files: make(Path(folder).resolve() / "project", files)


def by_hand(
    folder: Path, *command: str, stage: str = "s"
) -> subprocess.CompletedProcess[str]:
    """Run a script of a stage as DVC does, but faster."""
    return run(folder, "python", "-W", "ignore", *command, DVC_STAGE=stage)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last thing that a stage says, which has to be of the guard."""
    assert done.returncode, (done.stdout, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x and not x.startswith("ERROR: ")]
    _, found, text = lines[-1].partition("Undeclared: ")
    assert found, done.stderr
    return text


def obey(file: Path, text: str) -> None:
    """Add to dvc.yaml the line that a refusal asks for."""
    asked = re.search(r'^stage ([\w@]+) .* add "- (.+)" to its (\w+)', text)
    assert asked, text
    stage, line, section = asked.groups()
    content = yaml.safe_load(file.read_text("utf-8"))
    entry = content["stages"][stage.partition("@")[0]]
    entry.get("do", entry).setdefault(section, []).append(yaml.safe_load(line))
    file.write_text(yaml.safe_dump(content), "utf-8")


def script(body: str, enforce: str = ENFORCE) -> str:
    """Return a stage that is guarded."""
    return enforce + textwrap.dedent(body)


ROWS = "".join(f'<row Id="{n}" Tags="{"r" if n % 2 else ""}"/>' for n in range(9))
GET_STARTED = {
    "data/data.xml": f"<posts>{ROWS}</posts>",
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
            params: [train.n_est, train.seed]
            outs: [model.pkl]
          evaluate:
            cmd: python src/evaluate.py model.pkl data/features
            deps: [data/features, model.pkl, src/hermetic, src/evaluate.py]
            metrics: [eval/metrics.json: {cache: false}]
            plots: [eval/plots/roc: {cache: false}, eval/importance.csv]
        """,
    "src/prepare.py": script("""
        import os, random, sys
        import xml.etree.ElementTree
        params = hermetic.read_params("prepare")
        random.seed(params["seed"])
        os.makedirs(os.path.join("data", "prepared"), exist_ok=True)
        with open(sys.argv[1]) as file:
            rows = list(xml.etree.ElementTree.parse(file).getroot())
        random.shuffle(rows)
        split = int(len(rows) * params["split"])
        for name, part in (("train", rows[split:]), ("test", rows[:split])):
            with open(f"data/prepared/{name}.tsv", "w") as file:
                for row in part:
                    file.write(f"{row.get('Id')}\\t{row.get('Tags')}\\n")
        """),
    "src/featurize.py": script("""
        import os, pickle, sys
        import numpy as np
        count = hermetic.read_params("featurize.max_features")
        os.makedirs(sys.argv[2], exist_ok=True)
        for name in os.listdir(sys.argv[1]):
            with open(os.path.join(sys.argv[1], name)) as file:
                rows = [line.rstrip("\\n").split("\\t") for line in file]
            inputs = np.array([[int(n) % 2, 0, int(n)][:count] for n, _ in rows])
            target = os.path.join(sys.argv[2], name.replace(".tsv", ".pkl"))
            with open(target, "wb") as file:
                pickle.dump((inputs, [tag == "r" for _, tag in rows]), file)
        """),
    "src/train.py": script("""
        import os, pickle, sys
        import joblib
        from sklearn.ensemble import RandomForestClassifier
        params = hermetic.read_params("train")
        with open(os.path.join(sys.argv[1], "train.pkl"), "rb") as file:
            inputs, labels = pickle.load(file)
        model = RandomForestClassifier(
            n_estimators=params["n_est"], n_jobs=2, random_state=params["seed"]
        )
        model.fit(inputs, labels)
        with open(sys.argv[2], "wb") as file:
            pickle.dump(model, file)
        joblib.dump(model, sys.argv[2])
        """),
    "src/evaluate.py": script("""
        import json, os, sys
        import joblib
        model = joblib.load(sys.argv[1])
        inputs, labels = joblib.load(os.path.join(sys.argv[2], "test.pkl"))
        os.makedirs("eval/plots/roc", exist_ok=True)
        with open("eval/metrics.json", "w") as file:
            json.dump({"acc": model.score(inputs, labels), "n": len(labels)}, file)
        with open("eval/plots/roc/test.csv", "w") as file:
            file.write("x,y\\n0,1\\n")
        with open("eval/importance.csv", "w") as file:
            file.write("name,importance\\nodd,1\\n")
        """),
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a pipeline like DVC's example-get-started."""
    folder = make(tmp_path_factory.mktemp("example") / "project", GET_STARTED)
    stdout = succeed(folder, "dvc", "repro")
    assert stages_run(stdout) == ["prepare", "featurize", "train", "evaluate"]
    return folder


def test_a_pipeline_like_dvcs_example_runs_and_reruns_what_has_changed(
    example, tmp_path
):
    folder = copy(example, tmp_path / "project")
    assert json.loads((folder / "eval/metrics.json").read_text()) == {"acc": 1, "n": 4}
    edit(folder / "params.yaml", "unused: 1", "unused: 2")
    assert stages_run(succeed(folder, "dvc", "repro")) == []
    edit(folder / "params.yaml", "n_est: 3", "n_est: 1")
    assert stages_run(succeed(folder, "dvc", "repro")) == ["train", "evaluate"]


FORGOTTEN = {
    "a parameter": ("prepare", "prepare.seed, ", ["prepare.seed"]),
    "a dep": ("train", "data/features, ", ["data/features/train.pkl"]),
    "a dep in the root": ("evaluate", "model.pkl, ", ["model.pkl"]),
    "an out": ("prepare", "outs: [data/prepared]", ["data/prepared"]),
    "an out in the root": ("train", "outs: [model.pkl]", ["model.pkl"]),
    "the script": ("train", ", src/train.py", ["src/train.py"]),
}


@pytest.mark.parametrize(("stage", "text", "lines"), FORGOTTEN.values(), ids=FORGOTTEN)
def test_each_forgotten_line_is_named_and_then_enough(
    example, tmp_path, stage, text, lines
):
    folder = copy(example, tmp_path / "project")
    before, name, after = (folder / "dvc.yaml").read_text().partition(f"{stage}:")
    assert text in after
    after = after.replace(text, "", 1)
    (folder / "dvc.yaml").write_text(f"{before}{name}{after}", "utf-8")
    command = after.partition("cmd: python ")[2].splitlines()[0].split()
    for line in lines:
        text = told(by_hand(folder, *command, stage=stage))
        assert f'which dvc.yaml does not declare: add "- {line}" to its ' in text
        obey(folder / "dvc.yaml", text)
    done = by_hand(folder, *command, stage=stage)
    assert (done.returncode, done.stderr) == (0, "")


class Kind(NamedTuple):
    """A pipeline whose stage does something that it does not declare."""

    files: dict[str, str]
    """What it does first is declared, and what it does last is not."""
    told: str
    """What is said of that."""
    result: str = "result"
    """Where it says `done` in the end."""
    stages: tuple[str, ...] = ("s",)


def dvc_yaml(text: str) -> str:
    """Return a dvc.yaml of one stage."""
    return f"stages: {{s: {{{text}}}}}"


DONE = "\nopen('result', 'w').write('done')\n"
KINDS = {
    "a module": Kind(
        {
            "other": "",
            "src/w.py": script(
                DONE + "open('other')", "from src import hermetic; hermetic.enforce()\n"
            ),
            "dvc.yaml": dvc_yaml("cmd: python -m src.w, deps: [src], outs: [result]"),
        },
        'stage s reads other, which dvc.yaml does not declare: add "- other" to its '
        "deps",
    ),
    "a list of commands": Kind(
        {
            "src/one.py": script("open('one', 'w').write('done')"),
            "src/two.py": script("""
                open("result", "w").write(open("one").read())
                open("three", "w")
                """),
            "dvc.yaml": dvc_yaml(
                "cmd: [python src/one.py, python src/two.py], "
                "deps: [src], outs: [one, result]"
            ),
        },
        'stage s writes three, which dvc.yaml does not declare: add "- three" to its '
        "outs",
    ),
    "a wdir": Kind(
        {
            "outer": "",
            "part/in": "done",
            "part/params.yaml": "p: {q: 1}",
            "src/w.py": script("""
                assert hermetic.read_params("p.q") == 1
                open("result", "w").write(open("in").read())
                open("../outer")
                """),
            "dvc.yaml": dvc_yaml(
                "cmd: python ../src/w.py, wdir: part, deps: [in, ../src], "
                "params: [p.q], outs: [result]"
            ),
        },
        'stage s reads ../outer, which dvc.yaml does not declare: add "- ../outer" to '
        "its deps",
        result="part/result",
    ),
    "foreach": Kind(
        {
            "other": "",
            "src/w.py": script("""
                import sys
                open(sys.argv[1], "w").write("done")
                open("other")
                """),
            "dvc.yaml": dvc_yaml(
                "foreach: [1, 2], do: {cmd: 'python src/w.py result${item}', "
                "deps: [src], outs: ['result${item}']}"
            ),
        },
        'stage s@1 reads other, which dvc.yaml does not declare: add "- other" to its '
        "deps",
        result="result2",
        stages=("s@1", "s@2"),
    ),
    "a matrix": Kind(
        {
            "params.yaml": "{a: 1, b: 2}",
            "src/w.py": script("""
                import sys
                assert hermetic.read_params("a") == 1
                open(sys.argv[1], "w").write("done")
                hermetic.read_params("b")
                """),
            "dvc.yaml": dvc_yaml(
                "matrix: {n: [1, 2]}, cmd: 'python src/w.py result${item.n}', "
                "deps: [src], params: [a], outs: ['result${item.n}']"
            ),
        },
        'stage s@1 reads b, which dvc.yaml does not declare: add "- b" to its params',
        result="result2",
        stages=("s@1", "s@2"),
    ),
    "a template": Kind(
        {
            "params.yaml": "{name: result, more: {name: more}}",
            "src/w.py": script(DONE + "open('more', 'w')"),
            "dvc.yaml": dvc_yaml(
                "cmd: python src/w.py, deps: [src], outs: ['${name}']"
            ),
        },
        'stage s writes more, which dvc.yaml does not declare: add "- more" to its '
        "outs",
    ),
    "a dvc.yaml in a subfolder": Kind(
        {
            "outer": "",
            "src/w.py": script(DONE + "open('../outer')"),
            "sub/dvc.yaml": dvc_yaml(
                "cmd: python ../src/w.py, deps: [../src], outs: [result]"
            ),
        },
        'stage s reads ../outer, which dvc.yaml does not declare: add "- ../outer" to '
        "its deps",
        result="sub/result",
        stages=("sub/dvc.yaml:s",),
    ),
    "outs that are folders": Kind(
        {
            "src/w.py": script("""
                import os
                os.makedirs("out/a")
                open("out/a/result", "w").write("done")
                os.makedirs("more")
                open("more/file", "w")
                """),
            "dvc.yaml": dvc_yaml("cmd: python src/w.py, deps: [src], outs: [out]"),
        },
        'stage s writes more, which dvc.yaml does not declare: add "- more" to its '
        "outs",
        result="out/a/result",
    ),
    "params in JSON, TOML and Python": Kind(
        {
            "p.json": '{"a": {"b": 1, "c": 4}}',
            "p.toml": "[a]\nb = 2\n",
            "p.py": "class A:\n    b = 3\n",
            "src/w.py": script(
                """
                assert hermetic.read_params("a.b", "p.json") == 1
                assert hermetic.read_params("a.b", "p.toml") == 2
                assert hermetic.read_params("A.b", "p.py") == 3
                open("result", "w").write("done")
                assert hermetic.read_params("a.c", "p.json") == 4
                """
            ),
            "dvc.yaml": dvc_yaml(
                "cmd: python src/w.py, deps: [src], outs: [result], "
                "params: [{p.json: [a.b]}, {p.toml: [a.b]}, {p.py: [A.b]}]"
            ),
        },
        'stage s reads a.c, which dvc.yaml does not declare: add "- p.json: [a.c]" to '
        "its params",
    ),
    "a whole parameter file": Kind(
        {
            "params.yaml": "a: done",
            "other.json": '{"a": 1}',
            "src/w.py": script("""
                import json, yaml
                open("result", "w").write(yaml.safe_load(open("params.yaml"))["a"])
                json.load(open("other.json"))
                """),
            "dvc.yaml": dvc_yaml(
                "cmd: python src/w.py, deps: [src], params: [{params.yaml: }], "
                "outs: [result]"
            ),
        },
        'stage s reads other.json, which dvc.yaml does not declare: add "- other.json" '
        "to its deps",
    ),
}
WORKERS = {
    "joblib": Kind(
        {
            "in": "done",
            "other": "",
            "src/w.py": script("""
                import numpy as np
                from joblib import Parallel, delayed

                def read(name):
                    with open(name) as file:
                        return file.read()

                def add(array):
                    return array.sum(), isinstance(array, np.memmap)

                for backend, is_mapped in (("loky", True), ("threading", False)):
                    parallel = Parallel(n_jobs=2, backend=backend)
                    texts = parallel(delayed(read)("in") for _ in range(2))
                    assert texts == ["done"] * 2
                    large = np.ones(200_000)  # joblib maps those of more than a MB
                    sums = parallel(delayed(add)(large) for _ in range(2))
                    assert sums == [(200_000, is_mapped)] * 2
                open("result", "w").write(texts[0])
                Parallel(n_jobs=2)(delayed(read)("other") for _ in range(2))
                """),
            "dvc.yaml": dvc_yaml(
                "cmd: python src/w.py, deps: [src, in], outs: [result]"
            ),
        },
        'stage s uses other, which dvc.yaml does not declare: add "- other" to its '
        "deps, or to its outs",
    ),
    "multiprocessing": Kind(
        {
            "in": "done",
            "other": "",
            "params.yaml": "{a: in, b: 2}",
            "src/w.py": script("""
                import multiprocessing
                name = hermetic.read_params("a")  # spawned workers read it again

                def read(other):
                    with open(other or name) as file:
                        return file.read()

                def work(method, other):
                    with multiprocessing.get_context(method).Pool(2) as pool:
                        return pool.map(read, [other] * 2)

                if __name__ == "__main__":
                    for method in ("fork", "spawn", "forkserver"):
                        assert work(method, "") == ["done"] * 2
                    open("result", "w").write("done")
                    work("spawn", "other")
                """),
            "dvc.yaml": dvc_yaml(
                "cmd: python src/w.py, deps: [src, in], params: [a], outs: [result]"
            ),
        },
        'stage s reads other, which dvc.yaml does not declare: add "- other" to its '
        "deps",
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, id=name) for name, kind in KINDS.items()),
        *(
            pytest.param(kind, id=name, marks=needs_landlock)
            for name, kind in WORKERS.items()
        ),
    ],
)
def test_in_every_kind_of_stage_the_line_to_add_is_named_and_then_enough(project, kind):
    folder = project(kind.files)
    file = next(name for name in kind.files if name.endswith("dvc.yaml"))
    command = ["dvc", "repro", *([file] if "/" in file else [])]
    text = told(run(folder, *command))
    assert text == kind.told
    obey(folder / file, text)
    assert stages_run(succeed(folder, *command)) == [*kind.stages]
    assert (folder / kind.result).read_text() == "done"


SWALLOW = """
    import multiprocessing, sys

    def read(name):
        try:
            return open(name).read()
        except OSError:
            return "swallowed"

    if __name__ == "__main__":
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            print(*pool.map(read, ["in", "other"]))
    """


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        pytest.param("spawn", marks=needs_landlock),
        pytest.param("forkserver", marks=needs_landlock),
    ],
)
def test_a_refusal_that_a_worker_swallows_fails_the_stage(project, method):
    files = {
        "in": "done",
        "other": "",
        "src/w.py": script(SWALLOW),
        "dvc.yaml": dvc_yaml("cmd: c, deps: [src, in], outs: [result]"),
    }
    done = by_hand(project(files), "src/w.py", method)
    assert done.stdout == "done swallowed\n"
    assert told(done) == (
        'stage s reads other, which dvc.yaml does not declare: add "- other" to its '
        "deps"
    )


PARAMS = {
    "params.yaml": "{a: {b: 1, c: {d: 2, e: 3}, x: 4}, z: 5}",
    "dvc.yaml": dvc_yaml("cmd: c, deps: [src], params: [a.b, a.c.d], outs: [o]"),
}
OTHER_PARAMS = {
    "hermetic.read_params('a')['x'] == 4": "a.x",
    "hermetic.read_params('a').get('x') == 4": "a.x",
    "'x' in hermetic.read_params('a')": "a.x",
    "hermetic.read_params('a')['c']['e'] == 3": "a.c.e",
    "hermetic.read_params()['z'] == 5": "z",
    "hermetic.read_params('a.x') == 4": "a.x",
    "hermetic.read_params('z') == 5": "z",
}


def test_a_key_above_the_declared_ones_is_a_mapping_of_these(project):
    body = """
        assert hermetic.read_params() == {"a": {"b": 1, "c": {"d": 2}}}
        assert hermetic.read_params("a") == {"b": 1, "c": {"d": 2}}
        assert hermetic.read_params("a.c") == {"d": 2}
        """
    done = by_hand(project({**PARAMS, "src/w.py": script(body)}), "src/w.py")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("question", "name"), OTHER_PARAMS.items())
def test_another_parameter_is_refused_by_its_name(project, question, name):
    folder = project({**PARAMS, "src/w.py": script(f"assert {question}")})
    text = told(by_hand(folder, "src/w.py"))
    assert text == (
        f'stage s reads {name}, which dvc.yaml does not declare: add "- {name}" to its '
        "params"
    )
    obey(folder / "dvc.yaml", text)
    done = by_hand(folder, "src/w.py")
    assert (done.returncode, done.stderr) == (0, "")


class Allowed(NamedTuple):
    """A stage that needs more than dvc.yaml can declare."""

    body: str
    allow: dict[str, str]
    """No more than it takes, and what is said where that is missing."""
    files: dict[str, str]


ALLOWED = {
    "Hugging Face's cache": Allowed(
        """
        from pathlib import Path

        model = Path.home() / ".cache/huggingface/hub/models--a--b"
        blob, link = model / "blobs/123", model / "snapshots/456/config.json"
        for file in (blob, link):
            file.parent.mkdir(parents=True, exist_ok=True)
        part = blob.with_suffix(".incomplete")
        part.write_text("done")
        part.rename(blob)
        link.symlink_to("../../blobs/123")
        assert [file.name for file in model.rglob("*.json")] == ["config.json"]
        open("result", "w").write(link.read_text())
        """,
        {
            "~/.cache/huggingface/": (
                r"stage s writes \S+/\.cache/huggingface/\S+, outside the repository: "
            )
        },
        {},
    ),
    "Git": Allowed(
        """
        import subprocess

        command = ["git", "rev-parse", "HEAD"]
        revision = subprocess.run(command, check=True, capture_output=True).stdout
        assert len(revision.strip()) == 40
        open("result", "w").write("done")
        """,
        {
            ".git/": (
                "stage s and the programs it starts can use only what dvc.yaml declares"
            ),
            "~/.gitconfig": r"stage s uses \S+/\.gitconfig, outside the repository: ",
        },
        {"../.gitconfig": "[user]\nname = A\n"},
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ALLOWED["Hugging Face's cache"], id="Hugging Face's cache"),
        pytest.param(ALLOWED["Git"], id="Git", marks=needs_landlock),
    ],
)
def test_what_dvc_yaml_cannot_declare_may_be_allowed(project, case):
    files = {
        **case.files,
        "src/w.py": script(case.body),
        "dvc.yaml": dvc_yaml("cmd: python src/w.py, deps: [src], outs: [result]"),
    }
    folder = project(files)

    def allow(*places: str) -> None:
        text = script(case.body, ENFORCE.replace("()", f"(allow={places!r})"))
        (folder / "src/w.py").write_text(text, "utf-8")

    text = told(run(folder, "dvc", "repro"))
    assert any(re.match(pattern, text) for pattern in case.allow.values())
    assert not (folder / "result").exists()
    for place, pattern in case.allow.items():
        allow(*(case.allow.keys() - {place}))
        assert re.match(pattern, told(by_hand(folder, "src/w.py")))
    allow(*case.allow)
    succeed(folder, "dvc", "repro")
    assert (folder / "result").read_text() == "done"


LOG = """
    live.log_param("rate", 0.1)
    for step in range(2):
        live.log_metric("loss", 1 - step / 2)
        live.next_step()
open("model.pkl", "w")
"""
LIVE_FIRST = f"""
import os

# So that DVCLive leaves it to DVC to track its files.
os.environ.pop("DVC_EXP_BASELINE_REV", None)
from dvclive import Live

live = Live(OPTIONS)  # reads DVC's and Git's own files
import hermetic

root = os.environ.get("DVC_ROOT", ".")
hermetic.enforce(allow=[ALLOWED])
with live:{LOG}"""
LIVE_LAST = f"""
import hermetic

hermetic.enforce(allow=[ALLOWED])
from dvclive import Live

with Live(OPTIONS) as live:{LOG}"""
LIVE_DVC_YAML = dvc_yaml(
    "cmd: python src/w.py, deps: [src], outs: [model.pkl, {dvclive/: {cache: false}}]"
)
RUNS = 'root + "/.dvc/tmp/exps/run/"'
OWN = [
    *(".", ".dvc", ".dvcignore", ".git", ".gitignore", "dvc.lock", "dvc.yaml"),
    *("~/.config/dvc", "~/.config/git", "~/.gitconfig", "~/dvc/"),
]
"""What DVCLive itself uses; the last is DVC_SITE_CACHE_DIR in these tests."""


def has_logged(folder: Path) -> bool:
    """Tell whether DVCLive has logged two steps, and forget it."""
    metrics = json.loads((folder / "dvclive/metrics.json").read_text())
    shutil.rmtree(folder / "dvclive")
    return metrics == {"loss": 0.5, "step": 1}


@pytest.mark.parametrize(
    ("options", "places"),
    [
        pytest.param("save_dvc_exp=False, dvcyaml=False", RUNS, id="log only"),
        pytest.param("", f"{RUNS}, 'dvc.yaml'", id="default"),
    ],
)
def test_dvclive_that_is_made_before_the_guard_needs_one_folder(
    project, options, places
):
    pytest.importorskip("dvclive")
    program = LIVE_FIRST.replace("OPTIONS", options)
    files = {"src/w.py": program.replace("ALLOWED", ""), "dvc.yaml": LIVE_DVC_YAML}
    folder = project(files)
    succeed(folder, "git", "config", "user.name", "A")
    succeed(folder, "git", "config", "user.email", "a@example.org")
    text = told(by_hand(folder, "src/w.py"))
    assert re.search(r"^stage s \w+ (\.dvc/tmp|dvc\.yaml)\b", text)
    (folder / "src/w.py").write_text(program.replace("ALLOWED", places), "utf-8")
    for command in (["repro"], ["exp", "run", "--force"]):
        succeed(folder, "dvc", *command)
        assert has_logged(folder)


def test_dvclive_that_is_made_after_the_guard_needs_dvcs_and_gits_files(project):
    pytest.importorskip("dvclive")
    program = LIVE_LAST.replace("OPTIONS", "").replace("ALLOWED", str(OWN)[1:-1])
    folder = project({"src/w.py": program, "dvc.yaml": LIVE_DVC_YAML})
    for _ in range(2):
        succeed(folder, "dvc", "repro", "--force")
        assert has_logged(folder)
