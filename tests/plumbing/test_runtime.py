"""Starting a stage by hand: a wrong name or an early signal ends in one line."""

import signal
import sys

import pytest

from stages.plumbing import runtime
from tests.conftest import contents, copy, edit, run

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
    """DVC names the stage that it runs, and that one is in dvc.yaml."""
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


def test_a_path_that_this_locale_cannot_decode_ends_in_one_line(sources, tmp_path):
    folder = copy(sources, tmp_path / "Zoë")
    done = run(folder, "python", "-m", "stages", "train", **ASCII["a terminal"])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (
        "Zo\\udcc3\\udcab is not valid ascii: rename the folder, or use" in done.stderr
    )


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_the_caller_ignores_is_ignored(monkeypatch, number):
    """As nohup ignores SIGHUP, and a shell SIGINT for a command that ends in &."""
    handlers = {number: signal.SIG_IGN}
    monkeypatch.setattr(signal, "getsignal", lambda n: handlers.get(n, signal.SIG_DFL))
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    for name in ("excepthook", "unraisablehook", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # restores what explain_errors sets
    runtime.explain_errors("train")
    assert handlers.pop(number) == signal.SIG_IGN
    others = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} - {number}
    assert {n for n in handlers if handlers[n] != signal.SIG_DFL} == others


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_disturb_the_end(sources, number):
    program = f"""
import os, signal
from stages.plumbing import runtime
runtime.explain_errors("train")
try:
    os.kill(os.getpid(), signal.SIGINT)
finally:
    os.kill(os.getpid(), {int(number)})
    print("cleaned up")
"""
    done = run(sources, "python", "-c", program)
    line = "train: interrupted, nothing was written\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "cleaned up\n", line)


def test_a_full_disk_behind_stdout_is_named(sources):
    program = """
from stages.plumbing import artifacts, runtime
runtime.explain_errors("train")
with artifacts.name_full_disk("elsewhere"):
    print("some text", flush=True)
"""
    command = ["sh", "-c", 'exec python -u -c "$0" >/dev/full', program]
    done = run(sources, *command)
    assert done.stderr == "train: <stdout>: No space left on device\n"
    assert done.returncode == 1


def test_what_the_environment_of_a_company_names_may_be_used(tree, monkeypatch):
    """Certificates and passwords, and libraries that Python itself is linked with."""
    monkeypatch.chdir(tree)
    for name in runtime.TRUSTED:
        monkeypatch.setenv(name, f"/company/{name}")
    (tree.parent / "lib").mkdir()
    folders = [str(tree.parent / "lib"), "/nowhere", "", ".", str(tree / "stages"), "/"]
    monkeypatch.setenv("LD_LIBRARY_PATH", ":".join(folders))
    named = {f"/company/{name}" for name in runtime.TRUSTED}
    netrc = {"~/.netrc", "~/_netrc"}
    assert {*runtime.readable("download")} == {folders[0], *named, *netrc}
    assert runtime.readable("train") == [folders[0]]
    monkeypatch.setenv("SSLKEYLOGFILE", "/company/keys")
    assert {*runtime.allowed("download")} > {"data/mnist_sample.tgz", "/company/keys"}
    text = f"download: {{url: [a.tar, b.tar], sha256: [{'a' * 64}, {'b' * 64}]}}"
    (tree / "params.yaml").write_text(text, "utf-8")
    assert [*runtime.allowed("download")][1:] == ["a.tar", "b.tar", "/company/keys"]


VIOLATIONS = {
    "raised": "open('README.md')",
    "raised on import": "open('README.md')",
    "hidden": "with contextlib.suppress(OSError): open('README.md')",
    "hidden by an error of a library": """
    try: open('README.md')
    except OSError: raise ValueError
""",
    "before the process gives up": """
    with contextlib.suppress(OSError): open('README.md')
    runtime.give_up(ValueError())
""",
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_ends_in_one_line_and_leaves_no_temporary_files(tree, name):
    """Whatever the stage makes of it."""
    text = "import contextlib\nfrom stages.plumbing import runtime\n"
    main = "" if name == "raised on import" else "def main():\n    "
    (tree / "stages/baseline.py").write_text(text + main + VIOLATIONS[name], "utf-8")
    done = run(tree, "python", "-m", "stages", "baseline")
    reads = "baseline: stage baseline reads README.md, which dvc.yaml does not declare"
    assert done.stderr == f'{reads}: add "- README.md" to its deps\n'
    assert (done.returncode, done.stdout) == (1, "")
    assert not [*tree.parent.glob("hermetic-*")]


def test_a_signal_is_reported_rather_than_a_violation(tree):
    text = """
import contextlib, os, signal
def main():
    with contextlib.suppress(OSError): open("README.md")
    os.kill(os.getpid(), signal.SIGTERM)
"""
    (tree / "stages/baseline.py").write_text(text, "utf-8")
    done = run(tree, "python", "-m", "stages", "baseline")
    assert done.stderr == "baseline: terminated, nothing was written\n"
