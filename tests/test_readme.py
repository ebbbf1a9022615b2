"""What the README and docs/ show is what their reader gets."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, STAGES, edit, run, succeed

README = (ROOT / "README.md").read_text("utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.M)


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


WITH_SESSIONS = sorted(page for page in PAGES if blocks(page, "(?:console|pycon)"))


@pytest.mark.parametrize("page", WITH_SESSIONS)
def test_the_commands_of_a_page_print_what_it_says_one_after_the_other(page, clone):
    for block in blocks(page, "console"):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = session.partition("\n")
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
    done = run(clone, "python", "-m", "doctest", str(session_file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_sessions_are_fenced_as_this_file_finds_them():
    for page, text in PAGES.items():
        prompts = re.findall(r"^(?:\$|>>>) ", text, re.MULTILINE)
        fenced = "".join(blocks(page, "(?:console|pycon)"))
        assert re.findall(r"^(?:\$|>>>) ", fenced, re.MULTILINE) == prompts, page


PARAMS, LOCK = "params.yaml", "requirements.txt"
ERRORS = {
    "changed the archive": ("download", PARAMS, "sha256: ac75", "sha256: 0000"),
    "mistyped its path": ("download", PARAMS, "mnist_sample.tgz", "mine.tgz"),
    "wrote classes without quotes": ("preprocess", PARAMS, '["3", "7"]', "[3, 7]"),
    "named a class": ("preprocess", PARAMS, '["3", "7"]', '["3", "4"]'),
    "mistyped a parameter's name": ("train", PARAMS, "momentum", "momentun"),
    "or its value": ("train", PARAMS, "loss: log_loss", "loss: hinge"),
    "wanted too large a batch": (
        "train",
        PARAMS,
        "batch_size: 64",
        "batch_size: 20000",
    ),
    "or too large steps": ("train", PARAMS, "loss: log_loss", "loss: squared_error"),
    "have other packages": ("baseline", LOCK, "\nnumpy==", "\nnumpy==0."),
}
"""How a row begins: the stage that prints its message, and the edit of a file."""


def test_what_can_go_wrong_is_told_as_the_page_tells_it(lent: Path):
    text = PAGES["docs/own-images.md"].partition("## What can go wrong")[2]
    table = dict(re.findall(r"^\| (.*?) \| `(.*)` \|$", text, re.MULTILINE))
    rows = {you: says for you, says in table.items() if says.split(":")[0] in STAGES}
    assert len(rows) == len(ERRORS)
    for (you, says), (start, (stage, file, old, new)) in zip(
        rows.items(), ERRORS.items(), strict=True
    ):
        assert you.startswith(start)
        before = (lent / file).read_text("utf-8")
        edit(lent / file, old, new)
        done = run(lent, "python", "-m", "stages", stage)
        (lent / file).write_text(before, "utf-8")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        pattern = re.escape(says).replace("…", ".*")
        assert re.fullmatch(pattern, done.stderr.strip()), done.stderr


def test_the_steps_without_make_are_those_of_make():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    version = re.search(r"UV_VERSION := (\S+)", makefile)
    assert version
    assert f"pip install uv=={version[1]}\n" in README
    install = re.search(r"^uv pip install (.*) -r requirements.txt$", README, re.M)
    assert install
    # make sets UV_SYSTEM_CERTS, and is quiet.
    ours = set(install[1].split()) - {"--system-certs"}
    theirs = re.search(r"^INSTALL := \$\(UV\) install (.*) -r$", makefile, re.M)
    assert theirs
    assert ours == {*theirs[1].replace("$(BIN)", ".venv/bin").split()} - {"--quiet"}
    recipe = makefile.partition("\nall:")[2].partition("\n\n")[0]
    run_by_make = re.findall(r"python -m (dvc repro|tools\.\w+)", recipe)
    assert run_by_make == ["tools.check", "dvc repro", "tools.summary"]
    by_hand = [
        line if line == "dvc repro" else f"python -m {line}" for line in run_by_make
    ]
    assert "\n".join(by_hand) in README


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_readme_links_to_every_other_page_once():
    for page in PAGES.keys() - {"README.md"}:
        assert README.count(f"]({page})") == 1, page


def test_the_tree_names_the_files_and_folders_that_there_are():
    """Everything in stages/ is in the tree, and everything in the tree exists."""
    (tree,) = blocks("README.md", "text")
    named: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        names = re.match(r"(?: {4})?((?:[\w./]+ {1,2})+)", line)
        assert names, line
        for name in names[1].split():
            named.add(f"{folder if line.startswith(' ') else ''}{name}")
        if not line.startswith(" "):
            folder = names[1].split()[-1]
    assert [name for name in named if not (ROOT / name).exists()] == []
    there = {
        f"stages/{path.name}{'/' * path.is_dir()}"
        for path in (ROOT / "stages").iterdir()
        if path.name != "__pycache__"
    }
    assert {name for name in named if name.startswith("stages/")} == there | {"stages/"}


def test_the_notebooks_figures_are_those_of_the_committed_metrics():
    baseline = json.loads((ROOT / "metrics/baseline.json").read_text("utf-8"))
    for figure in (
        *baseline["recall"].values(),
        baseline["balanced_accuracy"],
        baseline["precision"]["3"],
    ):
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
    succeed(lent, *check.split())
    succeed(lent, *status.split())
    edit(lent / "params.yaml", "mistakes: 24", "mistakes: 23")
    succeed(lent, *check.split())
    assert run(lent, *status.split()).returncode == 1
    edit(lent / "params.yaml", "mistakes: 23", "mistakes: -1")
    assert run(lent, *check.split()).returncode == 1
    edit(lent / "params.yaml", "mistakes: -1", "mistakes: 24")
