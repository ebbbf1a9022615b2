"""What the README and docs/ show is what their reader gets."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, contents, edit, run, succeed

README = (ROOT / "README.md").read_text("utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for pattern in ("*.md", "docs/*.md", "hermetic/README.md")
    for path in ROOT.glob(pattern)
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.M)


def lines(text: str) -> list[str]:
    """Split into lines, without blank ones, spacing and abbreviated commits."""
    text = re.sub(r"\b[0-9a-f]{7}\b", "COMMIT", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


SESSIONS = "(?:console|pycon)"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, SESSIONS)])
def test_the_commands_of_a_page_print_what_it_says_one_after_the_other(page, clone):
    for block in blocks(page, "console"):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, shown = re.split(r"(?<!\\)\n", session, maxsplit=1)
            done = run(clone, "sh", "-c", command)
            printed = iter(lines(done.stdout + done.stderr))
            for line in lines(shown):
                assert line == "…" or line in printed, (
                    f"$ {command}\n{done.stdout}{done.stderr}\n"
                    f"lacks, where the page has it:\n{line}"
                )
    # Python's own runner of sessions; those of a page are one session.
    session_file = clone.parent / "session.txt"
    session_file.write_text("\n".join(blocks(page, "pycon")), "utf-8")
    succeed(clone, "python", "-m", "doctest", str(session_file))


@pytest.mark.parametrize("page", PAGES)
def test_the_sessions_of_a_page_are_fenced_and_its_links_lead_to_files(page):
    prompts = re.findall(r"^(?:\$|>>>) ", PAGES[page], re.MULTILINE)
    fenced = "".join(blocks(page, SESSIONS))
    assert re.findall(r"^(?:\$|>>>) ", fenced, re.MULTILINE) == prompts
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    assert page == "README.md" or README.count(f"]({page})") == 1


ERRORS = """
download | sha256: ac75 | sha256: 0000
    data/mnist_sample.tgz has SHA-256 ac75…, but download.sha256 is 0000…: if you
    trust this archive, put its digest into params.yaml; if not, find out who changed it
download | mnist_sample.tgz | mine.tgz
    download.url: there is no file data/mine.tgz: give a path from the root of the
    repository, or a URL; if Git ignores the file, copy it here, or run dvc pull
    data/archive if there is a DVC remote
preprocess | ["3", "7"] | [3, 7]
    params.yaml: data.classes[0]: YAML reads the number 3 here: write "3", or the exact
    name, in quotes
preprocess | ["3", "7"] | ["3", "4"]
    class '4' has no images in train: check data.classes and data.splits; other
    folders are mnist_sample/train/7, mnist_sample/valid/7
train | momentum | momentun
    params.yaml: train: … unknown field …momentun…: known keys are seed,
    subtract_mean, …
train | loss: log_loss | loss: squared_error
    train.learning_rate: 0.2 and train.l2: 0.0005 make squared_error diverge to NaN or
    infinity: lower one of them
baseline | numpy==2 | numpy==0
    numpy … is installed, but requirements.txt locks another version: activate
    .venv, which make creates, or install requirements.txt
"""
"""A stage, a mistake (old and new text of a file), and the message."""


def test_an_error_is_one_line_that_says_what_to_do_and_leaves_the_outputs(lent: Path):
    before = contents(lent, "data", "models", "metrics")
    pattern = r"^(\w+) \| (.*) \| (.*)\n((?: {4}.*\n)+)"
    for stage, old, new, text in re.findall(pattern, ERRORS, re.MULTILINE):
        file = "requirements.txt" if stage == "baseline" else "params.yaml"
        edit(lent / file, old, new)
        done = run(lent, "python", "-m", "stages", stage)
        edit(lent / file, new, old)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        message = re.escape(" ".join([f"{stage}:", *text.split()])).replace("…", ".*")
        assert re.fullmatch(message, done.stderr.strip()), done.stderr
    assert contents(lent, "data", "models", "metrics") == before


def test_the_steps_without_make_are_those_of_make():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (version,) = re.findall(r"UV_VERSION := (\S+)", makefile)
    assert f"pip install uv=={version}\n" in README
    (install,) = re.findall(r"^uv pip install (.*) -r requirements.txt$", README, re.M)
    install_line = makefile.replace("\\\n\t", "").partition("\nINSTALL := ")[2]
    (by_make,) = re.findall(r"^.* && \$\(UV\) install (.*) -r\n", install_line)
    # make sets UV_SYSTEM_CERTS, and is quiet without a terminal.
    by_hand = set(install.split()) - {"--system-certs"}
    assert by_hand == {*by_make.replace("$(BIN)", ".venv/bin").split()} - {"$(QUIET)"}
    recipe = makefile.partition("\nall:")[2].partition("\n\n")[0]
    steps = re.findall(r"python -m (dvc repro|tools\.\w+)", recipe)
    assert steps == ["tools.check", "dvc repro", "tools.summary"]
    assert "python -m tools.check\ndvc repro\npython -m tools.summary\n" in README


def test_the_tree_names_what_stages_holds_and_nothing_that_is_missing():
    (tree,) = blocks("README.md", "text")
    named: set[str] = set()
    folder = ""
    for indent, names in re.findall(
        r"^( {4})?((?:[\w./]+ {1,2})+)", tree, re.MULTILINE
    ):
        named |= {f"{folder if indent else ''}{name}" for name in names.split()}
        folder = folder if indent else names.split()[-1]
    assert [name for name in named if not (ROOT / name).exists()] == []
    there = {
        f"stages/{path.name}{'/' * path.is_dir()}"
        for path in (ROOT / "stages").iterdir()
        if path.name != "__pycache__"
    }
    assert {name for name in named if name.startswith("stages/")} == there | {"stages/"}


def test_the_notebooks_figures_are_those_of_the_committed_metrics():
    baseline = json.loads((ROOT / "metrics/baseline.json").read_text("utf-8"))
    figures = [*baseline["recall"].values(), baseline["balanced_accuracy"]]
    for figure in (*figures, baseline["precision"]["3"]):
        assert f"| {figure:.6f} |" in PAGES["docs/lesson.md"]


def test_the_hooks_lint_as_make_test_does_and_refuse_bad_parameters_and_a_stale_lock(
    lent: Path,
):
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    (local,) = config["repos"]
    assert local["repo"] == "local"
    *linters, check, status = [hook["entry"] for hook in local["hooks"]]
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\ntest:")[2]
    for linter in linters:
        assert f"python -m {linter}\n" in recipe
    # params.yaml's mistakes, and what the two hooks return.
    for mistakes, expected in {24: (0, 0), 23: (0, 1), -1: (1, 1)}.items():
        edit(lent / "params.yaml", "mistakes: 24", f"mistakes: {mistakes}")
        returned = [run(lent, *hook.split()).returncode for hook in (check, status)]
        edit(lent / "params.yaml", f"mistakes: {mistakes}", "mistakes: 24")
        assert tuple(returned) == expected
