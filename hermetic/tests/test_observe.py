"""`hermetic observe` and `hermetic check`."""

import re

import pytest

from hermetic.addition import with_items
from hermetic.tests.conftest import edit, run, succeed, under_dvc
from hermetic.tests.test_pipelines import KINDS

PIPELINE = {
    "dvc.yaml": """\
        # A pipeline of two stages.
        stages:
          features:  # first
            cmd: python src/features.py
            deps:
              - data/raw  # fetched by hand

          train: {cmd: python src/train.py, deps: [src/train.py], outs: [model]}
        # The end.
        """,
    # A file of its own: for templates, hermetic has to import DVC.
    "sub/dvc.yaml": """\
        stages:
          each:
            foreach: [x, y]
            do:
              cmd: python ../src/each.py ${item}
              outs: ["${item}"]
        """,
    "params.yaml": "train: {seed: 1}",
    "more.json": '{"a": 1}',
    "data/raw": "raw",
    "data/other": "other",
    **{f"images/{name}/1": name for name in "abcde"},
    "tracked.json": "{}",
    "src/common.py": "text = open('data/other').read()",
    "src/features.py": """
        import glob, os
        import common
        os.makedirs("features/sub", exist_ok=True)
        for name in "1234":
            open(f"features/sub/{name}", "w").write(open("data/raw").read())
        open("tracked.json", "w").write("{}")
        for name in glob.glob("images/*/1"):
            open(name).read()
        """,
    "src/train.py": """
        import os
        seed = open("params.yaml").read()
        os.listdir(".")
        open("model", "w").write(open("features/sub/1").read())
        open(os.path.expanduser("~/.cache/secret"))
        """,
    "src/each.py": """
        import sys
        open(sys.argv[1], "w").write(open("../data/raw").read())
        """,
}
OBSERVE = ("python", "-m", "hermetic", "observe", "--all-pipelines")


def test_a_stage_passes_with_what_observe_adds(make):
    folder = make(PIPELINE, place="hermetic")
    (folder.parent / ".cache").mkdir()
    (folder.parent / ".cache/secret").touch()
    under_dvc(folder)
    old = (folder / "dvc.yaml").read_text()
    done = run(folder, *OBSERVE)
    assert done.returncode == 0, done.stderr
    (folder / "patch").write_text(done.stdout)
    succeed(folder, "git", "apply", "patch")
    new = (folder / "dvc.yaml").read_text()
    assert [line for line in old.splitlines() if line not in new] == [
        "  train: {cmd: python src/train.py, deps: [src/train.py], outs: [model]}"
    ]
    deps = "../hermetic, ../src/each.py, ../data/raw"
    assert f"stage each@x lacks in deps: {deps}\n" in done.stderr
    edit(folder / "sub/dvc.yaml", "do:\n", f"do:\n      deps: [{deps}]\n")
    _, _, allowed = done.stderr.partition("[tool")
    (folder / "pyproject.toml").write_text(f"[tool{allowed.partition('stage each')[0]}")
    again = run(folder, *OBSERVE)
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    assert not re.search("^stage|^allow", again.stderr, re.M)
    site = str(folder / "hermetic/site")
    repro = ("dvc", "repro", "--force", "--all-pipelines")
    done = run(folder, *repro, PYTHONPATH=site, HERMETIC="verbose")
    assert (done.returncode, done.stderr.count(" is checked by ")) == (0, 4), (
        done.stderr
    )


TEXT = """\
stages:
  a:
    cmd: |
      x
      y

    # Before the deps.
    deps:
    - b:
        cache: false  # b

    # After the deps.
    params: [c, p.json: [d], params.yaml: ]  # params
  z: {cmd: z}
"""
FLOW = '"1", {p.toml: null}'
ADDED = [
    (TEXT, "a", "deps", "false  # b\n", '    - "1"\n    - p.toml:\n'),
    (TEXT, "a", "params", "params.yaml:", f" , {FLOW}"),
    (TEXT, "a", "outs", "# params\n", '    outs:\n    - "1"\n    - p.toml:\n'),
    (TEXT, "z", "params", "{cmd: z", f", params: [{FLOW}]"),
    (
        TEXT.partition("  # params")[0],
        "a",
        "outs",
        "yaml: ]",
        '\n    outs:\n    - "1"\n    - p.toml:',
    ),
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(("text", "stage", "section", "after", "added"), ADDED)
def test_items_are_added_and_all_else_stays(
    text, stage, section, after, added, newline
):
    before, after, rest = text.partition(after)
    items = ["1", {"p.toml": None}]
    new = with_items(text.replace("\n", newline), stage, section, items)
    assert new == (before + after + added + rest).replace("\n", newline)


ALIASED = """
stages:
  a: &a {cmd: a, deps: &deps [d], outs: [o]}
  b: {cmd: b, deps: *deps}
  c: {<<: *a, outs: [p]}
  empty:
    cmd: e
    deps:
  each: {foreach: [x], do: {cmd: z}}
"""


@pytest.mark.parametrize("stage", ["a", "b", "c", "empty", "each@x"])
def test_nothing_is_added_where_stages_share_lines(stage):
    assert with_items(ALIASED, stage, "deps", ["x"]) is None


TABLE = {
    "a": "src/formats.py:7",
    "p.json: a.b": "src/formats.py:3",
    "p.py: A.b": "src/formats.py:5",
    "p.toml: a.b": "src/formats.py:4",
    "params.yaml: *": "src/formats.py:6",
}
TOLD = {
    "p.py: A.b": "missing in params: src/formats.py:5",
    "part/in": "not used by Python",
    "src/write.py": "declared twice: it is in src",
}


def test_check_shows_which_line_used_what_and_what_is_superfluous_or_missing(make):
    folder = make(KINDS)
    under_dvc(folder)
    edit(folder / "dvc.yaml", "[a, src]", "[a, src, part/in, src/write.py]")
    edit(folder / "dvc.yaml", "p.py: [A.b], ", "")
    for told in (TOLD, {}):
        command = ("python", "-m", "hermetic", "check", "formats")
        done = run(folder, *command, PYTHONPATH="src")
        table = done.stdout.partition("\nformats\n")[2]
        found = dict(re.findall(r"^  (\S.*?)  +(.+)$", table, re.M))
        assert found.pop("src", "").startswith("src/hermetic/"), done.stderr
        assert (found, done.returncode) == (TABLE | told, bool(told))
        if told:
            edit(folder / "dvc.yaml", ", part/in, src/write.py", "")
            edit(folder / "dvc.yaml", "params: [p.json", "params: [p.py: [A.b], p.json")
