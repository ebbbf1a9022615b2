"""Starting a stage by hand: a wrong name or an early signal ends in one line."""

import signal

import pytest

from tests.conftest import contents, edit, run

OUTPUTS = ("data", "metrics", "models")


@pytest.mark.parametrize(
    "arguments", [[], [""], ["train", "report"]], ids=["none", "empty", "two"]
)
def test_anything_but_one_stage_ends_in_a_usage_line(sources, arguments):
    done = run(sources, "python", "-m", "stages", *arguments)
    assert done.stderr == "usage: python -m stages STAGE\n"
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("name", ["trian", "plumbing", "train.py", "../stages/train"])
def test_an_unknown_stage_ends_in_one_line(sources, name):
    done = run(sources, "python", "-m", "stages", name)
    assert done.stderr.startswith(f"{name}: stage {name} is in no dvc.yaml")
    assert done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (1, "")


def test_a_misspelt_cmd_ends_in_one_line(sources):
    """DVC says which stage it runs, so the guard lets the process start."""
    done = run(sources, "python", "-m", "stages", "trian", DVC_STAGE="train")
    line = "trian: there is no stages/trian.py: correct its cmd in dvc.yaml\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


ASCII = {
    "a pipe": {"PYTHONIOENCODING": "ascii"},
    "a terminal": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("variables", ASCII.values(), ids=ASCII)
def test_what_ascii_lacks_is_printed_with_backslashes(sources, variables):
    """To stdout and in an error; Python's own stdout refuses it."""
    program = r"""
from stages.plumbing import errors, runtime
runtime.explain_errors("gr\xf6\xdfe")
print("gr\xf6\xdfe \u2013 \u4e09")
raise errors.UserError("\u4e09 is not a class")
"""
    done = run(sources, "python", "-c", program, **variables)
    assert done.stdout == "gr\\xf6\\xdfe \\u2013 \\u4e09\n"
    assert done.stderr == "gr\\xf6\\xdfe: \\u4e09 is not a class\n"
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("number", "word"),
    [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")],
)
def test_a_signal_while_a_stage_is_imported_ends_in_one_line(tree, number, word):
    """Held back until the import is complete, and before the stage does anything."""
    before = contents(tree, *OUTPUTS)
    script = tree / "stages/train.py"
    kill = f"import os\nos.kill(os.getpid(), {int(number)})\n"
    edit(script, "import jax\n", f"{kill}import jax\n")
    script.write_text(f"{script.read_text('utf-8')}\nprint('imported')\n", "utf-8")
    done = run(tree, "python", "-m", "stages", "train")
    line = f"train: {word}, nothing was written\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "imported\n", line)
    assert contents(tree, *OUTPUTS) == before
