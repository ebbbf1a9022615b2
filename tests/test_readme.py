"""What the README shows is what its reader gets."""

import json
import re
from pathlib import Path

from tests.conftest import ROOT, run

README = (ROOT / "README.md").read_text("utf-8")


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_the_commands_print_what_the_readme_says_one_after_the_other(clone: Path):
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = session.partition("\n")
            done = run(clone, "sh", "-c", command)
            printed = iter(lines(done.stdout + done.stderr))
            for line in lines(shown):
                assert line == "…" or line in printed, (
                    f"$ {command}\n{done.stdout}{done.stderr}\nlacks, in its place:\n{line}"
                )


def test_the_steps_without_make_are_those_of_make():
    version = re.search(r"UV_VERSION := (\S+)", (ROOT / "Makefile").read_text("utf-8"))
    assert version
    assert f"pip install uv=={version[1]}\n" in README


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_notebooks_figures_are_those_of_the_committed_metrics():
    baseline = json.loads((ROOT / "metrics/baseline.json").read_text("utf-8"))
    for figure in (*baseline["recall"].values(), baseline["balanced_accuracy"], baseline["precision"]["3"]):
        assert f"| {figure:.6f} |" in README
